"""Volume CutMix: two clips side by side in the frame."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssdet.augment.base import (
    COMPATS,
    Augmentation,
    Effect,
    MixWeights,
    fixed_partners,
    random_partners,
)
from ssdet.augment.checks import check_choice, check_draw
from ssdet.augment.masks import alpha_BT, present_2BT, released_weights, spatial_window
from ssdet.augment.mixup import OverlapDraws, VolumeMixUp, WindowDraws

WINDOWS = ("view", "transient")
PANS = ("opposite", "same")


@dataclass
class ViewDraws:
    """Draws of the constant window."""

    partner: Tensor
    """[B] clip on the right."""

    def check(self, batch: int, frames: int) -> None:
        """Raise ValueError unless the partners are clips of the batch."""
        check_draw("partner", self.partner, (batch,), 0, batch - 1)


@dataclass
class _Layout:
    """Position of each clip in the frame."""

    weights: MixWeights
    rows: Tensor
    """[B, T, W] mask of the own clip."""
    own_pan: list[int]
    """[T] column of the own clip at column 0 of the output."""
    other_pan: list[int]
    """[T] the same for the partner, before wrapping around."""


@dataclass(frozen=True)
class VolumeCutMix(Augmentation):
    """Show each clip left and a random partner right of a vertical plane with a soft edge.

    window "view": the plane is fixed in the middle while both clips move behind it, labels half
    and half; pan "opposite" moves the right clip the other way (published code), "same" moves
    both left to right. window "transient": the plane crosses the frame as MixUp's weight changes,
    labels by area. `delta` is half the soft edge in columns (default width // 16, 0: hard edge);
    the paper only calls it a small value. compat="released": ramps k / (overlap + 1) of the
    published code and, for "transient", windows that may leave frames black.
    Paper: "Volume CutMix", appendix "On the Spatial Mask", Table A.1c.
    """

    window: str = "view"
    delta: float | None = None
    pan: str = "opposite"
    compat: str = "paper"

    def __post_init__(self) -> None:
        check_choice("window", self.window, WINDOWS)
        check_choice("pan", self.pan, PANS)
        check_choice("compat", self.compat, COMPATS)
        if self.delta is not None and self.delta < 0:
            raise ValueError(f"delta={self.delta}: expected at least 0")
        if self.compat == "released" and (self.delta is not None or self.pan != "opposite"):
            raise ValueError("compat='released' has a fixed delta and pan: omit them")

    @property
    def draws_type(self) -> type:
        if self.window == "view":
            return ViewDraws
        return WindowDraws if self.compat == "released" else OverlapDraws

    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> Any:
        if self.window == "view":
            return ViewDraws(random_partners(batch, generator))
        return VolumeMixUp(compat=self.compat).draw(batch, frames, width, generator)

    def evaluation_draws(self, batch: int, frames: int, width: int) -> Any:
        partner = fixed_partners(batch, offset=2)
        if self.window == "view":
            return ViewDraws(partner)
        draws = VolumeMixUp(compat=self.compat).evaluation_draws(batch, frames, width)
        return replace(draws, partner=partner)

    def effects(self, draws: Any, clips_BCTHW: Tensor) -> list[Effect]:
        batch, _, frames, _, width = clips_BCTHW.shape
        draws.check(batch, frames)
        if isinstance(draws, ViewDraws):
            layout = self._view(draws, frames, width)
        elif isinstance(draws, WindowDraws):
            layout = _released_transient(draws, frames, width)
        else:
            layout = self._transient(draws, frames, width)
        return [_Cut(layout, clips_BCTHW)]

    def _delta(self, width: int) -> float:
        return width // 16 if self.delta is None else self.delta

    def _view(self, draws: ViewDraws, frames: int, width: int) -> _Layout:
        if self.compat == "released":
            wide = torch.tensor(9 * width // 16)
            row_W = 1 - _released_ramp(wide, wide, width)[1]
            share = float(row_W.mean())
        else:
            row_W, share = spatial_window((width + 1) // 2, width, self._delta(width)), 0.5
        batch, travel = len(draws.partner), 7 * width // 16
        own_BT = torch.full((batch, frames), share, dtype=torch.float64)
        visible_2BT = torch.ones(2, batch, frames, dtype=torch.bool)
        weights = MixWeights(draws.partner, draws.partner * 0, own_BT, 1 - own_BT, visible_2BT)
        steps = [t * travel // frames for t in range(frames)]
        back = [step - travel if self.pan == "same" else -step for step in steps]
        return _Layout(weights, row_W.expand(batch, frames, width), steps, back)

    def _transient(self, draws: OverlapDraws, frames: int, width: int) -> _Layout:
        alpha = alpha_BT(draws.n1, draws.n2, draws.shift, frames, "seamless")
        plane_BT = (width * alpha + 0.5).floor()
        rows_BTW = spatial_window(plane_BT, width, self._delta(width))
        # Outside the overlap the ramp would add columns of a clip that is absent.
        t = torch.arange(1, frames + 1)
        n1, end, shift = draws.n1[:, None], (draws.n2 + draws.shift)[:, None], draws.shift[:, None]
        overlap_BT = (t > shift) & (t < torch.where(end >= n1, n1, end))
        rows_BTW = torch.where(overlap_BT[..., None], rows_BTW, alpha[..., None])
        own_BT = rows_BTW.mean(-1)
        visible_2BT = torch.stack([own_BT > 0, own_BT < 1])
        weights = MixWeights(draws.partner, draws.shift, own_BT, 1 - own_BT, visible_2BT)
        return _Layout(weights, rows_BTW, [0] * frames, [0] * frames)


def _released_transient(draws: WindowDraws, frames: int, width: int) -> _Layout:
    """Windows as drawn, widened by W/16 in the overlap; frames outside both windows are black."""
    present = present_2BT(draws.starts, draws.lengths, frames)
    wide_2BT = released_weights(draws.starts, draws.lengths, frames, whole=width)
    widened_2BT = (wide_2BT + width // 16).clamp(0, width)
    wide_2BT = torch.where(present[0] & present[1], widened_2BT, wide_2BT)
    left_BTW, other_BTW = _released_ramp(wide_2BT[0], wide_2BT[1], width)
    own_BTW = (1 - other_BTW) * left_BTW
    own_BT, other_BT = own_BTW.mean(-1), other_BTW.mean(-1)
    visible_2BT = torch.stack([own_BT > 0, other_BT > 0])
    weights = MixWeights(draws.partner, draws.partner * 0, own_BT, other_BT, visible_2BT)
    return _Layout(weights, own_BTW, [0] * frames, [0] * frames)


def _released_ramp(own_wide: Tensor, other_wide: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Columns of the left window and weights of the right one, [..., W] for widths [...].

    Of n columns that both cover the right one has weights k / (n + 1). float32 as in the published
    code: rounding decides which columns a window of fractional width covers.
    """
    column = torch.arange(width)
    edge = (width - other_wide)[..., None]
    left, right = column < own_wide[..., None], column >= edge
    both = left & right
    other = (column + 1 - edge) * (1 / (both.float().sum(-1, keepdim=True) + 1)) * both
    return left, other.masked_fill(right & ~both, 1)


class _Cut:
    def __init__(self, layout: _Layout, clips_BCTHW: Tensor) -> None:
        weights, rows_BTW = layout.weights, layout.rows
        self.relabel = weights.relabel
        self.partner: list[int] = weights.partner.tolist()
        self.shift = weights.shift.tolist()
        self.aligned = not any(self.shift)
        self.pans = list(zip(layout.own_pan, layout.other_pan, strict=True))
        width = rows_BTW.shape[-1]
        self.left = (rows_BTW == 1).long().cumprod(-1).sum(-1).tolist()
        self.right = (width - (rows_BTW == 0).flip(-1).long().cumprod(-1).sum(-1)).tolist()
        black_BT = ~weights.visible.any(0)
        self.black = black_BT.tolist()
        self.black_BT11 = black_BT.to(clips_BCTHW.device)[..., None, None]
        self.rows_BTW = rows_BTW.to(clips_BCTHW)
        columns_T2W = torch.tensor(self.pans)[..., None] + torch.arange(width)
        self.columns_T2W = (columns_T2W % width).to(clips_BCTHW.device)

    def write(self, b: int, out: Tensor, own: Tensor, other: Tensor, first: int) -> None:
        if out.device.type != "cpu":
            return self.write_gathered(b, out, own, other)
        width = out.shape[-1]
        for i in range(out.shape[1]):
            t, frame = first + i, out[:, i]
            if self.black[b][t]:
                frame.zero_()
                continue
            (own_pan, other_pan), left, right = self.pans[t], self.left[b][t], self.right[b][t]
            own_part = _columns(own[:, i], own_pan, right)
            if own is out and own_pan:
                own_part = own_part.clone()  # else the moving view reads columns just written
            if own is not out or own_pan:
                frame[..., :left].copy_(own_part[..., :left])
            if left == width:
                continue  # the partner may have no such frame
            other_part = _columns(other[:, i - self.shift[b]], left + other_pan, width - left)
            frame[..., right:].copy_(other_part[..., right - left :])
            if left < right:
                row, strip = self.rows_BTW[b, t, left:right], frame[..., left:right]
                torch.lerp(other_part[..., : right - left], own_part[..., left:], row, out=strip)

    def write_gathered(self, b: int, out: Tensor, own: Tensor, other: Tensor) -> None:
        """The same by gathers: a few launches per clip instead of a few per frame."""
        own_view, other_view = self._views(b, own, other)
        torch.lerp(other_view, own_view, self.rows_BTW[b, :, None], out=out)
        if any(self.black[b]):
            out.masked_fill_(self.black_BT11[b], 0)

    def blend(self, b: int, own: Tensor, other: Tensor) -> Tensor:
        own_view, other_view = self._views(b, own, other)
        mixed = torch.lerp(other_view, own_view, self.rows_BTW[b, :, None])
        return mixed.masked_fill(self.black_BT11[b], 0)

    def _views(self, b: int, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        # Frames that roll around have weight 0: the partner has not begun.
        delayed = other.roll(self.shift[b], 1)
        own_view = own.take_along_dim(self.columns_T2W[None, :, :1], -1)
        return own_view, delayed.take_along_dim(self.columns_T2W[None, :, 1:], -1)


def _columns(frame_CHW: Tensor, first: int, count: int) -> Tensor:
    """Columns first ... first+count-1, wrapping around the edge."""
    width = frame_CHW.shape[-1]
    if first >= 0 and first + count <= width:
        return frame_CHW[..., first : first + count]
    return frame_CHW[..., torch.arange(first, first + count) % width]
