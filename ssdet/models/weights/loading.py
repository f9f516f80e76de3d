"""Loading of weights in any known layout.

A layout is a scheme of tensor names: a function that recognises its state dicts, and one that
converts them to the names of a given model.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.data.storage.numpy_pickle import is_pickle, read_arrays
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d, pooled_variance
from ssdet.models.weights.checkpoint_tensors import (
    State,
    groups,
    is_averaged,
    named_tensors,
    read_checkpoint,
    without_part,
)

Recogniser = Callable[[State], bool]
Converter = Callable[[State, nn.Module], State]

_LAYOUTS: dict[str, tuple[Recogniser, Converter]] = {}


@dataclass(frozen=True)
class LoadReport:
    """Result of ``load_weights``."""

    layout: str
    """The given or recognised layout."""
    loaded: list[str]
    """Tensors of the model that were loaded."""
    skipped: list[str]
    """Tensors of the source that the model lacks or has in another shape."""
    reinitialised: list[str]
    """Tensors of the model that were not loaded: its classifier, split statistics, and those under
    its `fresh` prefixes that the source lacks."""
    prefix: str = ""
    """Containers and wrappers of the tensors in the source, such as model_ema.module."""
    left_out: list[str] = field(default_factory=list)
    """Prefixes of other weights of this network in the source: raw weights if these are the moving
    average, or duplicates."""


@dataclass(frozen=True)
class Network:
    """The tensors of one network in a checkpoint, under the names of a given model."""

    prefix: str
    layout: str
    tensors: State
    fresh: set[str]
    """Tensors of the model that are not loaded."""
    differing: set[str]
    """Tensors of another shape than the model's, without fresh ones."""
    missing: list[str]
    matches: int
    """Number of tensors that the model has too, without optional ones."""
    left_out: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.matches) and not self.differing and not self.missing


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

    aggregate: compute running statistics from ``split_bn.*`` of the source (X3D-Multigrid's code)
    instead of reading ``bn.*``, which are outdated in a checkpoint written in training.

    The network's tensors are searched in all containers (``state_dict``, ``model``, …) and wrappers
    (``module.``, ``_orig_mod.``, ``model.``, ``backbone.``, …) of the source, see `find_network`.
    Not loaded are the model's ``classifier`` (a prefix of names) of another shape, split statistics
    of another number of splits, which start from the running ones, and parts under the model's
    ``fresh`` prefixes of other shapes or that the source lacks.
    ValueError if a file is broken or would run code, no layout fits, a tensor is missing, another
    shape differs, or the source has several sets of weights that fit.
    """
    where, state = read_state(source)
    network = find_network(_aggregate(state) if aggregate else state, model, layout, where)
    own = model.state_dict()
    _check(where, own, network)
    loaded = {k: v for k, v in network.tensors.items() if k in own and k not in network.fresh}
    unchanged = {k: v for k, v in own.items() if k in network.fresh and ".split_" not in k}
    model.load_state_dict({**unchanged, **loaded}, strict=False)
    if network.layout == "x3d_multigrid":
        for norm in (m for m in model.modules() if isinstance(m, SubBatchNorm3d)):
            norm.keep_running()
    restarted = network.fresh | {k for k in own if ".split_" in k and k not in loaded}
    skipped = [k for k in network.tensors if k not in loaded]
    return LoadReport(
        network.layout, list(loaded), skipped, sorted(restarted), network.prefix, network.left_out
    )


def _check(where: str, own: State, network: Network) -> None:
    for name in sorted(network.differing):
        raise ValueError(
            f"{where}: {name} has shape {tuple(network.tensors[name].shape)}, the model needs "
            f"{tuple(own[name].shape)}: create the model with the options of these weights"
        )
    if network.missing:
        needed = len(own.keys() - network.fresh)
        raise ValueError(
            f"{where}: {len(network.missing)} of {needed} tensors of the model are missing, such "
            f"as {network.missing[0]}: name the layout, or create the model with the options of "
            "these weights"
        )


def layouts() -> list[str]:
    """Names of the registered layouts."""
    return sorted(_LAYOUTS)


def recognised(state: State) -> str | None:
    """The layout that the tensors' names belong to, if any."""
    return next((name for name, (recognises, _) in _LAYOUTS.items() if recognises(state)), None)


def find_network(
    state: State, model: nn.Module, layout: str = "auto", where: str = "state dict"
) -> Network:
    """The tensors of a checkpoint that belong to the model, under any prefix of their names.

    A prefix is removed only if the rest are names of the (given or recognised) layout or of the
    model. Of several sets of tensors that fit the model, the moving average is preferred to raw
    weights, as in evaluation. ValueError for an unknown layout, names that fit none, or several
    different sets.
    """
    if layout != "auto" and layout not in _LAYOUTS:
        raise ValueError(f"no layout {layout!r}: choose from auto, {', '.join(layouts())}")
    networks: list[Network] = []
    for names in _spellings(state):
        networks += _networks(names, model, layout)
        if complete := [network for network in networks if network.complete]:
            highest = max(network.matches for network in complete)
            return _choose([one for one in complete if one.matches == highest], names, where)
    if not any(network.matches for network in networks) and layout == "auto":
        raise ValueError(
            f"{where}: names such as {next(iter(state))!r} fit no layout: "
            f"choose from {', '.join(layouts())}"
        )
    return max(networks, key=lambda network: network.matches - len(network.differing))


def _spellings(state: State) -> Iterator[State]:
    """Yield the tensors, then those without the `module` of parts that DDP has wrapped."""
    yield state
    if (bare := without_part(state, "module")).keys() != state.keys():
        yield bare


def _networks(state: State, model: nn.Module, layout: str) -> list[Network]:
    """All groups of tensors with names of a layout or of the model."""
    own = model.state_dict()
    networks = [
        _network(prefix, name, part, model, own)
        for prefix, part in groups(state)
        if (name := _layout(part, own, layout))
    ]
    if layout == "auto" or networks:
        return networks
    return [_network("", layout, state, model, own)]  # the given layout, though unrecognised


def _layout(part: State, own: State, layout: str) -> str | None:
    """The layout of a group of tensors, which must be the given one, or None."""
    fits = recognised(part) if layout == "auto" else layout if _LAYOUTS[layout][0](part) else None
    mine = layout in ("auto", "ssdet") and part.keys() & own.keys()
    return fits or ("ssdet" if mine else None)


def _network(prefix: str, layout: str, part: State, model: nn.Module, own: State) -> Network:
    """A group of tensors under the model's names, compared with the model."""
    tensors = _LAYOUTS[layout][1](part, model)
    differing = {k for k, v in tensors.items() if k in own and v.shape != own[k].shape}
    parts: tuple[str, ...] = getattr(model, "fresh", ())
    classifier = getattr(model, "classifier", ())
    may_differ = (*parts, *((classifier,) if isinstance(classifier, str) else classifier))
    fresh = {k for k in differing if k.startswith(may_differ) or ".split_" in k}
    absent = tuple(p for p in parts if not any(k.startswith(p) for k in tensors))
    fresh |= {k for k in own if k.startswith(absent)}
    needed = [k for k in own if not k.endswith(OPTIONAL)]
    missing = [k for k in needed if k not in fresh and k not in tensors]
    matches = sum(k in tensors for k in needed)
    return Network(prefix, layout, tensors, fresh, differing - fresh, missing, matches)


OPTIONAL = (".split_mean", ".split_var", ".num_batches_tracked")
"""Endings of names of tensors that a source may lack."""


def _choose(networks: list[Network], names: Collection[str], where: str) -> Network:
    """The moving average if there is one, else the only set of weights."""
    averaged = _outermost([one for one in networks if is_averaged(one.prefix, names)])
    raw = _outermost([one for one in networks if not is_averaged(one.prefix, names)])
    first, *others = averaged or raw
    if any(not _equal(first.tensors, other.tensors) for other in others):
        prefixes = " and ".join(repr(network.prefix) for network in (first, *others))
        raise ValueError(
            f"{where}: has several sets of weights that fit the model, under {prefixes}: load the "
            "file with torch.load and pass one of them as a state dict"
        )
    left_out = [one.prefix for one in (*averaged, *raw) if one is not first]
    return replace(first, left_out=left_out)


def _outermost(networks: list[Network]) -> list[Network]:
    """Without networks inside other ones, such as a second stream."""
    return [
        one
        for one in networks
        if not any(one.prefix.startswith(o.prefix) for o in networks if o is not one)
    ]


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def read_state(source: str | PathLike[str] | Mapping[str, Any]) -> tuple[str, State]:
    """Name of the source, for messages, and all its tensors (`named_tensors`).

    ValueError for a file that is broken, would run code or has no tensors.
    """
    if isinstance(source, Mapping):
        where, state = "state dict", dict(named_tensors(source))
    elif is_pickle(path := Path(source)):
        return str(path), read_arrays(path)
    else:
        where, state = str(path), dict(named_tensors(read_checkpoint(path)))
    if not state:
        raise ValueError(f"{where}: expected a state dict (names to tensors), found none")
    return where, state


CONTAINERS = (
    "averaged", "state_dict_ema", "ema_state_dict", "model_ema", "ema", "model_state",
    "state_dict", "model_state_dict", "model", "checkpoint", "module",
)  # fmt: skip
"""Usual names of containers of a network's tensors, averages first."""
WRAPPERS = {*CONTAINERS, "net", "network", "backbone", "encoder", "student", "teacher"}


def likely_network(state: State) -> tuple[str, State]:
    """Prefix and tensors of the network in a checkpoint of an unknown model.

    A set in a known layout under usual names, preferably the moving average, else the content of
    the usual containers.
    """
    prefix, parts = "", dict(groups(state))
    recognisable = [
        prefix
        for prefix, part in parts.items()
        if all(word in WRAPPERS or word.isdigit() for word in prefix.split(".")[:-1])
        and recognised(part) not in (None, "ssdet")
    ]
    if recognisable:
        averages = (one for one in recognisable if is_averaged(one, state))
        prefix = next(averages, recognisable[0])
        return prefix, parts[prefix]
    while name := next((n for n in CONTAINERS if f"{prefix}{n}." in parts), None):
        prefix += f"{name}."
    return prefix, parts[prefix]


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
    """Names of SSDet, X3D-Multigrid and Coarse-Fine, coarse or fine."""
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
    """Fold a norm that the model lacks into its convolution (scale) and norm_c (shift).

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
    """pytorchvideo's X3D has no norm on a first shortcut of unchanged width: load an identity."""
    result = dict(state)
    for name, own in model.state_dict().items():
        block, is_norm, statistic = name.partition("branch1_norm.")
        missing = f"{block}branch1_norm.running_mean" not in state
        if is_norm and missing and f"{block}branch1_conv.weight" in state:
            result[name] = _IDENTITY.get(statistic, torch.zeros_like)(own)
    return result


def _almost_one(like: Tensor) -> Tensor:
    return torch.full_like(like, 1 - 1e-5)  # the norm adds its eps of 1e-5


_IDENTITY: dict[str, Callable[[Tensor], Tensor]] = {
    "weight": torch.ones_like,
    "running_var": _almost_one,
    "split_var": _almost_one,
}
