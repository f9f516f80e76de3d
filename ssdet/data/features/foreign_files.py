"""Readers of feature files of other tools: .npy, .npz, .h5, .pkl and .pt."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from ssdet.data.datasets.video_names import ID, VideoNames
from ssdet.data.storage.numpy_pickle import read_tree

Array = np.ndarray[Any, Any]
LIMIT = 1 << 34
"""Maximum bytes of one array: a small file can declare any size."""
NUMBERS = "fiub"
"""Kinds of numpy types of features."""
Load = Callable[[], Array]


@dataclass(frozen=True)
class Leaf:
    """One array of a file, loaded on demand."""

    shape: tuple[int, ...]
    load: Load


Tree = Leaf | Mapping[str, Any]
"""An array or a mapping from names to trees; other content of a file is left out."""


@dataclass(frozen=True)
class FeatureArray:
    """Array of features of one video in a file."""

    name: str
    """Name of the file or its entry."""
    where: str
    """File and entry, for messages."""
    leaf: Leaf
    fault: str = ""
    """Reason why the file cannot be read."""


def find_features(
    sources: Sequence[Path], key: str = "", pattern: str = ID, names: VideoNames | None = None
) -> tuple[list[FeatureArray], list[str]]:
    """Find the arrays of features in files and folders; also paths of files that do not match.

    Each file of a folder or its subfolders is one video; a single file contains a mapping from
    videos to arrays, or one array. ``key`` selects one of several arrays of a video (`a/b` for
    nested ones), ``pattern`` is the form of names (`{id}_rgb`). Files of the operating system are
    ignored.

    Raises ValueError naming a damaged file (in a folder, damage becomes the fault of the array),
    FileNotFoundError, and ImportError for HDF5 without h5py.
    """
    if ID not in pattern:
        raise ValueError(f"pattern {pattern!r}, expected {ID} in it, such as {ID}_rgb")
    arrays: list[FeatureArray] = []
    others: list[str] = []
    for source in sources:
        if source.is_dir():
            paths = [p for p in sorted(source.rglob("*")) if p.is_file()]
            paths = [p for p in paths if not _is_noise(p.relative_to(source))]
            others += [str(p) for p in paths if p.suffix.lower() not in READERS]
            arrays += [
                _of_one_video(p, p.relative_to(source).with_suffix("").as_posix(), key)
                for p in paths
                if p.suffix.lower() in READERS
            ]
        else:
            arrays += _of_file(source, key, names)
    fitting = [array for array in arrays if _id_in(array.name, pattern) is not None]
    if not fitting:
        raise ValueError(
            f"{', '.join(map(str, sources))}: no feature files ({', '.join(READERS)}) here"
            + (f" that are named {pattern}" if pattern != ID else "")
        )
    others += [a.where for a in arrays if _id_in(a.name, pattern) is None]
    return [replace(array, name=str(_id_in(array.name, pattern))) for array in fitting], others


def _is_noise(path: Path) -> bool:
    """Whether a file belongs to the operating system (`._a.npy`, `.DS_Store`, `__MACOSX/…`)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts) or (
        path.name.lower() in ("thumbs.db", "desktop.ini")
    )


def _of_one_video(path: Path, name: str, key: str) -> FeatureArray:
    """Features of a file, which is read again on demand, so that memory holds only one."""
    try:
        tree = read(path)
    except ValueError as error:
        return FeatureArray(name, str(path), Leaf((), lambda: np.zeros(0)), str(error))
    shape = _select(tree, key, str(path)).shape
    return FeatureArray(
        name, str(path), Leaf(shape, lambda: _select(read(path), key, str(path)).load())
    )


def _of_file(path: Path, key: str, names: VideoNames | None) -> Iterator[FeatureArray]:
    tree = read(path)
    of_one_video = isinstance(tree, Leaf) or (
        names is not None
        and names.find(path.stem) is not None
        and not any(names.find(name) for name in tree)
    )
    if of_one_video:
        yield FeatureArray(path.stem, str(path), _select(tree, key, str(path)))
        return
    for name, part in cast(Mapping[str, Tree], tree).items():
        where = f"{path}: {name!r}"
        yield FeatureArray(name, where, _select(part, key, where))


def _id_in(name: str, pattern: str) -> str | None:
    """The id, with its folder, in the name of a file; None if the pattern does not match."""
    before, _, after = pattern.partition(ID)
    folder, slash, last = name.rpartition("/")
    if pattern == ID:
        return name
    if not (last.startswith(before) and last.endswith(after)):
        return None
    return folder + slash + last[len(before) : len(last) - len(after)]


def _select(tree: Tree, key: str, where: str) -> Leaf:
    """The array of a video named by `key`, or the only one with two or more axes."""
    if isinstance(tree, Leaf):
        return tree
    arrays = dict(_flat(tree, ""))
    if key:
        if key not in arrays:
            raise ValueError(f"{where}: no array {key!r}, there are: {', '.join(arrays) or 'none'}")
        return arrays[key]
    matrices = {name: leaf for name, leaf in arrays.items() if len(leaf.shape) > 1}
    if len(matrices) != 1:
        listed = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in arrays.items())
        raise ValueError(
            f"{where}: {len(matrices)} arrays of features ({listed or 'none'}), expected one a "
            "video: name it with --key"
        )
    return next(iter(matrices.values()))


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Leaf]]:
    for name, part in tree.items():
        if isinstance(part, Leaf):
            yield prefix + name, part
        else:
            yield from _flat(part, f"{prefix}{name}/")


def read(path: Path) -> Tree:
    """Arrays of a file, without running code in it. Raises ValueError naming a damaged file."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if suffix not in READERS:
        raise ValueError(f"{path}: no feature file, expected one of {', '.join(READERS)}")
    return READERS[suffix](path)


def _leaf(shape: Sequence[int], item_bytes: int, load: Load, where: str) -> Leaf:
    declared = math.prod(shape) * item_bytes
    if declared > LIMIT:
        raise ValueError(f"{where}: an array {list(shape)} of {declared} bytes, at most {LIMIT}")
    return Leaf(tuple(shape), load)


def _check_type(dtype: np.dtype[Any], where: str) -> None:
    if dtype.hasobject:
        raise ValueError(
            f"{where}: Python objects (a pickle inside), which are not opened: if you trust the "
            "file, write its arrays with numpy.savez(path, **arrays)"
        )
    if dtype.kind not in NUMBERS:
        raise ValueError(f"{where}: an array of {dtype}, expected numbers")


@contextmanager
def _damage(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Raise these errors as ValueError naming the damaged file."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{path}: not a whole {kind} file: {error}") from error


def _npy(path: Path) -> Tree:
    with _damage(path, ".npy", ValueError, EOFError), open(path, "rb") as file:
        shape, dtype = npy_header(file)
    _check_type(dtype, str(path))
    return _leaf(shape, dtype.itemsize, partial(_load_npy, path), str(path))


def _load_npy(path: Path) -> Array:
    with _damage(path, ".npy", ValueError, EOFError):
        array: Array = np.load(path, allow_pickle=False)
    return array


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in an open .npy file. Raises ValueError."""
    first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _npz(path: Path) -> Tree:
    leaves: dict[str, Leaf] = {}
    errors = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
    with _damage(path, ".npz", *errors), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, dtype = npy_header(file)
            name = member.removesuffix(".npy")
            where = f"{path}: {name!r}"
            if dtype.kind in NUMBERS or dtype.hasobject:
                _check_type(dtype, where)
                load = partial(_load_npz, path, name)
                leaves[name] = _leaf(shape, dtype.itemsize, load, where)
    return leaves


def _load_npz(path: Path, name: str) -> Array:
    errors = (zipfile.BadZipFile, zlib.error, KeyError, EOFError)
    with _damage(path, ".npz", *errors), np.load(path, allow_pickle=False) as archive:
        array: Array = archive[name]
    return array


def _hdf5(path: Path) -> Tree:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path}: HDF5 files are read by h5py, which is not installed: pip install 'ssdet[h5]'"
        ) from error

    def load(name: str) -> Array:
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][()])

    def tree(group: Any) -> dict[str, Any]:
        """Arrays of a group, ignoring links to other files, which could point anywhere."""
        parts: dict[str, Any] = {}
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            part = group[name]
            if isinstance(part, h5py.Group):
                parts[name] = tree(part)
            elif part.dtype.kind in NUMBERS and not (part.is_virtual or part.external):
                where, size = f"{path}: {part.name!r}", part.dtype.itemsize
                parts[name] = _leaf(part.shape, size, partial(load, part.name), where)
        return parts

    errors = (OSError, RuntimeError, RecursionError)
    with _damage(path, "HDF5", *errors), h5py.File(path, "r") as file:
        return tree(file)


def _pickle(path: Path) -> Tree:
    return _in_memory(read_tree(path), str(path))


def _torch(path: Path) -> Tree:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(
            f"{path}: damaged, or holds more than tensors and could run code, so it is not loaded "
            f"({str(error).splitlines()[0][:120]}): save tensors alone"
        ) from error
    return _in_memory(content, str(path))


def _in_memory(content: Any, where: str) -> Tree:
    if isinstance(content, torch.Tensor):
        # numpy has no bfloat16
        content = content.float() if content.dtype == torch.bfloat16 else content
        content = content.detach().to_dense().numpy()
    if isinstance(content, np.ndarray):
        _check_type(content.dtype, where)
        return Leaf(content.shape, lambda: content)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"{where}: holds a {kind}, expected an array or arrays by video")
    kinds = (np.ndarray, torch.Tensor, Mapping)
    return {
        str(name): _in_memory(part, f"{where}: {name!r}")
        for name, part in content.items()
        if isinstance(part, kinds)
    }


READERS: Mapping[str, Callable[[Path], Tree]] = {
    ".npy": _npy, ".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".pkl": _pickle, ".pickle": _pickle,
    ".pt": _torch, ".pth": _torch,
}  # fmt: skip
"""Reader by file extension."""
