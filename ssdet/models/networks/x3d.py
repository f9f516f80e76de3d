"""X3D with temporal stride 1, which scores every frame and whole clips.

Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", CVPR 2020; built from
pytorchvideo's parts under its parameter names, so that its checkpoints load unchanged.
"""

import operator
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.base import BlockNetwork, initialise_convolutions
from ssdet.models.registry import register, variant_of
from ssdet.system.quiet import quiet_import


class X3D(BlockNetwork):
    """Clips [B, 3, T, H, W] -> logits [B, K, T], one column per input frame.

    The head's last two layers score pooled features of a frame or, in ``classify``, of the clip.
    """

    def last_maps(self, x_BCTHW: Tensor) -> Tensor:
        """Output [B, D, T, H, W] of the last convolution from that of the last stage."""
        pool = self.head.pool
        return pool.pre_act(pool.pre_norm(pool.pre_conv(x_BCTHW)))

    def pool(self, x_BCTHW: Tensor) -> Tensor:
        return self.last_maps(x_BCTHW).mean((3, 4))

    def score(self, features_BDT: Tensor) -> Tensor:
        head = self.head
        hidden = head.pool.post_act(head.pool.post_conv(features_BDT[..., None, None]))
        return head.proj(head.dropout(hidden.flatten(2).transpose(1, 2))).transpose(1, 2)

    @property
    def widths(self) -> list[int]:
        """Output channels of each stage."""
        stages: Any = self.blocks[1:-1]
        return [stage.res_blocks[-1].branch2.conv_c.out_channels for stage in stages]

    @property
    def temporal_context(self) -> int | None:
        """As `BlockNetwork`; None with squeeze-excitation, which averages all frames."""
        with quiet_import():
            from fvcore.nn.squeeze_excitation import SqueezeExcitation

        if any(isinstance(module, SqueezeExcitation) for module in self.modules()):
            return None
        return super().temporal_context

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the last two layers."""
        return chain(self.head.pool.post_conv.parameters(), self.head.proj.parameters())


@register
def x3d(
    num_classes: int,
    *,
    widths: Sequence[int | Sequence[int]],
    depths: Sequence[int],
    stem: int,
    head_dim: int = 2048,
    stem_stride: int = 2,
    stage_strides: Sequence[int] | None = None,
    dropout: float = 0.5,
    norm_splits: int = 1,
    shortcut_norm: bool = False,
    in_channels: int = 3,
    se_ratio: float = 0.0625,
) -> X3D:
    """X3D of any size.

    widths: per stage the output channels (2.25 times as many inside), or (inner, output).
    depths: blocks of each stage.
    stage_strides: spatial stride of each stage, 2 by default.
    norm_splits: groups of a batch with separate statistics, see ``sub_batch_norm.splits_for``.
    shortcut_norm: also normalise a first shortcut of unchanged width, as the released SSDet
    networks, but not pytorchvideo's.
    se_ratio: width of squeeze-excitation relative to its block; 0: none, and a finite
    ``temporal_context``.
    """
    with quiet_import():
        from pytorchvideo.models.x3d import create_x3d_head, create_x3d_res_stage, create_x3d_stem

    strides = [2] * len(depths) if stage_strides is None else stage_strides
    if not len(widths) == len(depths) == len(strides) > 0:
        raise ValueError(
            f"{len(widths)} widths, {len(depths)} depths and {len(strides)} stage_strides: "
            "give one of each for every stage"
        )
    norm = partial(SubBatchNorm3d, splits=norm_splits)
    stride = 1, stem_stride, stem_stride
    blocks = [
        create_x3d_stem(in_channels=in_channels, out_channels=stem, conv_stride=stride, norm=norm)
    ]
    inner, last = 0, stem
    for width, depth, side in zip(widths, depths, strides, strict=True):
        before = last
        inner, last = (int(2.25 * width), width) if isinstance(width, int) else width
        stage = create_x3d_res_stage(
            depth=depth,
            dim_in=before,
            dim_inner=inner,
            dim_out=last,
            conv_stride=(1, side, side),
            norm=norm,
            se_ratio=se_ratio,
        )
        for block in stage.res_blocks:
            block.branch_fusion = operator.add  # pytorchvideo's lambda cannot be pickled
        first = stage.res_blocks[0]
        if shortcut_norm and first.branch1_conv is not None and first.branch1_norm is None:
            first.branch1_norm = norm(last)
        blocks.append(stage)
    head = create_x3d_head(
        dim_in=last,
        dim_inner=inner,
        dim_out=head_dim,
        num_classes=num_classes,
        norm=norm,
        activation=None,
        output_with_global_average=False,
    )
    head.dropout = nn.Dropout(dropout)
    model = X3D([*blocks, head])
    initialise_convolutions(model)
    return model


_MEDIUM: dict[str, Any] = {"widths": (24, 48, 96, 192), "depths": (3, 5, 11, 7), "stem": 24}
_DEEP: dict[str, Any] = {**_MEDIUM, "depths": (5, 10, 25, 15)}
_WIDE: dict[str, Any] = {**_DEEP, "widths": (32, 72, 136, 280), "stem": 32}
_TINY: dict[str, Any] = {
    "widths": (16, 32, 64),
    "depths": (1, 2, 2),
    "stem": 16,
    "head_dim": 256,
    "stem_stride": 2,
    "stage_strides": (2, 2, 1),
}


@variant_of(x3d)
def x3d_tiny(num_classes: int, **options: Any) -> X3D:
    """Three stages for clips of 24 to 32 pixels."""
    return x3d(num_classes, **{**_TINY, **options})


@variant_of(x3d)
def x3d_xs(num_classes: int, **options: Any) -> X3D:
    """X3D-XS: the network of X3D-M, meant for 182 pixels and 4 frames."""
    return x3d(num_classes, **{**_MEDIUM, **options})


@variant_of(x3d)
def x3d_s(num_classes: int, **options: Any) -> X3D:
    """X3D-S: the network of X3D-M, meant for 160 pixels and 13 frames."""
    return x3d(num_classes, **{**_MEDIUM, **options})


@variant_of(x3d)
def x3d_m(num_classes: int, **options: Any) -> X3D:
    """X3D-M, meant for 224 pixels and 16 frames: the paper's backbone."""
    return x3d(num_classes, **{**_MEDIUM, **options})


@variant_of(x3d)
def x3d_l(num_classes: int, **options: Any) -> X3D:
    """X3D-L: deeper than X3D-M, meant for 312 pixels and 16 frames."""
    return x3d(num_classes, **{**_DEEP, **options})


@variant_of(x3d)
def x3d_xl(num_classes: int, **options: Any) -> X3D:
    """X3D-XL: as deep as X3D-L and wider, meant for 312 pixels and 16 frames."""
    return x3d(num_classes, **{**_WIDE, **options})
