"""X3D with temporal stride 1: one network that scores every frame and whole clips.

Built from pytorchvideo's parts under its parameter names, so that its checkpoints load as they are
(Feichtenhofer, X3D, CVPR 2020; MODELS.md 1.1).
"""

import operator
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.registry import register, seeded, variant_of
from ssdet.system.quiet import quiet_import


class X3D(nn.Module):
    """Clips [B, 3, T, H, W] -> logits [B, K, T], one column per input frame.

    ``blocks`` holds the stem, the stages and the head. The head's last two layers score pooled
    features, of a frame or, in ``classify``, of the clip, with the same weights and no softmax.
    """

    takes: ClassVar[str] = "clips"

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        return self.score(self.features(clips_BCTHW))

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips: features are averaged over time before the head."""
        return self.score(self.features(clips_BCTHW).mean(2, keepdim=True)).squeeze(2)

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Outputs [B, D, T] of the last convolution, averaged over the positions of each frame."""
        x_BCTHW = clips_BCTHW
        for block in self.blocks[:-1]:
            x_BCTHW = block(x_BCTHW)
        return self.pool(x_BCTHW)

    def pool(self, x_BCTHW: Tensor) -> Tensor:
        """Features [B, D, T] of the last stage's output."""
        pool = self.head.pool
        return pool.pre_act(pool.pre_norm(pool.pre_conv(x_BCTHW))).mean((3, 4))

    def score(self, features_BDT: Tensor) -> Tensor:
        """Logits [B, K, T] of features."""
        head = self.head
        hidden = head.pool.post_act(head.pool.post_conv(features_BDT[..., None, None]))
        return head.proj(head.dropout(hidden.flatten(2).transpose(1, 2))).transpose(1, 2)

    @property
    def head(self) -> Any:
        return self.blocks[-1]

    @property
    def layers(self) -> list[nn.Module]:
        """The stages, whose outputs [B, C, T, H, W] may be mixed (`ssdet.augment.manifold`)."""
        return list(self.blocks)[1:-1]

    @property
    def widths(self) -> list[int]:
        """Output channels of each stage."""
        stages: Any = self.blocks[1:-1]
        return [stage.res_blocks[-1].branch2.conv_c.out_channels for stage in stages]

    @property
    def temporal_context(self) -> int | None:
        """How many frames before and after it a frame's logits depend on; None: on all frames,
        which squeeze-excitation averages."""
        with quiet_import():
            from fvcore.nn.squeeze_excitation import SqueezeExcitation

        modules = list(self.modules())
        if any(isinstance(module, SqueezeExcitation) for module in modules):
            return None
        return sum(m.kernel_size[0] // 2 for m in modules if isinstance(m, nn.Conv3d))

    @property
    def classifier(self) -> str:
        """Prefix of the parameters whose shape depends on the number of classes."""
        return f"blocks.{len(self.blocks) - 1}.proj."

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the last two layers, which a recipe may give another learning rate."""
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
    norm_splits: groups of a batch that are normalised apart, see ``norm.splits_for``.
    shortcut_norm: normalise a first shortcut that keeps its width too, as the released SSDet
    networks do and pytorchvideo's do not.
    se_ratio: width of squeeze-excitation over that of its block; 0 leaves it out, and the network
    sees ``temporal_context`` frames to each side instead of all.
    """
    with quiet_import():
        from pytorchvideo.models.x3d import create_x3d_head, create_x3d_stem

    strides = [2] * len(depths) if stage_strides is None else stage_strides
    if not len(widths) == len(depths) == len(strides) > 0:
        raise ValueError(
            f"{len(widths)} widths, {len(depths)} depths and {len(strides)} stage_strides: "
            "give one of each for every stage"
        )
    norm = partial(SubBatchNorm3d, splits=norm_splits)
    stem_strides = 1, stem_stride, stem_stride
    blocks = [
        create_x3d_stem(
            in_channels=in_channels, out_channels=stem, conv_stride=stem_strides, norm=norm
        )
    ]
    inner, last = 0, stem
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        before = last
        inner, last = (int(2.25 * width), width) if isinstance(width, int) else width
        blocks.append(_stage(depth, before, inner, last, stride, norm, shortcut_norm, se_ratio))
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
    return _initialise(X3D([*blocks, head]))


def _stage(
    depth: int,
    before: int,
    inner: int,
    after: int,
    stride: int,
    norm: partial[SubBatchNorm3d],
    shortcut_norm: bool,
    se_ratio: float,
) -> nn.Module:
    with quiet_import():
        from pytorchvideo.models.x3d import create_x3d_res_stage

    stage = create_x3d_res_stage(
        depth=depth,
        dim_in=before,
        dim_inner=inner,
        dim_out=after,
        conv_stride=(1, stride, stride),
        norm=norm,
        se_ratio=se_ratio,
    )
    for block in stage.res_blocks:
        block.branch_fusion = operator.add  # its own is a lambda, which cannot be pickled
    first = stage.res_blocks[0]
    if shortcut_norm and first.branch1_conv is not None and first.branch1_norm is None:
        first.branch1_norm = norm(after)
    return stage


def _initialise(model: X3D) -> X3D:
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
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
