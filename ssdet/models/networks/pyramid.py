"""Feature pyramid of a fine stream: one small map per stage, input of a coarse stream."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssdet.models.networks.x3d import X3D


class FineFeatures(NamedTuple):
    """Maps of B videos by a fine stream, for clips of a coarse one (Coarse-Fine Networks)."""

    levels: dict[str, Tensor]
    """[B, D, T', g, g] by stage, `layer1` … and `conv5`."""
    mask_BT: Tensor
    """bool: which of the T' steps exist."""
    start_B: Tensor
    """Start of each clip in steps, fractions allowed."""

    def to(self, device: torch.device) -> "FineFeatures":
        """The same on a device."""
        levels = {name: maps.to(device) for name, maps in self.levels.items()}
        return FineFeatures(levels, self.mask_BT.to(device), self.start_B.to(device))


def stage_maps(network: X3D, clips_BCTHW: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Outputs [B, D, T, H, W] of every stage, `layer1` …, and of the last convolution, `conv5`."""
    x_BCTHW = network.blocks[0](clips_BCTHW)
    for number, stage in enumerate(network.layers, 1):
        x_BCTHW = stage(x_BCTHW)
        yield f"layer{number}", x_BCTHW
    yield "conv5", network.last_maps(x_BCTHW)


def pyramid(network: X3D, clips_BCTHW: Tensor, grid: int = 7) -> dict[str, Tensor]:
    """`stage_maps` averaged over `grid` x `grid` cells: [B, D, T, g, g] by name."""
    return {
        name: F.adaptive_avg_pool3d(x_BCTHW, (x_BCTHW.shape[2], grid, grid))
        for name, x_BCTHW in stage_maps(network, clips_BCTHW)
    }
