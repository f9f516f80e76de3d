"""Weights from files, whoever wrote them.

A layout is a naming of tensors. Each one says whether it recognises a state dict, and turns it into
one with the names of the model at hand.
"""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.data.numpy_pickle import is_pickle, read_arrays
from ssdet.models.norm import SubBatchNorm3d, pooled_variance

State = dict[str, Tensor]
Recogniser = Callable[[State], bool]
Converter = Callable[[State, nn.Module], State]

_LAYOUTS: dict[str, tuple[Recogniser, Converter]] = {}
_WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` did."""

    layout: str
    """The layout that was named or recognised."""
    loaded: list[str]
    """Tensors of the model that were set."""
    skipped: list[str]
    """Tensors of the source that the model has no place for, or whose shape is another one."""
    reinitialised: list[str]
    """Tensors of the model that start afresh: its classifier, split statistics, and those under its
    `fresh` prefixes that the source lacks."""


def register_layout(name: str, recognise: Recogniser) -> Callable[[Converter], Converter]:
    """Register ``convert(state, model) -> state in the model's names`` as the layout ``name``."""

    def add(convert: Converter) -> Converter:
        _LAYOUTS[name] = recognise, convert
        return convert

    return add


def load_weights(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any],
    layout: str = "auto",
    aggregate: bool = False,
) -> LoadReport:
    """Load a file or a state dict into ``model``.

    aggregate: take running statistics from ``split_bn.*`` where the source has them (MODELS.md 1.2)
    instead of from ``bn.*``, which lag behind in a checkpoint written in training.

    The model's ``classifier`` (a prefix of names), if it has one, is left alone where its shape
    differs, and split statistics of another number of splits start from the running ones.
    Parts under the model's ``fresh`` prefixes, if it has any, are left alone where their shapes
    differ or the source has nothing of a part.
    Raises ValueError if a file is broken or would run code, no layout fits, a tensor is missing or
    another shape differs.
    """
    where, state = read_state(source)
    name, converted = in_own_names(_aggregate(state) if aggregate else state, model, layout, where)
    own = model.state_dict()
    differing = [k for k, v in converted.items() if k in own and v.shape != own[k].shape]
    parts: tuple[str, ...] = getattr(model, "fresh", ())
    classifier = getattr(model, "classifier", ())
    may_differ = (*parts, *((classifier,) if isinstance(classifier, str) else classifier))
    fresh = {k for k in differing if k.startswith(may_differ) or ".split_" in k}
    absent = tuple(part for part in parts if not any(k.startswith(part) for k in converted))
    fresh |= {k for k in own if k.startswith(absent)}
    needed = {k: v for k, v in own.items() if k not in fresh}
    _check(where, needed, converted, set(differing) - fresh)
    loaded = {k: v for k, v in converted.items() if k in own and k not in fresh}
    kept = {k: v for k, v in own.items() if k in fresh and ".split_" not in k}
    model.load_state_dict({**kept, **loaded}, strict=False)
    if name == "x3d_multigrid":
        for norm in (m for m in model.modules() if isinstance(m, SubBatchNorm3d)):
            norm.keep_running()
    restarted = fresh | {k for k in own if ".split_" in k and k not in loaded}
    skipped = [k for k in converted if k not in loaded]
    return LoadReport(name, list(loaded), skipped, sorted(restarted))


def _check(where: str, needed: State, converted: State, differing: set[str]) -> None:
    for name in sorted(differing):
        raise ValueError(
            f"{where}: {name} has shape {tuple(converted[name].shape)}, the model needs "
            f"{tuple(needed[name].shape)}: create the model with the options of these weights"
        )
    optional = (".split_mean", ".split_var", ".num_batches_tracked")
    missing = [k for k in needed if k not in converted and not k.endswith(optional)]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(needed)} tensors of the model are missing, such as "
            f"{missing[0]}: name the layout, or create the model with the options of these weights"
        )


def layouts() -> list[str]:
    """Names of the layouts that `load_weights` knows."""
    return sorted(_LAYOUTS)


def recognised(state: State) -> str | None:
    """The layout that tensors' names tell, if they tell one."""
    return next((name for name, (recognises, _) in _LAYOUTS.items() if recognises(state)), None)


def in_own_names(
    state: State, model: nn.Module, layout: str = "auto", where: str = "state dict"
) -> tuple[str, State]:
    """The layout, named or recognised, and the tensors under the model's names.

    ValueError for a layout that there is not, or names that fit none; `where` they are from.
    """
    if layout != "auto" and layout not in _LAYOUTS:
        raise ValueError(f"no layout {layout!r}: choose from auto, {', '.join(layouts())}")
    name = _recognise(state, model, where) if layout == "auto" else layout
    return name, _LAYOUTS[name][1](state, model)


def read_state(source: str | PathLike[str] | Mapping[str, Any]) -> tuple[str, State]:
    """Where tensors are from, for messages, and the tensors of a file or a state dict by name.

    ValueError for a file that is broken, would run code or holds no tensors.
    """
    if isinstance(source, Mapping):
        return "state dict", _tensors(source, "state dict")
    path = Path(source)
    if is_pickle(path):
        return str(path), read_arrays(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than tensors and could run code, so it is not loaded. If you "
            "trust it, convert it once: state = torch.load(path, weights_only=False), take the "
            "module's state_dict() if it is a module, and torch.save(state, new_path)"
        ) from error
    except Exception as error:  # whatever bytes that are no checkpoint happen to mean
        raise ValueError(
            f"{path}: not a checkpoint of torch, or a truncated one: fetch or write it again"
        ) from error
    return str(path), _tensors(content, str(path))


def _tensors(content: Any, where: str) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            return _tensors(content[wrapper], where)
    state = {}
    if isinstance(content, Mapping):
        state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise ValueError(f"{where}: expected a state dict (names to tensors), found none")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _recognise(state: State, model: nn.Module, where: str) -> str:
    if name := recognised(state):
        return name
    if state.keys() & model.state_dict().keys():
        return "ssdet"
    raise ValueError(
        f"{where}: names such as {next(iter(state))!r} fit no layout: "
        f"choose from {', '.join(layouts())}"
    )


def _aggregate(state: State) -> State:
    result = dict(state)
    for name in state:
        if name.endswith("split_bn.running_mean"):
            prefix = name.removesuffix("split_bn.running_mean")
            mean, var = state[name], state[f"{prefix}split_bn.running_var"]
            splits = len(mean) // len(state[f"{prefix}bn.running_mean"])
            result[f"{prefix}bn.running_mean"] = mean.view(splits, -1).mean(0)
            result[f"{prefix}bn.running_var"] = pooled_variance(mean, var, splits)
    return result


@register_layout("x3d_multigrid", lambda state: "conv1_s.weight" in state)
def _from_multigrid(state: State, model: nn.Module) -> State:
    """Names of SSDet, X3D-Multigrid and Coarse-Fine, coarse or fine (MODELS.md 1.6, 5)."""
    head = 1 + max((int(name[5]) for name in state if re.match(r"layer\d\.", name)), default=0)
    renamed = {_from_multigrid_name(name, head): value for name, value in state.items()}
    own = model.state_dict()
    for name in [k for k in renamed if k.endswith("branch1_norm.weight") and k not in own]:
        _fold_shortcut_norm(renamed, name.removesuffix("branch1_norm.weight"))
    return renamed


_MULTIGRID_NAMES = (
    (r"^conv1_s\.", "blocks.0.conv.conv_t."),
    (r"^conv1_t\.", "blocks.0.conv.conv_xy."),
    (r"^bn1\.", "blocks.0.norm."),
    (r"^conv5\.", "blocks.HEAD.pool.pre_conv."),
    (r"^bn5\.", "blocks.HEAD.pool.pre_norm."),
    (r"^fc1\.", "blocks.HEAD.pool.post_conv."),
    (r"^fc2\.", "blocks.HEAD.proj."),
    (r"^pool_1\.", "grid_pool."),
    (r"^(rw|mix)(\d+)\.", r"fusion.\1\2."),
    (r"^layer(\d+)\.(\d+)\.", r"blocks.\1.res_blocks.\2."),
    (r"\.downsample\.0\.", ".branch1_conv."),
    (r"\.downsample\.1\.", ".branch1_norm."),
    (r"(res_blocks\.\d+)\.conv1\.", r"\1.branch2.conv_a."),
    (r"(res_blocks\.\d+)\.conv2\.", r"\1.branch2.conv_b."),
    (r"(res_blocks\.\d+)\.conv3\.", r"\1.branch2.conv_c."),
    (r"(res_blocks\.\d+)\.bn1\.", r"\1.branch2.norm_a."),
    (r"(res_blocks\.\d+)\.bn2\.", r"\1.branch2.norm_b.0."),
    (r"(res_blocks\.\d+)\.bn3\.", r"\1.branch2.norm_c."),
    (r"(res_blocks\.\d+)\.fc1\.", r"\1.branch2.norm_b.1.block.0."),
    (r"(res_blocks\.\d+)\.fc2\.", r"\1.branch2.norm_b.1.block.2."),
    (r"\.split_bn\.running_", ".split_"),
    (r"\.split_bn\.num_batches_tracked$", ".split_batches_tracked"),
    (r"\.bn\.", "."),
)


def _from_multigrid_name(name: str, head: int) -> str:
    for pattern, replacement in _MULTIGRID_NAMES:
        name = re.sub(pattern, replacement, name)
    return name.replace("HEAD", str(head))


def _fold_shortcut_norm(state: State, block: str) -> None:
    """Put a norm that the model lacks into its convolution (scale) and norm_c (shift).

    Exact in evaluation: norm(conv(x)) + norm_c(y) is a linear function of conv(x).
    """
    prefix = f"{block}branch1_norm."
    norm = {name: state.pop(name).double() for name in list(state) if name.startswith(prefix)}
    weight, bias, mean, var = (
        norm[prefix + name] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (var + 1e-5).sqrt()
    conv, shift = f"{block}branch1_conv.weight", f"{block}branch2.norm_c.bias"
    state[conv] = (state[conv] * scale.view(-1, 1, 1, 1, 1)).float()
    state[shift] = (state[shift] + bias - mean * scale).float()


@register_layout("ssdet", lambda state: any(".split_mean" in name for name in state))
def _from_own(state: State, model: nn.Module) -> State:
    return state


@register_layout(
    "pytorchvideo",
    lambda state: bool({"blocks.0.conv.conv_t.weight", "blocks.0.conv.weight"} & state.keys()),
)
def _from_pytorchvideo(state: State, model: nn.Module) -> State:
    """Its X3D has no norm on a first shortcut that keeps its width: give the model an identity."""
    given, state = state, dict(state)
    for name, own in model.state_dict().items():
        block, found, statistic = name.partition("branch1_norm.")
        lacking = f"{block}branch1_norm.running_mean" not in given
        if found and lacking and f"{block}branch1_conv.weight" in given:
            state[name] = _IDENTITY.get(statistic, torch.zeros_like)(own)
    return state


def _almost_one(like: Tensor) -> Tensor:
    return torch.full_like(like, 1 - 1e-5)  # the norm adds its eps of 1e-5


_IDENTITY: dict[str, Callable[[Tensor], Tensor]] = {
    "weight": torch.ones_like,
    "running_var": _almost_one,
    "split_var": _almost_one,
}
