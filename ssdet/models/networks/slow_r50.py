"""3D ResNet-50 of temporal stride 1, pooled over space: the Slow network as a frame scorer.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019. Modules have
pytorchvideo's names, so that its Slow-R50 loads unchanged (into ``stem_frames=1``).
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.base import BlockNetwork, initialise_convolutions
from ssdet.models.registry import register

EXPANSION = 4
"""Output channels of a block over those inside it."""


class Stem(nn.Module):
    """A convolution of 7 x 7 positions and a max pooling, each of spatial stride 2."""

    def __init__(self, before: int, after: int, frames: int, norm: partial[SubBatchNorm3d]) -> None:
        super().__init__()
        window, padding = (frames, 7, 7), (frames // 2, 3, 3)
        self.conv = nn.Conv3d(before, after, window, (1, 2, 2), padding, bias=False)
        self.norm = norm(after)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = F.relu(self.norm(self.conv(x_BCTHW)))
        return F.max_pool3d(x_BCTHW, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class Block(nn.Module):
    """Bottleneck: 1 x 1 x 1 (or 3 x 1 x 1 in time), 1 x 3 x 3 and 1 x 1 x 1, and a shortcut."""

    def __init__(
        self, before: int, inner: int, window: int, stride: int, norm: partial[SubBatchNorm3d]
    ) -> None:
        super().__init__()
        after, strides, time = EXPANSION * inner, (1, stride, stride), (window, 1, 1)
        self.branch1_conv: nn.Module | None = None
        self.branch1_norm: nn.Module | None = None
        if before != after or stride != 1:
            self.branch1_conv = nn.Conv3d(before, after, 1, strides, bias=False)
            self.branch1_norm = norm(after)
        middle = nn.Conv3d(inner, inner, (1, 3, 3), strides, (0, 1, 1), bias=False)
        parts = {
            "conv_a": nn.Conv3d(before, inner, time, padding=(window // 2, 0, 0), bias=False),
            "norm_a": norm(inner),
            "act_a": nn.ReLU(inplace=True),
            "conv_b": middle,
            "norm_b": norm(inner),
            "act_b": nn.ReLU(inplace=True),
            "conv_c": nn.Conv3d(inner, after, 1, bias=False),
            "norm_c": norm(after),
        }
        self.branch2 = nn.Sequential(OrderedDict(parts))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y_BCTHW = self.branch2(x_BCTHW)
        if self.branch1_conv is not None and self.branch1_norm is not None:
            x_BCTHW = self.branch1_norm(self.branch1_conv(x_BCTHW))
        return F.relu(x_BCTHW + y_BCTHW)


class Stage(nn.Module):
    """Blocks of one resolution, which the first block reduces."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.res_blocks = nn.Sequential(*blocks)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.res_blocks(x_BCTHW)


class Head(nn.Module):
    """Features [B, D, T] -> logits [B, K, T]."""

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(features, classes)

    def forward(self, features_BDT: Tensor) -> Tensor:
        return self.proj(self.dropout(features_BDT.transpose(1, 2))).transpose(1, 2)


class SlowResNet(BlockNetwork):
    """Clips [B, C, T, H, W] -> logits [B, K, T], one column per input frame.

    Features are outputs of the last stage, averaged over the positions of each frame.
    """

    def score(self, features_BDT: Tensor) -> Tensor:
        return self.head(features_BDT)


@register
def slow_r50(
    num_classes: int,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 4, 6, 3),
    stage_strides: Sequence[int] = (1, 2, 2, 2),
    stem_frames: Literal[1, 3] = 3,
    in_channels: int = 3,
    dropout: float = 0.5,
    norm_splits: int = 1,
) -> SlowResNet:
    """3D ResNet-50, or a smaller one: ``widths=(16, 32, 64), depths=(1, 1, 1)`` with
    ``stage_strides=(1, 2, 1)`` suits clips of 24 pixels.

    widths: channels inside the blocks of each stage; outputs have four times as many.
    depths: blocks of each stage. Those of the last two stages span three frames.
    stage_strides: spatial stride of each stage, after the stem's 4.
    stem_frames: temporal size of the first convolution; the published Slow-R50 has 1.
    norm_splits: groups of a batch with separate statistics, see ``sub_batch_norm.splits_for``.
    """
    if not len(widths) == len(depths) == len(stage_strides) > 0:
        raise ValueError(
            f"{len(widths)} widths, {len(depths)} depths and {len(stage_strides)} stage_strides: "
            "give one of each for every stage"
        )
    norm = partial(SubBatchNorm3d, splits=norm_splits)
    stages, before = [], widths[0]
    for left, inner, depth, stride in zip(
        range(len(depths) - 1, -1, -1), widths, depths, stage_strides, strict=True
    ):
        window, after = 3 if left < 2 else 1, EXPANSION * inner
        blocks = [Block(before, inner, window, stride, norm)]
        blocks += [Block(after, inner, window, 1, norm) for _ in range(depth - 1)]
        stages.append(Stage(blocks))
        before = after
    stem = Stem(in_channels, widths[0], stem_frames, norm)
    model = SlowResNet([stem, *stages, Head(before, num_classes, dropout)])
    initialise_convolutions(model)
    return model
