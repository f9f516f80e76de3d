"""3D ResNet-50 that scores every frame: the Slow network, temporal stride 1, pooled over space.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019; MODELS.md 11. Modules
bear pytorchvideo's names, so that its Slow-R50 loads as it is (into ``stem_frames=1``).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.registry import register, seeded

EXPANSION = 4
"""Channels that a block puts out over those inside it."""


class Stem(nn.Module):
    """A convolution of 7 x 7 positions and a maximum, each of spatial stride 2."""

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
    """Blocks of one resolution; the first one changes it."""

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


class SlowResNet(nn.Module):
    """Clips [B, C, T, H, W] -> logits [B, K, T], one column per input frame.

    ``blocks`` holds the stem, the stages and the head.
    """

    takes: ClassVar[str] = "clips"

    def __init__(self, stem: Stem, stages: Sequence[Stage], head: Head) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([stem, *stages, head])

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        return self.score(self.features(clips_BCTHW))

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips: features are averaged over time before the head."""
        return self.score(self.features(clips_BCTHW).mean(2, keepdim=True)).squeeze(2)

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Outputs [B, D, T] of the last stage, averaged over the positions of each frame."""
        x_BCTHW = clips_BCTHW
        for block in self.blocks[:-1]:
            x_BCTHW = block(x_BCTHW)
        return x_BCTHW.mean((3, 4))

    def score(self, features_BDT: Tensor) -> Tensor:
        """Logits [B, K, T] of features."""
        return self.head(features_BDT)

    @property
    def head(self) -> Any:
        return self.blocks[-1]

    @property
    def layers(self) -> list[nn.Module]:
        """The stages, whose outputs [B, C, T, H, W] may be mixed (`ssdet.augment.manifold`)."""
        return list(self.blocks)[1:-1]

    @property
    def temporal_context(self) -> int:
        """How many frames before and after it a frame's logits depend on."""
        return sum(m.kernel_size[0] // 2 for m in self.modules() if isinstance(m, nn.Conv3d))

    @property
    def classifier(self) -> str:
        """Prefix of the parameters whose shape depends on the number of classes."""
        return f"blocks.{len(self.blocks) - 1}.proj."

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the classifier, which a recipe may give another learning rate."""
        return self.head.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that ``head_parameters`` does not yield."""
        return self.blocks[:-1].parameters()

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the last layer by a fresh one for ``num_classes`` classes."""
        old = self.head.proj
        with seeded(generator):
            fresh = nn.Linear(old.in_features, num_classes)
        self.head.proj = fresh.to(old.weight)


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

    widths: channels inside the blocks of each stage; four times as many come out.
    depths: blocks of each stage. The blocks of the last two stages see three frames.
    stage_strides: spatial stride of each stage, after the stem's 4.
    stem_frames: frames that the first convolution sees. 3 is what the specification's sizes are
    of (31,975,005 parameters at 157 classes); the published Slow-R50 has 1.
    norm_splits: groups of a batch that are normalised apart, see ``norm.splits_for``.
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
    return _initialise(SlowResNet(stem, stages, Head(before, num_classes, dropout)))


def _initialise(model: SlowResNet) -> SlowResNet:
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
