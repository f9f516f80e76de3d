"""Single streams over X3D: Fast (or Fine) at the frame rate, Slow and Coarse at a quarter of it.

Kahatapitiya & Ryoo, "Coarse-Fine Networks", CVPR 2021. Parameters have X3D's names, so that its
state dicts load unchanged; those that it lacks are under the prefixes `fresh`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.grid_pool import GridPool, unpool
from ssdet.models.networks.x3d import X3D
from ssdet.models.registry import available, create, one_of, register

RATIO = 4
StrideAt = Literal["layer1", "input"]


class Slow(X3D):
    """Clips [B, 3, T, H, W] -> logits [B, K, T] by a stream of every fourth step, S = ⌈T/4⌉.

    The stride is applied after the first stage, or to the input with stride_at="input"; logits are
    interpolated linearly to the frames. ValueError for another `stride_at`.
    """

    fresh: tuple[str, ...] = ()
    """Prefixes of parameters that a backbone's checkpoint does not have."""

    def __init__(self, blocks: Sequence[nn.Module], stride_at: StrideAt = "layer1") -> None:
        super().__init__(blocks)
        self.stride_at = one_of("stride_at", stride_at, StrideAt)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        features_BDS, positions_BS = self.steps(clips_BCTHW)
        return self.upsample(self.score(features_BDS), positions_BS, clips_BCTHW.shape[2])

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips: features are averaged over the steps before the head."""
        features_BDS, _ = self.steps(clips_BCTHW)
        return self.score(features_BDS.mean(2, keepdim=True)).squeeze(2)

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Features [B, D, T], one column per frame, interpolated between the steps."""
        features_BDS, positions_BS = self.steps(clips_BCTHW)
        return self.upsample(features_BDS, positions_BS, clips_BCTHW.shape[2])

    def steps(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D, S] at the stream's rate, and their positions [B, S] in frames."""
        x_BCSHW, positions_BS = self.first_stage(clips_BCTHW)
        for stage in self.blocks[2:-1]:
            x_BCSHW = stage(x_BCSHW)
        return self.pool(x_BCSHW), positions_BS

    def first_stage(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """The first stage's output at the stream's rate, and the positions [B, S] of its steps."""
        batch, _, frames = clips_BCTHW.shape[:3]
        if self.stride_at == "input":
            x_BCSHW = self.blocks[1](self.blocks[0](clips_BCTHW[:, :, ::RATIO]))
        else:
            x_BCSHW = self.blocks[1](self.blocks[0](clips_BCTHW))[:, :, ::RATIO]
        positions_S = torch.arange(0, frames, RATIO, device=clips_BCTHW.device, dtype=torch.float32)
        return x_BCSHW, positions_S.expand(batch, -1)

    def upsample(self, values_BKS: Tensor, positions_BS: Tensor, frames: int) -> Tensor:
        """Values [B, K, T] of all frames, interpolated from those of the steps."""
        size = values_BKS.shape[2] * RATIO
        return F.interpolate(values_BKS, size=size, mode="linear")[..., :frames]

    @property
    def layers(self) -> list[nn.Module]:
        """The first stage, the only one with the frames of the input."""
        return [self.blocks[1]] if self.stride_at == "layer1" else []

    @property
    def temporal_context(self) -> int | None:
        """None: logits depend on the clip's first frame, from which steps are counted."""
        return None


class Coarse(Slow):
    """Clips [B, 3, T, H, W] -> logits [B, K, T] by a stream of S = ⌈T/4⌉ + 1 steps, which Grid Pool
    samples after the first stage; Grid Unpool interpolates to the frames."""

    fresh: tuple[str, ...] = ("grid_pool.",)

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__(blocks)
        self.grid_pool = GridPool(self.widths[0], splits=splits_of(self))

    def first_stage(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BCSHW, grid_BS = self.grid_pool(self.blocks[1](self.blocks[0](clips_BCTHW)))
        return x_BCSHW, grid_BS * clips_BCTHW.shape[2]

    def upsample(self, values_BKS: Tensor, positions_BS: Tensor, frames: int) -> Tensor:
        return unpool(values_BKS, positions_BS / frames, frames)


def splits_of(network: X3D) -> int:
    """Groups of a batch with separate statistics in the network."""
    stem: Any = network.blocks[0]
    splits: int = stem.norm.splits
    return splits


def backbone_of(name: str, num_classes: int, options: Mapping[str, Any] | None) -> X3D:
    """Create a registered X3D; ValueError for another network."""
    network = create(name, num_classes, **(options or {}))
    if not isinstance(network, X3D) or isinstance(network, Slow):
        raise ValueError(f"backbone={name!r} is no X3D: choose from {', '.join(available('x3d*'))}")
    return network


@register
def fast(
    num_classes: int, *, backbone: str = "x3d_m", backbone_options: Mapping[str, Any] | None = None
) -> X3D:
    """The backbone unchanged: Fast of SlowFast, Fine of Coarse-Fine."""
    return backbone_of(backbone, num_classes, backbone_options)


@register
def slow(
    num_classes: int,
    *,
    backbone: str = "x3d_m",
    backbone_options: Mapping[str, Any] | None = None,
    stride_at: StrideAt = "layer1",
) -> Slow:
    """Slow alone, over a registered X3D with these options."""
    return Slow(list(backbone_of(backbone, num_classes, backbone_options).blocks), stride_at)


@register
def coarse(
    num_classes: int, *, backbone: str = "x3d_m", backbone_options: Mapping[str, Any] | None = None
) -> Coarse:
    """Coarse alone, over a registered X3D with these options."""
    return Coarse(list(backbone_of(backbone, num_classes, backbone_options).blocks))
