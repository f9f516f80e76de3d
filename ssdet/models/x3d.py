"""X3D with temporal stride 1: one network that scores every frame and whole clips.

Built from pytorchvideo's parts under its parameter names, so that its checkpoints load as they are.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.norm import SubBatchNorm3d
from ssdet.models.registry import register, seeded

Width = int | tuple[int, int]


class X3D(nn.Module):
    """Clips [B, 3, T, H, W] -> logits [B, K, T], one column per input frame (MODELS.md 1.1).

    ``blocks`` holds the stem, the stages and the head, as in pytorchvideo.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        logits_BTK = self.score(self.features(clips_BCTHW).transpose(1, 2))
        return logits_BTK.transpose(1, 2)

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips: features are averaged over time before the head."""
        return self.score(self.features(clips_BCTHW).mean(2))

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Outputs [B, D, T] of the last convolution, averaged over each frame's positions."""
        x_BCTHW = clips_BCTHW
        for block in self.blocks[:-1]:
            x_BCTHW = block(x_BCTHW)
        return self.embed(x_BCTHW)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        pool = self.head.pool
        return pool.pre_act(pool.pre_norm(pool.pre_conv(x_BCTHW))).mean((3, 4))

    def score(self, features: Tensor) -> Tensor:
        """Logits [..., K] of features [..., D]; no softmax."""
        hidden = F.linear(features, self.head.pool.post_conv.weight.flatten(1))
        hidden = self.head.pool.post_act(hidden)
        return self.head.proj(self.head.dropout(hidden))

    @property
    def head(self) -> nn.Module:
        return self.blocks[-1]

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the two last layers, which recipes may give another learning rate."""
        return chain(self.head.pool.post_conv.parameters(), self.head.proj.parameters())

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that ``head_parameters`` does not yield."""
        head = {id(parameter) for parameter in self.head_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in head)

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the last layer by a fresh one for ``num_classes`` classes."""
        old = self.head.proj
        with seeded(generator):
            fresh = nn.Linear(old.in_features, num_classes)
        self.head.proj = fresh.to(old.weight)


@register
def x3d(
    num_classes: int,
    *,
    widths: Sequence[Width],
    depths: Sequence[int],
    stem: int,
    head_dim: int = 2048,
    stem_stride: int = 2,
    stage_strides: Sequence[int] | None = None,
    dropout: float = 0.5,
    norm_splits: int = 1,
    shortcut_norm: bool = False,
    in_channels: int = 3,
) -> X3D:
    """X3D of any size.

    widths: per stage the output channels (inner channels 2.25 times as many), or (inner, output).
    depths: blocks per stage. Strides are spatial; every stage halves the plane by default.
    shortcut_norm: normalise the first shortcut too, as the released SSDet networks do and
    pytorchvideo's checkpoints do not.
    """
    if len(widths) != len(depths):
        raise ValueError(f"{len(widths)} widths for {len(depths)} depths: give one of each a stage")
    strides = stage_strides or [2] * len(widths)
    norm = partial(SubBatchNorm3d, splits=norm_splits)
    from pytorchvideo.models import x3d as parts

    stem_strides = (1, stem_stride, stem_stride)
    blocks = [
        parts.create_x3d_stem(
            in_channels=in_channels, out_channels=stem, conv_stride=stem_strides, norm=norm
        )
    ]
    dim_in = stem
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        dim_inner, dim_out = (int(2.25 * width), width) if isinstance(width, int) else width
        stage = parts.create_x3d_res_stage(
            depth=depth,
            dim_in=dim_in,
            dim_inner=dim_inner,
            dim_out=dim_out,
            conv_stride=(1, stride, stride),
            norm=norm,
        )
        first = stage.res_blocks[0]
        if shortcut_norm and first.branch1_conv is not None and first.branch1_norm is None:
            first.branch1_norm = norm(dim_out)
        blocks.append(stage)
        dim_in = dim_out
    head = parts.create_x3d_head(
        dim_in=dim_in,
        dim_inner=dim_inner,
        dim_out=head_dim,
        num_classes=num_classes,
        norm=norm,
        activation=None,
        output_with_global_average=False,
    )
    head.dropout = nn.Dropout(dropout)
    model = X3D(nn.ModuleList([*blocks, head]))
    _initialise(model)
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@register
def x3d_tiny(num_classes: int, *, stem_stride: int = 1, head_dim: int = 256, dropout: float = 0.5,
             norm_splits: int = 1, shortcut_norm: bool = False) -> X3D:
    """Three stages for clips of 24 to 32 pixels."""
    return x3d(num_classes, widths=(16, 32, 64), depths=(1, 2, 2), stem=16, head_dim=head_dim,
               stem_stride=stem_stride, dropout=dropout, norm_splits=norm_splits,
               shortcut_norm=shortcut_norm)


@register
def x3d_m(num_classes: int, *, dropout: float = 0.5, norm_splits: int = 1,
          shortcut_norm: bool = False) -> X3D:
    """X3D-M (224 px)."""
    return x3d(num_classes, widths=(24, 48, 96, 192), depths=(3, 5, 11, 7), stem=24,
               dropout=dropout, norm_splits=norm_splits, shortcut_norm=shortcut_norm)
