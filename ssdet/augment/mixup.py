"""Volume MixUp: two clips that overlap in time and fade into each other."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ssdet.augment.base import (
    COMPATS,
    Augmentation,
    Effect,
    MixWeights,
    fixed_partners,
    random_partners,
    uniform,
)
from ssdet.augment.checks import check_choice, check_draw
from ssdet.augment.masks import alpha_BT, check_mask, present_2BT, released_weights


@dataclass
class OverlapDraws:
    """Clip 1 in frames 0 ... n1-1, its partner in frames shift ... shift+n2-1; all [B]."""

    partner: Tensor
    n1: Tensor
    n2: Tensor
    shift: Tensor

    def check(self, batch: int, frames: int) -> None:
        """Raise ValueError unless every frame is covered by a clip, without a gap."""
        check_draw("partner", self.partner, (batch,), 0, batch - 1)
        check_draw("n1", self.n1, (batch,), 1, frames)
        check_draw("n2", self.n2, (batch,), 1, frames)
        check_draw("shift", self.shift, (batch,), 0, self.n1)
        end = (self.shift + self.n2).maximum(self.n1)
        check_draw("max(n1, shift + n2)", end, (batch,), frames, 2 * frames)


@dataclass
class WindowDraws:
    """Windows of the published code, before they are moved to cover the clip."""

    partner: Tensor
    """[B] clip mixed in."""
    starts: Tensor
    """[2, B] first frame of the clip's and of the partner's window."""
    lengths: Tensor
    """[2, B] frames in each window."""

    def check(self, batch: int, frames: int) -> None:
        """Raise ValueError unless partners are in the batch and windows in the clip."""
        check_draw("partner", self.partner, (batch,), 0, batch - 1)
        check_draw("starts", self.starts, (2, batch), 0, frames - 1)
        check_draw("lengths", self.lengths, (2, batch), 1, frames - self.starts)


def stretched(draws: WindowDraws, frames: int) -> tuple[Tensor, Tensor]:
    """Starts and lengths [2, B] of windows stretched to cover the clip, as in the published code.

    The earlier window moves to frame 0, then the one that ends last grows to the end; on a tie the
    first.
    """
    clip = torch.arange(draws.starts.shape[1])
    starts, lengths = draws.starts.clone(), draws.lengths.clone()
    starts[(starts[1] < starts[0]).long(), clip] = 0
    ends = starts + lengths
    last = (ends[1] > ends[0]).long()
    lengths[last, clip] = frames - starts[last, clip]
    return starts, lengths


@dataclass(frozen=True)
class VolumeMixUp(Augmentation):
    """Mix each clip with a random partner along time, labels in the same proportion.

    mask "seamless" ramps through the overlap, "half" mixes it 0.5 / 0.5, "step" cuts mid-overlap.
    `ramp` (not in the paper) is the share of the overlap that a seamless ramp takes; 0 is a hard
    boundary in its middle (see `temporal_alpha`).
    compat="released": windows of the published code, partners unshifted (frame t with frame t),
    ramps k / (L + 1); with an odd T a frame between the windows may be black.
    Paper: "Volume MixUp", Table A.1b.
    """

    mask: str = "seamless"
    compat: str = "paper"
    ramp: float = 1.0

    def __post_init__(self) -> None:
        check_mask(self.mask, self.ramp)
        check_choice("compat", self.compat, COMPATS)
        if self.compat == "released" and (self.mask != "seamless" or self.ramp != 1):
            raise ValueError(
                f"mask={self.mask!r}, ramp={self.ramp}: expected 'seamless' and 1 with "
                "compat='released'"
            )

    @property
    def draws_type(self) -> type:
        return WindowDraws if self.compat == "released" else OverlapDraws

    def draw(
        self, batch: int, frames: int, width: int, generator: torch.Generator
    ) -> OverlapDraws | WindowDraws:
        if self.compat == "released":  # two windows of T/2 ... T frames anywhere in the clip
            full = torch.full((2, batch), frames)
            lengths = uniform(full // 2, full, generator)
            starts = uniform(torch.zeros_like(full), full - lengths, generator)
            return WindowDraws(random_partners(batch, generator), starts, lengths)
        # Half the clips go 1 -> 2, half 1 -> 2 -> 1; every frame is covered.
        full, half = torch.full((batch,), frames), torch.full((batch,), (frames + 1) // 2)
        returns = uniform(torch.zeros_like(full), torch.ones_like(full), generator) == 1
        n1 = uniform(torch.where(returns, full, half), full, generator)
        n2 = uniform(half, torch.where(returns, full - 1, full), generator)
        low = torch.where(returns, 0, full - n2)
        shift = uniform(low, torch.where(returns, full - n2 - 1, n1), generator)
        return OverlapDraws(random_partners(batch, generator), n1, n2, shift)

    def evaluation_draws(self, batch: int, frames: int, width: int) -> OverlapDraws | WindowDraws:
        partner, quarter = fixed_partners(batch, offset=1), frames // 4
        three_quarters = 3 * frames // 4
        if self.compat == "released":
            starts = torch.tensor([0, quarter])[:, None].expand(2, batch)
            return WindowDraws(partner, starts, torch.full((2, batch), three_quarters))
        one = torch.ones(batch, dtype=torch.long)
        return OverlapDraws(partner, one * three_quarters, one * (frames - quarter), one * quarter)

    def effects(self, draws: OverlapDraws | WindowDraws, clips_BCTHW: Tensor) -> list[Effect]:
        batch, _, frames, _, _ = clips_BCTHW.shape
        draws.check(batch, frames)
        if isinstance(draws, OverlapDraws):
            shift = draws.shift
            own_BT = alpha_BT(draws.n1, draws.n2, shift, frames, self.mask, self.ramp)
            other_BT, visible_2BT = 1 - own_BT, torch.stack([own_BT > 0, own_BT < 1])
        else:
            shift = torch.zeros_like(draws.partner)
            starts, lengths = stretched(draws, frames)
            own_BT, other_BT = released_weights(starts, lengths, frames, whole=1)
            visible_2BT = present_2BT(starts, lengths, frames)
        weights = MixWeights(draws.partner, shift, own_BT, other_BT, visible_2BT)
        return [_Fade(weights, clips_BCTHW)]


class _Fade:
    aligned = False

    def __init__(self, weights: MixWeights, clips_BCTHW: Tensor) -> None:
        self.relabel = weights.relabel
        self.partner: list[int] = weights.partner.tolist()
        self.shift = weights.shift.tolist()
        black_BT = ~weights.visible.any(0)
        self.runs = [_runs(row) for row in weights.own.masked_fill(black_BT, -1).tolist()]
        self.alpha_BT11 = weights.own.to(clips_BCTHW)[..., None, None]
        self.black_BT11 = black_BT.to(clips_BCTHW.device)[..., None, None]

    def write(self, b: int, out: Tensor, own: Tensor, other: Tensor, first: int) -> None:
        shift = self.shift[b]
        for begin, end, weight in self.runs[b]:
            frames, other_frames = slice(begin, end), slice(begin - shift, end - shift)
            if weight < 0:
                out[:, frames].zero_()
            elif weight == 0:
                out[:, frames].copy_(other[:, other_frames])
            elif weight < 1:
                alpha = self.alpha_BT11[b, frames]
                torch.lerp(other[:, other_frames], own[:, frames], alpha, out=out[:, frames])
            elif own is not out:
                out[:, frames].copy_(own[:, frames])

    def blend(self, b: int, own: Tensor, other: Tensor) -> Tensor:
        # Frames that roll around have weight 0: the partner has not begun.
        mixed = torch.lerp(other.roll(self.shift[b], 1), own, self.alpha_BT11[b])
        return mixed.masked_fill(self.black_BT11[b], 0)


def _runs(weights: list[float]) -> list[tuple[int, int, float]]:
    """Runs of frames that are all own (1), all partner (0), mixed (0.5) or black (-1)."""
    runs, first = [], 0
    for kind, frames in groupby(weights, key=lambda weight: 0.5 if 0 < weight < 1 else weight):
        last = first + len(list(frames))
        runs.append((first, last, kind))
        first = last
    return runs
