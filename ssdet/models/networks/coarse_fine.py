"""Coarse-Fine Networks: a Coarse stream whose stages are modulated by features of a Fine stream.

Kahatapitiya & Ryoo, "Coarse-Fine Networks", CVPR 2021.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.models.networks.fusion import Fusion, Modulation, Padding
from ssdet.models.networks.pyramid import FineFeatures, pyramid
from ssdet.models.networks.slow import Coarse, backbone_of
from ssdet.models.networks.x3d import X3D
from ssdet.models.registry import register, seeded


class CoarseFine(Coarse):
    """Clips [B, 3, T, H, W], and features of the fine stream, -> logits [B, K, T].

    The coarse stream's parameters have X3D's names: checkpoints of X3D, `slow` and `coarse` load
    into the network, those of the fine stream into its `fine`, whose last two layers are unused
    and frozen.

    Without `fine` features the fine stream reads the same clips. With them (two-stage training) it
    may be absent; they may have any number of steps. ValueError if there is neither.
    """

    fresh: tuple[str, ...] = ("grid_pool.", "fusion.", "fine.")

    def __init__(
        self, blocks: Sequence[nn.Module], fine: X3D | None, fusion: Fusion, grid: int
    ) -> None:
        super().__init__(blocks)
        self.fusion, self.grid = fusion, grid
        self.fine = fine
        if fine is not None:
            freeze_head(fine)

    def forward(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        features_BDS, last, positions_BS = self.fused(clips_BCTHW, fine)
        logits_BKS = last.apply(self.score(features_BDS))
        return self.upsample(logits_BKS, positions_BS, clips_BCTHW.shape[2])

    def classify(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Logits [B, K] of whole clips, from features and modulation averaged over the steps."""
        features_BDS, last, _ = self.fused(clips_BCTHW, fine)
        return last.mean().apply(self.score(features_BDS.mean(2, keepdim=True))).squeeze(2)

    def features(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Features [B, D, T] of the coarse stream, one column per frame."""
        features_BDS, _, positions_BS = self.fused(clips_BCTHW, fine)
        return self.upsample(features_BDS, positions_BS, clips_BCTHW.shape[2])

    def fused(
        self, clips_BCTHW: Tensor, fine: FineFeatures | None
    ) -> tuple[Tensor, Modulation, Tensor]:
        """Coarse features [B, D, S], the modulation of their logits, and positions [B, S]."""
        fine = fine_features(self.fine, clips_BCTHW, self.grid, fine)
        x_BCSHW, positions_BS = self.first_stage(clips_BCTHW)
        first, *stages, last = self.fusion(fine, positions_BS + fine.start_B[:, None])
        x_BCSHW = first.apply(x_BCSHW)
        for stage, modulation in zip(self.blocks[2:-1], stages, strict=True):
            x_BCSHW = modulation.apply(stage(x_BCSHW))
        return self.pool(x_BCSHW), last, positions_BS

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the layers whose shape depends on the number of classes by fresh ones."""
        super().reset_classifier(num_classes, generator)
        with seeded(generator):
            self.fusion.reset_classes(num_classes)


def fine_features(
    stream: X3D | None, clips_BCTHW: Tensor, grid: int, given: FineFeatures | None
) -> FineFeatures:
    """The given features, or those of the fine stream for the clips on a grid of `grid` x `grid`;
    ValueError without either."""
    if given is not None:
        return given
    return clip_features(pyramid(own_stream(stream), clips_BCTHW, grid), clips_BCTHW)


def own_stream(stream: X3D | None) -> X3D:
    """The network's own fine stream; ValueError if it has none."""
    if stream is None:
        raise ValueError(
            "no fine stream and no fine features: call model(clips, fine) with FineFeatures, or "
            "create the model with own_fine=True"
        )
    return stream


def clip_features(levels: dict[str, Tensor], clips_BCTHW: Tensor) -> FineFeatures:
    """Maps of the clips that the coarse stream reads: all steps exist, and clips start at 0."""
    batch, _, frames = clips_BCTHW.shape[:3]
    mask_BT = torch.ones(batch, frames, dtype=torch.bool, device=clips_BCTHW.device)
    return FineFeatures(levels, mask_BT, torch.zeros(batch, device=clips_BCTHW.device))


def freeze_head(fine: X3D) -> None:
    """Freeze the layers that a fine stream has only for the sake of its checkpoints."""
    for parameter in fine.head_parameters():
        parameter.requires_grad_(False)


@register
def coarse_fine(
    num_classes: int,
    *,
    backbone: str = "x3d_m",
    backbone_options: Mapping[str, Any] | None = None,
    grid: int = 7,
    mixing: bool = True,
    divisor: float = 8,
    padding: Padding = "released",
    own_fine: bool = True,
) -> CoarseFine:
    """Coarse-Fine over two registered X3D with these options.

    grid: side of the fine maps, which should divide that of the last stage's maps.
    mixing: modulate each stage by all levels, or only by its own.
    divisor, padding: temporal scale and treatment of padding, see `fusion.alignment`.
    own_fine: whether the network contains a fine stream.
    """
    stream = backbone_of(backbone, num_classes, backbone_options)
    fine = backbone_of(backbone, num_classes, backbone_options) if own_fine else None
    depth = stream.head.pool.pre_conv.out_channels
    fusion = Fusion(stream.widths, depth, num_classes, mixing, divisor, padding)
    return CoarseFine(list(stream.blocks), fine, fusion, grid)
