"""Two-stream I3D: late fusion of RGB and optical flow (Carreira & Zisserman, CVPR 2017)."""

import torch
from torch import Tensor

from ssdet.models.networks.base import VideoNetwork
from ssdet.models.networks.i3d import I3D, i3d
from ssdet.models.registry import register

CHANNELS = (3, 2)
"""Channels of each stream: RGB, then flow."""


class TwoStream(VideoNetwork):
    """Clips [B, 5, T, H, W] -> logits [B, K, T], the mean over two networks.

    Channels 0-2 are RGB for `rgb`. Channels 3 and 4 are precomputed optical flow to the next frame,
    right and down: displacements clipped to 20 pixels and divided by 20, so in [-1, 1] (published
    weights: TV-L1). Weights load into one stream: ``load_weights(model.flow, ...)``.

    ValueError for clips with another number of channels.
    """

    classifier = (f"rgb.{I3D.classifier}", f"flow.{I3D.classifier}")
    in_channels = sum(CHANNELS)

    def __init__(self, rgb: I3D, flow: I3D) -> None:
        super().__init__()
        self.rgb, self.flow = rgb, flow

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        rgb, flow = self._split(clips_BCTHW)
        return (self.rgb(rgb) + self.flow(flow)) / 2

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips."""
        rgb, flow = self._split(clips_BCTHW)
        return (self.rgb.classify(rgb) + self.flow.classify(flow)) / 2

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Features [B, 2048, T]: those of `rgb`, then those of `flow`."""
        rgb, flow = self._split(clips_BCTHW)
        return torch.cat([self.rgb.features(rgb), self.flow.features(flow)], 1)

    def score(self, features_BDT: Tensor) -> Tensor:
        """Logits [B, K, T] of features."""
        rgb, flow = features_BDT.chunk(2, 1)
        return (self.rgb.score(rgb) + self.flow.score(flow)) / 2

    def _split(self, clips_BCTHW: Tensor) -> tuple[Tensor, ...]:
        if clips_BCTHW.shape[1] != self.in_channels:
            raise ValueError(
                f"clips of {clips_BCTHW.shape[1]} channels: i3d_two_stream takes {self.in_channels}"
                ", red, green, blue and optical flow to the right and down; for one of them use i3d"
            )
        return clips_BCTHW.split(CHANNELS, 1)

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace both last layers by fresh ones for ``num_classes`` classes."""
        for stream in (self.rgb, self.flow):
            stream.reset_classifier(num_classes, generator)


@register
def i3d_two_stream(
    num_classes: int, *, dropout: float = 0.5, norm_momentum: float = 0.01
) -> TwoStream:
    """Two I3D with the same options, on RGB and on flow."""
    rgb, flow = (
        i3d(num_classes, in_channels=channels, dropout=dropout, norm_momentum=norm_momentum)
        for channels in CHANNELS
    )
    return TwoStream(rgb, flow)
