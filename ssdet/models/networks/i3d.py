"""I3D, Inception-v1 with 3-D convolutions: a baseline of the paper, and a feature extractor.

Carreira & Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017. Modules have the names of the
common PyTorch port, whose checkpoints load unchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.resampling import interpolate
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.base import VideoNetwork
from ssdet.models.registry import register, seeded

FEATURES = 1024

Triple = tuple[int, int, int]
_BRANCHES = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOLS: dict[str, tuple[Triple, Triple]] = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
"""Window and stride of the max pooling before a module."""


def same_padding(sizes: tuple[int, ...], window: Triple, stride: Triple) -> list[tuple[int, int]]:
    """Padding (before, after) of T, H and W for ceil(size / stride) outputs of a window.

    TensorFlow's "SAME": the end gets the larger part of an odd sum.
    """
    pads = []
    for size, width, step in zip(sizes, window, stride, strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def padded(x_BCTHW: Tensor, window: Triple, stride: Triple, value: float) -> Tensor:
    """Pad the input as "SAME"."""
    pads = same_padding(tuple(x_BCTHW.shape[2:]), window, stride)
    return F.pad(x_BCTHW, [side for pair in reversed(pads) for side in pair], value=value)


def pooled(x_BCTHW: Tensor, window: Triple, stride: Triple) -> Tensor:
    """Max pooling with "SAME" padding."""
    return F.max_pool3d(padded(x_BCTHW, window, stride, -torch.inf), window, stride)


class Unit3D(nn.Module):
    """Convolution with "SAME" padding, normalisation and ReLU."""

    def __init__(self, before: int, after: int, window: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, window, stride, bias=False)
        self.bn = SubBatchNorm3d(after, eps=1e-3, momentum=0.01)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        window: Any = self.conv3d.kernel_size
        stride: Any = self.conv3d.stride
        return F.relu(self.bn(self.conv3d(padded(x_BCTHW, window, stride, 0.0))))


class Inception(nn.Module):
    """Four concatenated branches: 1³; 1³, 3³ (twice); 3³ max pooling, 1³."""

    def __init__(self, before: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        point, cube = (1, 1, 1), (3, 3, 3)
        self.b0 = Unit3D(before, widths[0], point)
        self.b1a = Unit3D(before, widths[1], point)
        self.b1b = Unit3D(widths[1], widths[2], cube)
        self.b2a = Unit3D(before, widths[3], point)
        self.b2b = Unit3D(widths[3], widths[4], cube)
        self.b3b = Unit3D(before, widths[5], point)

    def forward(self, x: Tensor) -> Tensor:
        around = pooled(x, (3, 3, 3), (1, 1, 1))
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(around)
        return torch.cat(branches, 1)


class _Logits(nn.Module):
    """The classifier, a 1³ convolution with bias, under the port's name."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(FEATURES, classes, 1)

    def forward(self, features_BDS: Tensor) -> Tensor:
        return self.conv3d(features_BDS[..., None, None])[..., 0, 0]


class I3D(VideoNetwork):
    """Clips [B, C, T, H, W] -> logits [B, K, T], one column per input frame.

    The network has one step per 8 frames and averages neighbouring steps: S = ⌈T/8⌉ - 1 (64 frames:
    7), which are interpolated linearly to T. T, H and W are arbitrary: 8 frames or fewer give a
    single step (the published network rejects them), and means over space are over all positions.

    Published weights were trained on 64 frames of 224 pixels at 25 fps with values in [-1, 1]; for
    flow, displacements clipped to 20 pixels and divided by 20.
    """

    classifier = "logits."

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.Conv3d_1a_7x7 = Unit3D(in_channels, 64, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64, (1, 1, 1))
        self.Conv3d_2c_3x3 = Unit3D(64, 192, (3, 3, 3))
        width = 192
        for name, widths in _BRANCHES.items():
            self.add_module(name, Inception(width, widths))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.dropout = nn.Dropout(dropout)
        self.logits = _Logits(num_classes)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        return interpolate(self.coarse_logits(clips_BCTHW), clips_BCTHW.shape[2])

    def coarse_logits(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K, S] at the network's rate, without interpolation."""
        return self.score(self.steps(clips_BCTHW))

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips: the mean over the network's steps, as published."""
        return self.coarse_logits(clips_BCTHW).mean(2)

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Features [B, 1024, T], one column per input frame, interpolated from `steps`.

        Apart from dropout, `score` of them equals `forward`, since interpolation is linear.
        """
        return interpolate(self.steps(clips_BCTHW), clips_BCTHW.shape[2])

    def steps(self, clips_BCTHW: Tensor) -> Tensor:
        """Features [B, 1024, S] at the network's rate: means over space (published: of 7 x 7, as at
        224 pixels) and two steps."""
        x_BCTHW = clips_BCTHW
        for name, module in self.named_children():
            if name in ("dropout", "logits"):
                break
            if name in _POOLS:
                x_BCTHW = pooled(x_BCTHW, *_POOLS[name])
            x_BCTHW = module(x_BCTHW)
        means_BDS = x_BCTHW.mean((3, 4))
        if means_BDS.shape[2] == 1:
            return means_BDS
        return (means_BDS[..., 1:] + means_BDS[..., :-1]) / 2

    def score(self, features_BDT: Tensor) -> Tensor:
        """Logits [B, K, T] of features."""
        return self.logits(self.dropout(features_BDT))

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the last layer by a fresh one for ``num_classes`` classes."""
        with seeded(generator):
            fresh = _Logits(num_classes)
        self.logits = fresh.to(self.logits.conv3d.weight)


@register
def i3d(
    num_classes: int, *, in_channels: int = 3, dropout: float = 0.5, norm_momentum: float = 0.01
) -> I3D:
    """I3D on RGB (in_channels=3) or optical flow (2: displacements to the right and down).

    norm_momentum: weight of a batch in the running statistics. Short training on other data than
    that of the weights needs a larger one, or evaluation still uses the old statistics.
    """
    model = I3D(num_classes, in_channels, dropout)
    for module in model.modules():
        if isinstance(module, SubBatchNorm3d):
            module.momentum = norm_momentum
    return model
