"""SlowFast for detection over X3D: a Slow and a Fast stream of equal width.

There is no published code of this network: a design from the paper's description, after
Feichtenhofer et al., "SlowFast Networks", ICCV 2019.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.masking import Padding
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.coarse_fine import clip_features, fine_features, freeze_head, own_stream
from ssdet.models.networks.fusion import Fusion, Modulation, replicated
from ssdet.models.networks.pyramid import FineFeatures, stage_maps
from ssdet.models.networks.slow import RATIO, Slow, StrideAt, backbone_of, splits_of
from ssdet.models.networks.x3d import X3D
from ssdet.models.registry import one_of, register, seeded

Head = Literal["sum", "concat"]
FusionKind = Literal["lateral", "coarse_fine"]


class Lateral(nn.Module):
    """Slow maps [B, C, S, H, W] and fast ones [B, C, T, h, w] -> slow maps, S = ⌈T/4⌉.

    A convolution over five fast frames around each slow one gives 2C channels, which are
    concatenated with the slow C and projected to C. Initially the projection is the identity of
    the slow maps.
    """

    def __init__(self, width: int, splits: int) -> None:
        super().__init__()
        window, stride = (5, 1, 1), (RATIO, 1, 1)
        self.conv = nn.Conv3d(width, 2 * width, window, stride, (2, 0, 0), bias=False)
        self.norm = SubBatchNorm3d(2 * width, splits=splits)
        self.project = nn.Conv3d(3 * width, width, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.dirac_(self.project.weight)

    def forward(self, slow_BCSHW: Tensor, fast_BCThw: Tensor) -> Tensor:
        # Pointwise in space, so done at the fast maps' size.
        side = F.relu(self.norm(self.conv(fast_BCThw)))
        return self.project(torch.cat([slow_BCSHW, replicated(side, slow_BCSHW)], 1))


class SlowFast(Slow):
    """Clips [B, 3, T, H, W], and features of the fast stream, -> logits [B, K, T].

    The slow stream's parameters have X3D's names, so that its checkpoints load into the network,
    and those of the fast stream into its `fine`. Fresh laterals do not change the slow stream.
    Without a fast stream (own_fine=False) and with head="sum", `fine` has the two layers that score
    its features.

    Without `fine` features the fast stream reads the same clips; ValueError if there is neither.
    With them the network reads those of the clip's frames, from `fine.start_B` rounded to a step;
    missing ones are zeros.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        fine: X3D,
        fusion: Fusion | None,
        *,
        own_fine: bool,
        joint: bool,
        stride_at: StrideAt,
        grid: int,
        pooled: bool,
    ) -> None:
        super().__init__(blocks, stride_at)
        self.own_fine, self.joint, self.grid = own_fine, joint, grid
        self.pooled, self.fusion = pooled or fusion is not None, fusion
        widths = self.widths if fusion is None else []
        self.lateral = nn.ModuleList(Lateral(width, splits_of(self)) for width in widths)
        self.fresh = "lateral.", "fusion.", "fine."
        if joint:
            self._widen_head()
            freeze_head(fine)
        self.fine = fine if own_fine else None if joint else _without_stages(fine)

    def _widen_head(self) -> None:
        pool = self.head.pool
        width, hidden = pool.post_conv.in_channels, pool.post_conv.out_channels
        pool.post_conv = nn.Conv3d(2 * width, hidden, 1, bias=False)
        nn.init.kaiming_normal_(pool.post_conv.weight, mode="fan_out", nonlinearity="relu")
        self.fresh += (f"blocks.{len(self.blocks) - 1}.pool.post_conv.",)

    def forward(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        slow_BDS, fast_BDT, last, positions_BS = self.streams(clips_BCTHW, fine)
        upsample = partial(self.upsample, positions_BS=positions_BS, frames=clips_BCTHW.shape[2])
        if self.joint:
            return self.score(torch.cat([upsample(slow_BDS), fast_BDT], 1))
        return upsample(self._slow_logits(slow_BDS, last)) + self._fast_logits(fast_BDT)

    def classify(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Logits [B, K] of whole clips, from each stream's features averaged over its steps."""
        slow_BDS, fast_BDT, last, _ = self.streams(clips_BCTHW, fine)
        slow_BD1, fast_BD1 = slow_BDS.mean(2, keepdim=True), fast_BDT.mean(2, keepdim=True)
        if self.joint:
            return self.score(torch.cat([slow_BD1, fast_BD1], 1)).squeeze(2)
        slow_BK1 = self._slow_logits(slow_BD1, last and last.mean())
        return (slow_BK1 + self._fast_logits(fast_BD1)).squeeze(2)

    def features(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Features [B, 2D, T], one column per frame: of the slow stream, then of the fast one."""
        slow_BDS, fast_BDT, _, positions_BS = self.streams(clips_BCTHW, fine)
        slow_BDT = self.upsample(slow_BDS, positions_BS, clips_BCTHW.shape[2])
        return torch.cat([slow_BDT, fast_BDT], 1)

    def streams(
        self, clips_BCTHW: Tensor, fine: FineFeatures | None
    ) -> tuple[Tensor, Tensor, Modulation | None, Tensor]:
        """Slow features [B, D, S], fast ones [B, D, T], the modulation of the slow logits, if any,
        and the slow steps' positions [B, S]."""
        stream = self.fine if self.own_fine else None
        if fine is None and not self.pooled:
            fast = clip_features(dict(stage_maps(own_stream(stream), clips_BCTHW)), clips_BCTHW)
        else:
            fast = fine_features(stream, clips_BCTHW, self.grid, fine)
        levels = fast.levels if fine is None else _clip_levels(fast, clips_BCTHW)
        x_BCSHW, positions_BS = self.first_stage(clips_BCTHW)
        joins, last = self._joins(fast, levels, positions_BS)
        x_BCSHW = joins[0](x_BCSHW)
        for stage, join in zip(self.blocks[2:-1], joins[1:], strict=True):
            x_BCSHW = join(stage(x_BCSHW))
        return self.pool(x_BCSHW), levels["conv5"].mean((3, 4)), last, positions_BS

    def _joins(
        self, fast: FineFeatures, levels: Mapping[str, Tensor], positions_BS: Tensor
    ) -> tuple[list[Callable[[Tensor], Tensor]], Modulation | None]:
        """Functions that join the fast stream to the slow maps of each stage, and the modulation of
        the slow logits."""
        if self.fusion is None:
            pairs = ((lateral, levels[f"layer{n}"]) for n, lateral in enumerate(self.lateral, 1))
            return [partial(lateral, fast_BCThw=maps) for lateral, maps in pairs], None
        *stages, last = self.fusion(fast, positions_BS + fast.start_B[:, None])
        return [modulation.apply for modulation in stages], last

    def _slow_logits(self, features_BDS: Tensor, last: Modulation | None) -> Tensor:
        logits_BKS = self.score(features_BDS)
        return logits_BKS if last is None else last.apply(logits_BKS)

    def _fast_logits(self, features_BDT: Tensor) -> Tensor:
        assert self.fine is not None
        return self.fine.score(features_BDT)

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the layers whose shape depends on the number of classes by fresh ones."""
        super().reset_classifier(num_classes, generator)
        if self.fine is not None and not self.joint:
            self.fine.reset_classifier(num_classes, generator)
        if self.fusion is not None:
            with seeded(generator):
                self.fusion.reset_classes(num_classes)


def _clip_levels(fine: FineFeatures, clips_BCTHW: Tensor) -> dict[str, Tensor]:
    """Maps [B, D, T, g, g] of the clips' frames, zeros for missing ones."""
    frames_T = torch.arange(clips_BCTHW.shape[2], device=fine.start_B.device)
    steps_BT = fine.start_B.round().long()[:, None] + frames_T
    rows_B1 = torch.arange(len(steps_BT), device=steps_BT.device)[:, None]
    index_BT = steps_BT.clamp(0, fine.mask_BT.shape[1] - 1)
    exists_BT = fine.mask_BT[rows_B1, index_BT].bool() & (steps_BT == index_BT)

    def cut(maps_BDTgg: Tensor) -> Tensor:
        maps_BTDgg = maps_BDTgg.transpose(1, 2)[rows_B1, index_BT].to(clips_BCTHW.dtype)
        return (maps_BTDgg * exists_BT[..., None, None, None]).transpose(1, 2)

    return {name: cut(maps_BDTgg) for name, maps_BDTgg in fine.levels.items()}


def _without_stages(network: X3D) -> X3D:
    """The two layers that score features, under their names in the whole network."""
    head = network.head
    head.pool.pre_conv, head.pool.pre_norm = nn.Identity(), nn.Identity()
    return X3D([*(nn.Identity() for _ in network.blocks[:-1]), head])


@register
def slowfast_det(
    num_classes: int,
    *,
    backbone: str = "x3d_m",
    backbone_options: Mapping[str, Any] | None = None,
    head: Head = "sum",
    fusion: FusionKind = "lateral",
    stride_at: StrideAt = "layer1",
    grid: int = 7,
    pooled: bool = False,
    divisor: float = 8,
    padding: Padding = "released",
    own_fine: bool = True,
) -> SlowFast:
    """SlowFast over two registered X3D with these options.

    head: add the streams' logits, or score their concatenated features.
    fusion: after each stage a lateral convolution, or the modulation of Coarse-Fine (with its
    `divisor` and `padding`, and head="sum").
    grid: side of the maps of given fast features. pooled: also pool the maps of the own fast stream
    to it (as "coarse_fine" always does), so that both ways of training give the same network.
    own_fine: whether the network contains a fast stream.
    """
    one_of("head", head, Head)
    if one_of("fusion", fusion, FusionKind) == "coarse_fine" and head == "concat":
        raise ValueError('fusion="coarse_fine" modulates the slow logits, and head="concat" has '
                         'none: use head="sum"')  # fmt: skip
    stream, fine = (backbone_of(backbone, num_classes, backbone_options) for _ in range(2))
    between = None
    if fusion == "coarse_fine":
        depth = stream.head.pool.pre_conv.out_channels
        between = Fusion(stream.widths, depth, num_classes, True, divisor, padding)
    return SlowFast(
        list(stream.blocks), fine, between, own_fine=own_fine, joint=head == "concat",
        stride_at=stride_at, grid=grid, pooled=pooled,
    )  # fmt: skip
