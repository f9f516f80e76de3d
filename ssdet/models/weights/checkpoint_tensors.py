"""Reading of checkpoint files, and their tensors in nested containers and wrappers."""

import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

COMPILED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of names that torch.compile, FSDP, activation checkpointing and Lightning Fabric insert,
and that no network has itself."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg|shadow|polyak)(?=[._]|$)", re.IGNORECASE)
"""Names of containers of moving averages: model_ema, state_dict_ema, averaged, swa_model, …"""
LEAST_SHARE = 50
"""A group with a smaller fraction (1 / this) of a checkpoint's tensors is not a network."""


class _Ignored:
    """Replacement for settings and numbers in a checkpoint, whose classes are never imported."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _dictionary(*_: Any) -> "OrderedDict[Any, Any]":
    return OrderedDict()


_OMEGACONF = (
    *(f"base.{name}" for name in ("Metadata", "ContainerMetadata")), "listconfig.ListConfig",
    "dictconfig.DictConfig", *(f"nodes.{name}Node" for name in (
        "Any", "String", "Integer", "Float", "Boolean", "Path", "Bytes", "Enum", "Interpolation",
    )),
)  # fmt: skip
_VALUES = (
    "argparse.Namespace", "types.SimpleNamespace", "typing.Any", "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{name}" for name in (
        "Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath",
    )),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"__builtin__.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
    *(f"omegaconf.{name}" for name in _OMEGACONF),
)  # fmt: skip
_DICTIONARIES = (
    "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict",
    "addict.addict.Dict", "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)  # fmt: skip
STAND_INS: list[Any] = [
    *((_Ignored, name) for name in _VALUES),
    *((OrderedDict, name) for name in _DICTIONARIES),
    (_dictionary, "collections.defaultdict"),
]
"""For `torch.serialization.safe_globals`: harmless replacements for other objects in checkpoints,
by their names in the file. Classes of numpy, argparse or the checkpoint are never used."""


def read_checkpoint(path: Path) -> Any:
    """Content of a file written by torch.save, without executing anything in it.

    Settings (argparse, omegaconf, …), paths, dates and numpy scalars become empty objects.
    ValueError for a broken file, or one with other objects, which could run code.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: has more than tensors and could run code, so it is not loaded. If you "
            "trust it, convert it once: state = torch.load(path, weights_only=False), take the "
            "module's state_dict() if it is a module, and torch.save(state, new_path)"
        ) from error
    except Exception as error:  # damaged bytes raise any exception
        raise ValueError(
            f"{path}: not a checkpoint of torch, or a truncated one: download or write it again"
        ) from error


def named_tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dictionaries and lists, named by the path of containers, joined by
    dots, without the parts in `COMPILED`."""
    if isinstance(content, Tensor):
        yield ".".join(part for part in prefix.split(".") if part not in COMPILED), content
        return
    if isinstance(content, Mapping):
        items: Any = content.items()
    else:
        items = enumerate(content) if isinstance(content, list | tuple) else ()
    for name, value in items:
        yield from named_tensors(value, f"{prefix}.{name}" if prefix else str(name))


def groups(state: State) -> Iterator[tuple[str, State]]:
    """Yield every prefix of names (empty, or ending with a dot) and its tensors without the prefix,
    shorter prefixes first; without very small groups."""
    sizes = Counter(prefix for name in state for prefix in _prefixes(name))
    for prefix in sorted(sizes, key=len):
        if sizes[prefix] * LEAST_SHARE >= len(state):
            named = ((n, tensor) for n, tensor in state.items() if n.startswith(prefix))
            yield prefix, {name.removeprefix(prefix): tensor for name, tensor in named}


def _prefixes(name: str) -> Iterator[str]:
    yield ""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()]


def is_averaged(prefix: str, names: Collection[str]) -> bool:
    """Whether a container has moving averages, by its name or as an AveragedModel of
    torch.optim.swa_utils, which has `n_averaged` beside `module`."""
    averager = prefix.removesuffix("module.") + "n_averaged"
    return bool(AVERAGED.search(prefix)) or (prefix.endswith("module.") and averager in names)


def without_part(state: State, part: str) -> State:
    """The tensors without a part of their names; unchanged if two names would be equal."""
    renamed = {".".join(p for p in name.split(".") if p != part): t for name, t in state.items()}
    return renamed if len(renamed) == len(state) else state
