"""Coarse-Fine Networks: a Coarse stream, modulated at every stage by what a Fine one sees.

Kahatapitiya & Ryoo, CVPR 2021; MODELS.md 5.
"""

from collections.abc import Iterator, Mapping, Sequence
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

    The coarse stream's parameters are the network's own and bear X3D's names: checkpoints of X3D,
    `slow` and `coarse` load into the network; those of the fine stream into its `fine`. The fine
    stream's last two layers score nothing here and do not learn.

    Without `fine` features the fine stream reads the same clips. With them (two-stage training) it
    may be absent; `fine.start_B` is where the clips begin, and any number of steps will do. Raises
    ValueError if there is neither.
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
        features_BDS, last, places_BS = self.fused(clips_BCTHW, fine)
        logits_BKS = last.apply(self.score(features_BDS))
        return self.lengthen(logits_BKS, places_BS, clips_BCTHW.shape[2])

    def classify(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Logits [B, K] of whole clips: features, and the logits' scale and shift, are averaged
        over the steps."""
        features_BDS, last, _ = self.fused(clips_BCTHW, fine)
        return last.mean().apply(self.score(features_BDS.mean(2, keepdim=True))).squeeze(2)

    def features(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Features [B, D, T] of the coarse stream, one column per frame."""
        features_BDS, _, places_BS = self.fused(clips_BCTHW, fine)
        return self.lengthen(features_BDS, places_BS, clips_BCTHW.shape[2])

    def fused(
        self, clips_BCTHW: Tensor, fine: FineFeatures | None
    ) -> tuple[Tensor, Modulation, Tensor]:
        """Coarse features [B, D, S], the modulation of their logits, and their places [B, S]."""
        found = fine_features(self.fine, clips_BCTHW, self.grid, fine)
        x_BCSHW, places_BS = self.begin(clips_BCTHW)
        first, *stages, last = self.fusion(found, places_BS + found.start_B[:, None])
        x_BCSHW = first.apply(x_BCSHW)
        for stage, modulation in zip(self.blocks[2:-1], stages, strict=True):
            x_BCSHW = modulation.apply(stage(x_BCSHW))
        return self.pool(x_BCSHW), last, places_BS

    def fusion_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the fusion, which the published recipe gives ten times the rate."""
        return self.fusion.parameters()

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the layers whose shape depends on the number of classes by fresh ones."""
        super().reset_classifier(num_classes, generator)
        with seeded(generator):
            self.fusion.reset_classes(num_classes)


def fine_features(
    stream: X3D | None, clips_BCTHW: Tensor, grid: int, given: FineFeatures | None
) -> FineFeatures:
    """What is given, or what the fine stream sees of the clips, on a grid of `grid` x `grid`.
    ValueError where there is neither."""
    if given is not None:
        return given
    return features_of(pyramid(own_stream(stream), clips_BCTHW, grid), clips_BCTHW)


def own_stream(stream: X3D | None) -> X3D:
    """The network's own fine stream; ValueError if it has none."""
    if stream is None:
        raise ValueError(
            "no fine stream and no fine features: call model(clips, fine) with FineFeatures, or "
            "create the model with own_fine=True"
        )
    return stream


def features_of(levels: dict[str, Tensor], clips_BCTHW: Tensor) -> FineFeatures:
    """Maps of the very clips that the coarse stream reads: all steps exist, and it begins at 0."""
    batch, _, frames = clips_BCTHW.shape[:3]
    mask_BT = torch.ones(batch, frames, dtype=torch.bool, device=clips_BCTHW.device)
    return FineFeatures(levels, mask_BT, torch.zeros(batch, device=clips_BCTHW.device))


def freeze_head(fine: X3D) -> None:
    """Let the layers learn nothing that a fine stream has for its own checkpoints alone."""
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

    grid: side of the fine maps, which should divide that of the last stage's.
    mixing: modulate each stage by all levels, or by its own alone.
    divisor, padding: aggregation scale and batches of several lengths, see `fusion.alignment`.
    own_fine: whether there is a fine stream inside.
    """
    stream = backbone_of(backbone, num_classes, backbone_options)
    fine = backbone_of(backbone, num_classes, backbone_options) if own_fine else None
    depth = stream.head.pool.pre_conv.out_channels
    fusion = Fusion(stream.widths, depth, num_classes, mixing, divisor, padding)
    return CoarseFine(list(stream.blocks), fine, fusion, grid)
