"""Multi-stage fusion: fine-stream features scale and shift the features of a coarse stream.

Kahatapitiya & Ryoo, "Coarse-Fine Networks", CVPR 2021. Parameters have the published names. Every
operation is pointwise in space, so it is done on the small fine maps (7 x 7) and the result is
replicated. The published code first replicates the maps and multiplies them out over both times,
which is equal for maps whose sides are multiples of 7.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.masking import Padding
from ssdet.models.networks.pyramid import FineFeatures
from ssdet.models.registry import one_of


class Modulation(NamedTuple):
    """A scale and a shift, [B, C, S, g, g] of features [B, C, S, H, W] or [B, K, S] of logits."""

    scale: Tensor
    shift: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Scale and shift features or logits."""
        if x.ndim == 3:
            return x * self.scale + self.shift
        return x * replicated(self.scale, x) + replicated(self.shift, x)

    def mean(self) -> "Modulation":
        """Means over the steps of a clip, [B, K, 1]."""
        return Modulation(*(part.mean(2, keepdim=True) for part in self))


def replicated(x_BCSgg: Tensor, like_BCSHW: Tensor) -> Tensor:
    """Nearest-neighbour upsampling to the spatial size of another map."""
    return F.interpolate(x_BCSgg, size=like_BCSHW.shape[2:], mode="nearest")


def alignment(
    centres_BS: Tensor, mask_BT: Tensor, divisor: float = 8, padding: Padding = "released"
) -> Tensor:
    """Gaussians [B, T', S] over fine steps around the coarse steps' positions, with maximum 1.

    Their deviation is the number of existing fine steps divided by `divisor` (paper, Table A.1i:
    T/8, T/16, T/32). The maximum is over existing steps (padding="exact") or also over padded ones,
    which may make a Gaussian near the end of a video vanish.
    """
    deviation_B11 = mask_BT.sum(1).to(centres_BS.dtype)[:, None, None] / divisor
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device, dtype=centres_BS.dtype)
    distance_BTS = steps_T[:, None] - centres_BS[:, None]
    value_BTS = (-(distance_BTS**2) / (2 * deviation_B11**2 + 1e-16)).exp()
    counted_BTS = value_BTS * mask_BT[..., None] if padding == "exact" else value_BTS
    return value_BTS / (counted_BTS.amax(1, keepdim=True) + 1e-16)


class Reweight(nn.Module):
    """One level: fine maps [B, D, T', g, g], their mask and alignment -> scale and shift.

    Fine steps are averaged for each coarse step, weighted by attention and alignment. With `pooled`
    these are averaged over space: [B, C, S].
    """

    def __init__(self, depth: int, channels: int, pooled: bool = False) -> None:
        super().__init__()
        self.at1, self.at2 = nn.Conv1d(depth, depth, 1), nn.Conv1d(depth, 1, 1)
        self.fc1, self.fc2 = nn.Conv1d(depth, depth, 1), nn.Conv1d(depth, channels, 1)
        self.fc3, self.fc4 = nn.Conv1d(depth, depth, 1), nn.Conv1d(depth, channels, 1)
        self.pooled = pooled
        self.dropout = nn.Dropout(0.5 if pooled else 0.0)

    def forward(self, maps_BDTgg: Tensor, mask_BT: Tensor, aligned_BTS: Tensor) -> Modulation:
        mean_BDSgg = self.gather(maps_BDTgg, mask_BT, aligned_BTS)
        if self.pooled:
            mean_BDSgg = mean_BDSgg.mean((3, 4))
        mean_BDN, shape = mean_BDSgg.flatten(2), mean_BDSgg.shape[2:]
        shift_BCN = self.fc2(self.dropout(self.fc1(mean_BDN).relu()))
        scale_BCN = self.fc4(self.dropout(self.fc3(mean_BDN).relu()))
        return Modulation(scale_BCN.unflatten(2, shape), shift_BCN.unflatten(2, shape))

    def gather(self, maps_BDTgg: Tensor, mask_BT: Tensor, aligned_BTS: Tensor) -> Tensor:
        """Weighted means [B, D, S, g, g] of fine maps over fine time."""
        steps, cells = maps_BDTgg.shape[2], maps_BDTgg.shape[3:]
        if mask_BT.shape[1] != steps:
            mask_BT = F.adaptive_max_pool1d(mask_BT[:, None].float(), steps)[:, 0]
            aligned_BTS = F.adaptive_avg_pool2d(aligned_BTS[:, None], (steps, None))[:, 0]
        maps_BDTP = maps_BDTgg.to(self.at1.weight.dtype).flatten(3)
        attention = self.at2(self.at1(maps_BDTP.flatten(2)).relu()).sigmoid()
        weight_BTP = attention.view(-1, steps, maps_BDTP.shape[3])
        weight_BTP = weight_BTP * mask_BT[:, :, None].to(weight_BTP.dtype)
        aligned_BTS = aligned_BTS.to(weight_BTP.dtype)
        total_BSP = torch.einsum("btp,bts->bsp", weight_BTP, aligned_BTS) + 1e-6
        sum_BDSP = torch.einsum("bdtp,bts->bdsp", maps_BDTP * weight_BTP[:, None], aligned_BTS)
        return (sum_BDSP / total_BSP[:, None]).unflatten(3, cells)


class Mixing(nn.Module):
    """Concatenated scales and shifts of all levels -> those of one stage."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.conv_at, self.conv_at2 = nn.Conv1d(depth, channels, 1), nn.Conv1d(depth, channels, 1)

    def forward(self, levels: Modulation) -> Modulation:
        shape = levels.scale.shape[2:]
        scale_BCN = self.conv_at2(levels.scale.flatten(2)).sigmoid()
        shift_BCN = self.conv_at(levels.shift.flatten(2))
        return Modulation(scale_BCN.unflatten(2, shape), shift_BCN.unflatten(2, shape))


class Fusion(nn.Module):
    """Fine features and positions of the coarse steps -> modulations of every stage's features and
    of the logits.

    mixing: modulate each stage by all levels, as in the published models, or only by its own.
    divisor, padding: see `alignment`. ValueError for another padding.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depth: int,
        num_classes: int,
        mixing: bool = True,
        divisor: float = 8,
        padding: Padding = "released",
    ) -> None:
        super().__init__()
        self.stages, self.mixing = len(widths), mixing
        self.divisor, self.padding = divisor, one_of("padding", padding, Padding)
        for number, width in enumerate(widths, 2):
            self.add_module(f"rw{number}", Reweight(width, width))
            if mixing:
                self.add_module(f"mix{number}", Mixing(sum(widths), width))
        self.add_module(self.last, Reweight(depth, num_classes, pooled=True))

    @property
    def last(self) -> str:
        """Name of the level of the logits."""
        return f"rw{self.stages + 2}"

    def forward(self, fine: FineFeatures, centres_BS: Tensor) -> list[Modulation]:
        aligned_BTS = alignment(centres_BS, fine.mask_BT, self.divisor, self.padding)
        *stages, logits = (
            self.get_submodule(f"rw{number}")(maps_BDTgg, fine.mask_BT, aligned_BTS)
            for number, maps_BDTgg in enumerate(self._levels(fine.levels), 2)
        )
        return [*self._mixed(stages), Modulation(logits.scale.sigmoid(), logits.shift)]

    def _mixed(self, stages: list[Modulation]) -> list[Modulation]:
        if not self.mixing:
            return [Modulation(stage.scale.sigmoid(), stage.shift) for stage in stages]
        scales, shifts = zip(*stages, strict=True)
        levels = Modulation(torch.cat(scales, 1), torch.cat(shifts, 1))
        return [self.get_submodule(f"mix{n}")(levels) for n in range(2, self.stages + 2)]

    def _levels(self, levels: Mapping[str, Tensor]) -> list[Tensor]:
        names = [*(f"layer{number}" for number in range(1, self.stages + 1)), "conv5"]
        if missing := [name for name in names if name not in levels]:
            raise ValueError(
                f"fine features {', '.join(levels)}: {', '.join(missing)} missing: take them from "
                "`ssdet.models.networks.pyramid` of a network with as many stages as this one"
            )
        return [levels[name] for name in names]

    def reset_classes(self, num_classes: int) -> None:
        """Replace the layers whose shape depends on the number of classes by fresh ones."""
        level = self.get_submodule(self.last)
        assert isinstance(level, Reweight)
        for name in ("fc2", "fc4"):
            old = getattr(level, name)
            setattr(level, name, nn.Conv1d(old.in_channels, num_classes, 1).to(old.weight))
