"""Multi-stage fusion: what a fine stream sees scales and shifts what a coarse one does.

Kahatapitiya & Ryoo, "Coarse-Fine Networks", CVPR 2021; MODELS.md 5.4. Parameters bear the published
names. Fine maps are small (7 x 7) and every operation is pointwise in space, so all is done at that
size and the result replicated, where the published code first replicates the maps and multiplies
them out over both times; for pictures whose maps are multiples of 7 positions both are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.networks.pyramid import FineFeatures
from ssdet.models.networks.slow import checked

Padding = Literal["released", "exact"]


class Modulation(NamedTuple):
    """A scale and a shift, [B, C, S, g, g] of features [B, C, S, H, W] or [B, K, S] of logits."""

    scale: Tensor
    shift: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Features or logits, scaled and shifted."""
        if x.ndim == 3:
            return x * self.scale + self.shift
        return x * replicated(self.scale, x) + replicated(self.shift, x)

    def mean(self) -> "Modulation":
        """That of a whole clip, [B, K, 1]: the means over its steps."""
        return Modulation(*(part.mean(2, keepdim=True) for part in self))


def replicated(x_BCSgg: Tensor, like_BCSHW: Tensor) -> Tensor:
    """Every value at all positions of its cell of another map (the nearest, where none fits)."""
    return F.interpolate(x_BCSgg, size=like_BCSHW.shape[2:], mode="nearest")


def alignment(
    centres_BS: Tensor, mask_BT: Tensor, divisor: float = 8, padding: Padding = "released"
) -> Tensor:
    """Gaussians [B, T', S] over fine steps around the coarse steps' places, 1 at their largest.

    Their deviation is the number of existing fine steps over `divisor` (Table A.1i: T/8, T/16,
    T/32). The largest is taken of existing steps (padding="exact") or also of those that fill up a
    batch, where a clip may end; then there may be too little left of a Gaussian to count.
    """
    deviation_B11 = mask_BT.sum(1).to(centres_BS.dtype)[:, None, None] / divisor
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device, dtype=centres_BS.dtype)
    distance_BTS = steps_T[:, None] - centres_BS[:, None]
    value_BTS = (-(distance_BTS**2) / (2 * deviation_B11**2 + 1e-16)).exp()
    counted_BTS = value_BTS * mask_BT[..., None] if padding == "exact" else value_BTS
    return value_BTS / (counted_BTS.amax(1, keepdim=True) + 1e-16)


class Reweight(nn.Module):
    """One level: fine maps [B, D, T', g, g], their mask and alignment -> scale and shift.

    Fine steps are weighted by attention and alignment for each coarse step. With `pooled` these are
    averaged over space: [B, C, S].
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
    """Scales and shifts of all levels, in channels one after another -> those of one stage."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.conv_at, self.conv_at2 = nn.Conv1d(depth, channels, 1), nn.Conv1d(depth, channels, 1)

    def forward(self, levels: Modulation) -> Modulation:
        shape = levels.scale.shape[2:]
        scale_BCN = self.conv_at2(levels.scale.flatten(2)).sigmoid()
        shift_BCN = self.conv_at(levels.shift.flatten(2))
        return Modulation(scale_BCN.unflatten(2, shape), shift_BCN.unflatten(2, shape))


class Fusion(nn.Module):
    """Fine features and the coarse steps' places among them -> a modulation of every stage's
    features and one of the logits.

    mixing: each stage's comes from all levels, as in the published models; without, from its own.
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
        self.divisor, self.padding = divisor, checked("padding", padding, Padding)
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
        found: list[Modulation] = []
        for number, maps_BDTgg in enumerate(self._levels(fine.levels), 2):
            level = self.get_submodule(f"rw{number}")
            found.append(level(maps_BDTgg, fine.mask_BT, aligned_BTS))
        *stages, logits = found
        return [*self._mixed(stages), Modulation(logits.scale.sigmoid(), logits.shift)]

    def _mixed(self, stages: list[Modulation]) -> list[Modulation]:
        if not self.mixing:
            return [Modulation(stage.scale.sigmoid(), stage.shift) for stage in stages]
        scales, shifts = zip(*stages, strict=True)
        together = Modulation(torch.cat(scales, 1), torch.cat(shifts, 1))
        return [self.get_submodule(f"mix{n}")(together) for n in range(2, self.stages + 2)]

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
