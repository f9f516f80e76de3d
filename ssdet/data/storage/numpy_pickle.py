"""Reader of pickled numpy arrays that creates no other object and runs no code.

The names that numpy's pickles refer to are replaced by the plain classes below.
"""

import codecs
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class _Kind:
    """Replaces numpy.dtype."""

    def __init__(self, code: str, *_: bool) -> None:
        if code not in NUMBERS:
            raise ValueError(f"array of type {code!r}, expected one of {', '.join(NUMBERS)}")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Replaces an array under construction."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_column, data = state
        if isinstance(data, str):  # Python 2 has no other bytes
            data = data.encode("latin1")
        flat = np.frombuffer(data, np.dtype(kind.code).newbyteorder(kind.order))
        native = flat.astype(np.dtype(kind.code))
        self.values = native.reshape(shape, order="F" if by_column else "C")


def _begin(*_: Any) -> _Array:
    """Replaces numpy's _reconstruct."""
    return _Array()


def _whole(data: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    """Replaces numpy's _frombuffer (protocol 5)."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


def _scalar(kind: _Kind, data: bytes | str) -> int | float | bool:
    """Replaces numpy's scalar."""
    array = _Array()
    array.__setstate__((1, (1,), kind, False, data))
    number: int | float | bool = array.values[0].item()
    return number


def _encode(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode`, by which protocols 0 to 2 store bytes."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise ValueError(f"bytes in encoding {encoding!r}, expected latin1")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    allowed = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _begin,
        ("numpy._core.multiarray", "_reconstruct"): _begin,
        ("numpy.core.numeric", "_frombuffer"): _whole,
        ("numpy._core.numeric", "_frombuffer"): _whole,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): dict,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _Kind,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return self.allowed[module, name]


def is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle of protocol 3 or later, which torch.save does not write."""
    with open(path, "rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] > 2


def read_arrays(source: str | Path | BinaryIO, where: str = "") -> dict[str, Tensor]:
    """Arrays of a pickled dictionary as tensors; names of nested ones are joined by `/`.

    `where` names an open file in errors. Raises ValueError for a damaged pickle or one with
    anything but arrays of numbers, before creating it.
    """
    where = where or str(source)
    content = _load(source, where)
    try:
        arrays = dict(_flat(content, ""))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{where}: not a pickle of numpy arrays alone: {error}") from error
    if not arrays:
        raise ValueError(f"{where}: a pickle without arrays, expected names to arrays")
    return arrays


def read_tree(path: Path) -> Any:
    """Content of a pickle of numpy arrays, dictionaries, lists, strings and numbers.

    Raises ValueError for a damaged pickle or one with any other object, before creating it.
    """
    content = _load(path, str(path))
    try:
        return _with_arrays(content)
    except RecursionError as error:
        raise ValueError(f"{path}: a pickle that contains itself") from error


def _with_arrays(content: Any) -> Any:
    if isinstance(content, _Array):
        return content.values
    if isinstance(content, Mapping):
        return {name: _with_arrays(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_arrays(value) for value in content]
    return content


def _load(source: str | Path | BinaryIO, where: str) -> Any:
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                return _ArraysOnly(file, encoding="latin1").load()
        return _ArraysOnly(source, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(f"{where}: not a pickle of numpy arrays alone: {error}") from error


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, _Array):
        yield prefix, torch.from_numpy(np.ascontiguousarray(content.values))
        return
    if not isinstance(content, Mapping):
        raise TypeError(f"{prefix or 'the top'} is a {type(content).__name__}, expected an array")
    for name, value in content.items():
        yield from _flat(value, f"{prefix}/{name}" if prefix else str(name))
