"""Temporal and spatial mixing masks of the paper and of its published code."""

import torch
from torch import Tensor

from ssdet.augment.checks import check_choice

TEMPORAL_MASKS = ("seamless", "half", "step")


def check_mask(mask: str, ramp: float) -> None:
    """Raise ValueError for an unknown temporal mask or a ramp outside 0 ... 1."""
    check_choice("mask", mask, TEMPORAL_MASKS)
    if not 0 <= ramp <= 1:
        raise ValueError(f"ramp={ramp}: expected 0 (hard boundary) to 1 (the whole overlap)")
    if ramp != 1 and mask != "seamless":
        raise ValueError(f"ramp={ramp}: expected 1 for mask={mask!r}, which has no ramp")


def temporal_alpha(
    n1: int, n2: int, shift: int, frames: int, mask: str = "seamless", ramp: float = 1.0
) -> Tensor:
    """Weight of clip 1 at each output frame, float64 [frames].

    Clip 1 covers frames 1 ... n1, clip 2 frames shift+1 ... shift+n2. If clip 2 ends last the
    result falls from 1 to 0, else it dips and returns to 1. mask "half" is 0.5 wherever both
    clips exist, "step" switches where the seamless weight passes one half.

    `ramp` (not in the paper) narrows every seamless ramp to this share of its length around its
    middle: 1/2 + (a - 1/2) / ramp clipped to [0, 1], where a is the paper's weight. At 0 the ramps
    are steps (a dip shows only clip 2 for half the overlap), and a frame exactly at a step is half
    and half, the limit of small ramps.
    Raises ValueError for lengths below 1, a negative shift, or a gap (shift > n1).
    Paper: "Volume MixUp" and appendix "On the Truncation Operator"; shift = n1 is a hard cut.
    """
    check_mask(mask, ramp)
    if min(n1, n2, frames) < 1 or shift < 0:
        actual = f"n1={n1}, n2={n2}, shift={shift}, frames={frames}"
        raise ValueError(f"{actual}: expected lengths >= 1 and shift >= 0")
    if shift > n1:
        raise ValueError(f"shift={shift} leaves a gap after clip 1 (n1={n1}): use shift <= n1")
    n1_B, n2_B, shift_B = torch.tensor([[n1], [n2], [shift]])
    return alpha_BT(n1_B, n2_B, shift_B, frames, mask, ramp)[0]


def alpha_BT(
    n1_B: Tensor, n2_B: Tensor, shift_B: Tensor, frames: int, mask: str, ramp: float = 1.0
) -> Tensor:
    """`temporal_alpha` for a batch, unchecked."""
    t = torch.arange(1, frames + 1, dtype=torch.float64)
    n1, n2, shift = n1_B[:, None], n2_B[:, None], shift_B[:, None]
    falling = (n1 - t) / (n1 - shift).clamp(min=1)
    dipping = (n2 + 2 * shift - 2 * t).abs() / n2
    alpha = torch.where(n2 + shift < n1, dipping, falling).clamp(0, 1)
    # Where only one clip exists it has all the weight.
    alpha = alpha.masked_fill(t <= shift, 1).masked_fill(t > n1, 0)
    if mask == "half":
        return alpha.masked_fill((t > shift) & (t <= n1) & (t <= n2 + shift), 0.5)
    if mask == "step":
        return (alpha + 0.5).floor()
    if ramp == 1:
        return alpha
    if ramp == 0:
        return ((alpha - 0.5).sign() + 1) / 2
    return ((alpha - 0.5) / ramp + 0.5).clamp(0, 1)


def spatial_window(position: float | Tensor, width: int, delta: float) -> Tensor:
    """One row of the spatial mask M, float64 [width]: 1 left of the plane, 0 right of it.

    `position` is the column of the vertical plane, `delta` half the width of the ramp (0: a hard
    edge); positions of shape [...] give rows [..., width]. Raises ValueError for width < 1 or
    delta < 0. Paper: appendix "On the Spatial Mask".
    """
    if width < 1 or delta < 0:
        raise ValueError(f"width={width}, delta={delta}: expected width >= 1 and delta >= 0")
    plane = torch.as_tensor(position, dtype=torch.float64)[..., None]
    column = torch.arange(width, dtype=torch.float64)
    if delta == 0:
        return (column < plane).double()
    return ((plane + delta - column) / (2 * delta)).clamp(0, 1)


def present_2BT(starts_2B: Tensor, lengths_2B: Tensor, frames: int) -> Tensor:
    """Where each of two windows covers a frame, bool [2, B, frames]."""
    t = torch.arange(frames)
    return (t >= starts_2B[..., None]) & (t < (starts_2B + lengths_2B)[..., None])


def released_weights(starts_2B: Tensor, lengths_2B: Tensor, frames: int, whole: int) -> Tensor:
    """Weights of both clips in the published code, of `whole` in all: float32 [2, B, frames].

    In an overlap of L frames the ramp is k / (L + 1). If one window lies inside the other, the
    outer one follows a V whose centre is half a frame early. Of equal starts or ends the first
    clip's counts as later. float32 and this order of operations matter: rounding decides which
    columns a moving window covers.
    """
    ends_2B = starts_2B + lengths_2B
    present = present_2BT(starts_2B, lengths_2B, frames)
    overlap = (present[0] & present[1]).float()
    step = 1 / (overlap.sum(-1, keepdim=True) + 1)
    t = torch.arange(1, frames + 1)
    begin, end = starts_2B.amax(0)[:, None], ends_2B.amin(0)[:, None]
    rise = (t - begin) * step * overlap * whole
    outer = (t - 0.5 * (begin + end)).abs() * 2 * step * overlap * whole
    later_start = (starts_2B[0] >= starts_2B[1])[:, None]
    later_end = (ends_2B[0] >= ends_2B[1])[:, None]
    ramp = torch.where(later_start == later_end, rise, outer)
    pair = torch.stack([ramp, whole - ramp])
    pair = torch.where(later_end, pair, pair.flip(0))
    return torch.where(overlap.bool(), pair, present.float() * whole)
