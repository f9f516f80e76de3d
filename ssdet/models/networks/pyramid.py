"""Feature pyramid of a fine stream: one small map a stage, input of a coarse stream."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssdet.models.networks.x3d import X3D


class FineFeatures(NamedTuple):
    """Maps of B videos by a fine stream, for clips of a coarse one (MODELS.md 5.1)."""

    levels: dict[str, Tensor]
    """[B, D, T', g, g] by stage, `layer1` … and `conv5`."""
    mask_BT: Tensor
    """bool: which of the T' steps exist."""
    start_B: Tensor
    """Where each clip begins, in steps; may lie between two."""

    def to(self, device: torch.device) -> "FineFeatures":
        """The same on a device."""
        levels = {name: maps.to(device) for name, maps in self.levels.items()}
        return FineFeatures(levels, self.mask_BT.to(device), self.start_B.to(device))


def pyramid(network: X3D, clips_BCTHW: Tensor, grid: int = 7) -> dict[str, Tensor]:
    """Outputs of every stage and of the last convolution, averaged over a grid of `grid` x `grid`
    cells: [B, D, T, g, g] by `layer1` … and `conv5`."""
    found = {}
    x_BCTHW = network.blocks[0](clips_BCTHW)
    for number, stage in enumerate(network.layers, 1):
        x_BCTHW = stage(x_BCTHW)
        found[f"layer{number}"] = _pooled(x_BCTHW, grid)
    pool = network.head.pool
    found["conv5"] = _pooled(pool.pre_act(pool.pre_norm(pool.pre_conv(x_BCTHW))), grid)
    return found


def _pooled(x_BCTHW: Tensor, grid: int) -> Tensor:
    return F.adaptive_avg_pool3d(x_BCTHW, (x_BCTHW.shape[2], grid, grid))
