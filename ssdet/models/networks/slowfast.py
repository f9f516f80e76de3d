"""SlowFast for detection over X3D: a Slow and a Fast stream of equal width.

There is no published code: a design from the paper's facts (MODELS.md 6), after Feichtenhofer et
al., "SlowFast Networks", ICCV 2019.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.coarse_fine import features_of, fine_features, freeze_head, own_stream
from ssdet.models.networks.fusion import Fusion, Modulation, Padding, replicated
from ssdet.models.networks.pyramid import FineFeatures
from ssdet.models.networks.slow import RATIO, Slow, StrideAt, backbone_of, checked, splits_of
from ssdet.models.networks.x3d import X3D
from ssdet.models.registry import register, seeded

Head = Literal["sum", "concat"]
FusionKind = Literal["lateral", "coarse_fine"]


class Lateral(nn.Module):
    """Slow maps [B, C, S, H, W] and fast ones [B, C, T, h, w] -> slow maps, S = ⌈T/4⌉.

    Five fast frames around each slow one become 2C channels beside the slow C, and these 3C are
    projected to C. The projection starts as the slow maps alone.
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

    The slow stream's parameters are the network's own and bear X3D's names, so that its checkpoints
    load into the network, and those of the fast stream into its `fine`. With fresh laterals the
    slow stream is what it was. Of a fast stream that is absent (own_fine=False) the two layers that
    score its features remain, under the same names, for head="sum".

    Without `fine` features the fast stream reads the same clips; ValueError if there is neither.
    With them the network reads those of the clip's own frames, from `fine.start_B` rounded to a
    step; frames without features count as zeros.
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
        slow_BDS, fast_BDT, last, places_BS = self.streams(clips_BCTHW, fine)
        lengthen = partial(self.lengthen, places_BS=places_BS, frames=clips_BCTHW.shape[2])
        if self.joint:
            return self.score(torch.cat([lengthen(slow_BDS), fast_BDT], 1))
        return lengthen(self._slow_logits(slow_BDS, last)) + self._fast_logits(fast_BDT)

    def classify(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Logits [B, K] of whole clips: each stream's features are averaged over its steps."""
        slow_BDS, fast_BDT, last, _ = self.streams(clips_BCTHW, fine)
        slow_BD1, fast_BD1 = slow_BDS.mean(2, keepdim=True), fast_BDT.mean(2, keepdim=True)
        if self.joint:
            return self.score(torch.cat([slow_BD1, fast_BD1], 1)).squeeze(2)
        slow_BK1 = self._slow_logits(slow_BD1, last and last.mean())
        return (slow_BK1 + self._fast_logits(fast_BD1)).squeeze(2)

    def features(self, clips_BCTHW: Tensor, fine: FineFeatures | None = None) -> Tensor:
        """Features [B, 2D, T], one column per frame: the slow stream's, then the fast one's."""
        slow_BDS, fast_BDT, _, places_BS = self.streams(clips_BCTHW, fine)
        slow_BDT = self.lengthen(slow_BDS, places_BS, clips_BCTHW.shape[2])
        return torch.cat([slow_BDT, fast_BDT], 1)

    def streams(
        self, clips_BCTHW: Tensor, fine: FineFeatures | None
    ) -> tuple[Tensor, Tensor, Modulation | None, Tensor]:
        """Slow features [B, D, S], fast ones [B, D, T], the modulation of the slow logits where
        there is one, and the slow steps' places [B, S]."""
        stream = self.fine if self.own_fine else None
        if fine is None and not self.pooled:
            found = features_of(_maps(own_stream(stream), clips_BCTHW), clips_BCTHW)
        else:
            found = fine_features(stream, clips_BCTHW, self.grid, fine)
        beside = found.levels if fine is None else _beside(found, clips_BCTHW)
        x_BCSHW, places_BS = self.begin(clips_BCTHW)
        joins, last = self._joins(found, beside, places_BS)
        x_BCSHW = joins[0](x_BCSHW)
        for stage, join in zip(self.blocks[2:-1], joins[1:], strict=True):
            x_BCSHW = join(stage(x_BCSHW))
        return self.pool(x_BCSHW), beside["conv5"].mean((3, 4)), last, places_BS

    def _joins(
        self, fine: FineFeatures, beside: Mapping[str, Tensor], places_BS: Tensor
    ) -> tuple[list[Callable[[Tensor], Tensor]], Modulation | None]:
        """How the fast stream enters the slow one after each stage, and in its logits."""
        if self.fusion is None:
            maps = [beside[f"layer{number + 1}"] for number in range(len(self.lateral))]
            pairs = zip(self.lateral, maps, strict=True)
            return [partial(lateral, fast_BCThw=fast) for lateral, fast in pairs], None
        *stages, last = self.fusion(fine, places_BS + fine.start_B[:, None])
        return [modulation.apply for modulation in stages], last

    def _slow_logits(self, features_BDS: Tensor, last: Modulation | None) -> Tensor:
        logits_BKS = self.score(features_BDS)
        return logits_BKS if last is None else last.apply(logits_BKS)

    def _fast_logits(self, features_BDT: Tensor) -> Tensor:
        assert self.fine is not None
        return self.fine.score(features_BDT)

    def fusion_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters between the streams."""
        others = () if self.fusion is None else self.fusion.parameters()
        return chain(self.lateral.parameters(), others)

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the layers whose shape depends on the number of classes by fresh ones."""
        super().reset_classifier(num_classes, generator)
        if self.fine is not None and not self.joint:
            self.fine.reset_classifier(num_classes, generator)
        if self.fusion is not None:
            with seeded(generator):
                self.fusion.reset_classes(num_classes)


def _maps(stream: X3D, clips_BCTHW: Tensor) -> dict[str, Tensor]:
    """Outputs of every stage and of the last convolution, as large as they are."""
    found, pool = {}, stream.head.pool
    x_BCTHW = stream.blocks[0](clips_BCTHW)
    for number, stage in enumerate(stream.layers, 1):
        found[f"layer{number}"] = x_BCTHW = stage(x_BCTHW)
    return {**found, "conv5": pool.pre_act(pool.pre_norm(pool.pre_conv(x_BCTHW)))}


def _beside(fine: FineFeatures, clips_BCTHW: Tensor) -> dict[str, Tensor]:
    """Maps [B, D, T, g, g] of the clips' own frames, zeros where there are none."""
    frames_T = torch.arange(clips_BCTHW.shape[2], device=fine.start_B.device)
    steps_BT = fine.start_B.round().long()[:, None] + frames_T
    rows_B1 = torch.arange(len(steps_BT), device=steps_BT.device)[:, None]
    there_BT = steps_BT.clamp(0, fine.mask_BT.shape[1] - 1)
    seen_BT = fine.mask_BT[rows_B1, there_BT].bool() & (steps_BT == there_BT)

    def cut(maps_BDTgg: Tensor) -> Tensor:
        maps_BTDgg = maps_BDTgg.transpose(1, 2)[rows_B1, there_BT].to(clips_BCTHW.dtype)
        return (maps_BTDgg * seen_BT[..., None, None, None]).transpose(1, 2)

    return {name: cut(maps_BDTgg) for name, maps_BDTgg in fine.levels.items()}


def _without_stages(network: X3D) -> X3D:
    """The two layers that score features, under the names that they have in the whole network."""
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

    head: add up the streams' logits, or score the features of both together.
    fusion: after each stage a lateral convolution, or the modulation of Coarse-Fine (with its
    `divisor` and `padding`, and head="sum").
    grid: side of the maps that features of an absent fast stream have; pooled: give its own the
    same size, so that both ways of training are one network. Those of "coarse_fine" always have it.
    own_fine: whether there is a fast stream inside.
    """
    checked("head", head, Head)
    if checked("fusion", fusion, FusionKind) == "coarse_fine" and head == "concat":
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
