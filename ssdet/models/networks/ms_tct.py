"""MS-TCT: temporal attention and convolution at four rates, mixed at the rate of the features.

Dai et al., "MS-TCT: Multi-Scale Temporal ConvTransformer for Action Detection", CVPR 2022; the
classes are the parts of its figure 2.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.masking import Padding, masked, step_mask
from ssdet.models.registry import one_of, register

STRIDES = (1, 2, 2, 2)


class Attention(nn.Module):
    """Multi-head self-attention over [B, T, C] to the steps in `mask_BT`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = (nn.Linear(dim, n * dim) for n in (1, 2, 1))

    def forward(self, x_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        k, v = self.kv(x_BTC).chunk(2, -1)
        q_BHTD, k_BHTD, v_BHTD = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q(x_BTC), k, v)
        )
        keys = None if mask_BT is None else mask_BT[:, None, None]
        mean_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, keys)
        return self.proj(mean_BHTD.transpose(1, 2).flatten(2))


class Local(nn.Module):
    """Feed-forward layer over [B, T, C] with a depthwise convolution of three steps inside."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, inner)
        self.conv = nn.Conv1d(inner, inner, 3, padding=1, groups=inner)
        self.reduce = nn.Linear(inner, dim)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        hidden_BCT = masked(self.expand(x_BTC).transpose(1, 2), mask_BT)
        return self.reduce(F.gelu(self.conv(hidden_BCT).transpose(1, 2)))


class Block(nn.Module):
    """Residual global attention, then residual local layer."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.local = Attention(dim, heads), Local(dim, mlp_ratio * dim)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        x_BTC = x_BTC + self.attention(self.norm1(x_BTC), mask_BT)
        return x_BTC + self.local(self.norm2(x_BTC), mask_BT)


class Stage(nn.Module):
    """A convolution of temporal stride `stride`, then blocks: [B, C, T] -> [B, C', T']."""

    def __init__(
        self, in_dim: int, dim: int, stride: int, blocks: int, heads: int, ratio: int
    ) -> None:
        super().__init__()
        self.merge = nn.Conv1d(in_dim, dim, 3, stride)
        self.merge_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, ratio) for _ in range(blocks))

    def forward(self, x_BCT: Tensor, mask_BT: Tensor | None) -> Tensor:
        # Padded explicitly: oneDNN's bfloat16 weight gradient of a padded, strided convolution of a
        # single step is uninitialised memory (torch 2.14).
        padded_BCT = F.pad(masked(x_BCT, mask_BT), (1, 1))
        x_BTC = self.merge_norm(self.merge(padded_BCT).transpose(1, 2))
        # A merged step exists where its middle step does.
        mask_BT = None if mask_BT is None else mask_BT[:, :: self.merge.stride[0]]
        for block in self.blocks:
            x_BTC = block(x_BTC, mask_BT)
        return self.norm(x_BTC).transpose(1, 2)


class Mixer(nn.Module):
    """All rates upsampled to the first one, [B, 4 · final, T], coarsest first: with the coarsest
    added to each, and unmixed."""

    def __init__(self, dims: Sequence[int], final: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(dim, final) for dim in dims)
        # The last one is unused, but part of the published weights and parameter counts.
        self.cross = nn.ModuleList(nn.Conv1d(final, final, 1) for _ in dims)

    def forward(
        self, levels: Sequence[Tensor], mask_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        steps = levels[0].shape[2]
        plain: list[Tensor] = []
        for level, (project, x_BCT) in enumerate(zip(self.project, levels, strict=True)):
            x_BCT = project(x_BCT.transpose(1, 2)).transpose(1, 2)
            coarse_BT = None if mask_BT is None else mask_BT[:, :: 2**level]
            plain.insert(0, stretched(x_BCT, coarse_BT, mask_BT, steps))
        coarsest, *finer = plain
        pairs = zip(self.cross, finer, strict=False)
        mixed = [coarsest, *(x_BCT + cross(coarsest) for cross, x_BCT in pairs)]
        return torch.cat(mixed, 1), torch.cat(plain, 1)


class MSTCT(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T], for any T from 1.

    padding="released": padding is treated as features, as in the published code. "exact":
    attention, convolutions and interpolation ignore it, so that a sequence's logits are those that
    it has without padding.
    """

    takes: ClassVar[str] = "features"
    classifier: ClassVar[str] = "classes."
    """Prefix of the parameters whose shape depends on the number of classes."""

    def __init__(
        self,
        stages: Sequence[Stage],
        mixer: Mixer,
        final: int,
        num_classes: int,
        dropout: float,
        exact: bool,
    ) -> None:
        super().__init__()
        self.exact = exact
        self.dropout = nn.Dropout(dropout)
        self.stages, self.mixer = nn.ModuleList(stages), mixer
        self.fuse = nn.Conv1d(4 * final, final, 1)
        self.spread = nn.Conv1d(4 * final, final, 3, padding=1)
        kinds = ("steps", "heat")
        self.classes = nn.ModuleDict({kind: nn.Conv1d(final, num_classes, 1) for kind in kinds})
        self.apply(_initialise)

    def forward(self, features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        mixed_BCT, _ = self.mixer(*self._levels(features_BDT, lengths_B))
        return self._scored(mixed_BCT)

    def with_heat_map(self, features_BDT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K, T] of the steps, and of a heat map [B, K, T] with peaks at the middles of
        actions, which is only a training target."""
        levels, mask_BT = self._levels(features_BDT, lengths_B)
        mixed_BCT, plain_BCT = self.mixer(levels, mask_BT)
        heat_BKT = self.classes["heat"](F.relu(self.spread(masked(plain_BCT, mask_BT))))
        return self._scored(mixed_BCT), heat_BKT

    def _levels(self, x_BCT: Tensor, lengths_B: Tensor) -> tuple[list[Tensor], Tensor | None]:
        levels, mask_BT = [], step_mask(x_BCT, lengths_B) if self.exact else None
        x_BCT, level_BT = self.dropout(x_BCT), mask_BT
        for stage, stride in zip(self.stages, STRIDES, strict=True):
            x_BCT = stage(x_BCT, level_BT)
            level_BT = None if level_BT is None else level_BT[:, ::stride]
            levels.append(x_BCT)
        return levels, mask_BT

    def _scored(self, mixed_BCT: Tensor) -> Tensor:
        return self.classes["steps"](self.dropout(self.fuse(mixed_BCT)))


@register
def ms_tct(
    num_classes: int,
    *,
    in_features: int = 432,
    dims: Sequence[int] = (256, 384, 576, 864),
    blocks: int = 3,
    heads: int = 8,
    mlp_ratio: int = 8,
    final: int = 512,
    dropout: float = 0.5,
    padding: Padding = "released",
) -> MSTCT:
    """MS-TCT, at the published size by default.

    dims: channels of the four stages, multiples of `heads`. final: channels of each rate in the
    mixer. ValueError for other dims, or another `padding`.
    """
    if len(dims) != len(STRIDES) or any(dim % heads for dim in dims):
        raise ValueError(f"dims {tuple(dims)}: expected {len(STRIDES)} multiples of heads={heads}")
    exact = one_of("padding", padding, Padding) == "exact"
    widths = pairwise((in_features, *dims))
    stages = [
        Stage(*width, stride, blocks, heads, mlp_ratio)
        for width, stride in zip(widths, STRIDES, strict=True)
    ]
    return MSTCT(stages, Mixer(dims, final), final, num_classes, dropout, exact)


def stretched(
    x_BCS: Tensor, coarse_BS: Tensor | None, mask_BT: Tensor | None, steps: int
) -> Tensor:
    """Linear interpolation to `steps` (align_corners=False); with masks, from each sequence's own
    number of coarse steps to its own length."""
    if coarse_BS is None or mask_BT is None:
        return F.interpolate(x_BCS, size=steps, mode="linear", align_corners=False)
    sources_B1, lengths_B1 = coarse_BS.sum(1, keepdim=True), mask_BT.sum(1, keepdim=True)
    positions_BT = torch.arange(steps, device=x_BCS.device) + 0.5
    positions_BT = (positions_BT * (sources_B1 / lengths_B1) - 0.5).clamp(min=0)
    low_BT = positions_BT.long().minimum(sources_B1 - 1)
    high_BT = (low_BT + 1).minimum(sources_B1 - 1)
    low_BCT, high_BCT = (
        x_BCS.gather(2, at_BT[:, None].expand(-1, x_BCS.shape[1], -1))
        for at_BT in (low_BT, high_BT)
    )
    return (low_BCT + (positions_BT - low_BT)[:, None] * (high_BCT - low_BCT)).to(x_BCS)


def _initialise(module: nn.Module) -> None:
    """Initial weights: linear layers N(0, .02) truncated at ±2, convolutions by fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        fan_out = module.kernel_size[0] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
