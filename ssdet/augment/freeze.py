"""Volume Freeze: repeat one frame for a while and label the repeated frames as background."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdet.augment.base import COMPATS, Augmentation, Components, Effect, uniform
from ssdet.augment.checks import check_choice, check_draw

BACKGROUNDS = ("class", "zero")


def freeze(
    clip_CTHW: Tensor, target_KT: Tensor, start: int, length: int, background: str = "class"
) -> tuple[Tensor, Tensor]:
    """Show the frame at `start` `length` times, push later frames back and cut at T.

    Columns start ... start+length-1 of the target become background: one-hot of class 0
    ("class") or all zero ("zero"); later columns move with their frames. Returns new tensors.
    Raises ValueError if the frozen frames do not fit into the clip.
    Paper: "Volume Freeze" with r = start + 1, m = length.
    """
    check_choice("background", background, BACKGROUNDS)
    frames = clip_CTHW.shape[1]
    if target_KT.dim() != 2 or target_KT.shape[1] != frames:
        raise ValueError(f"target: shape {tuple(target_KT.shape)}, expected [K, {frames}]")
    if start < 0 or length < 1 or start + length > frames:
        raise ValueError(
            f"start={start}, length={length}: expected 0 <= start, 1 <= length, start + length <= "
            f"{frames}"
        )
    source_BT, _ = _timeline(torch.tensor([[start]]), torch.tensor([[length]]), frames)
    source_T = source_BT[0]
    target = target_KT.index_select(1, source_T.to(target_KT.device))
    target[:, start : start + length] = 0
    if background == "class":
        target[0, start : start + length] = 1
    return clip_CTHW.index_select(1, source_T.to(clip_CTHW.device)), target


@dataclass
class FreezeDraws:
    """Frozen segments of each clip, in time order; [B] is read as [B, 1]."""

    starts: Tensor
    """[B, segments] first frozen frame of the output, from 0."""
    lengths: Tensor
    """[B, segments] number of frozen frames including the first."""


@dataclass(frozen=True)
class VolumeFreeze(Augmentation):
    """Freeze one frame per segment and label the frozen frames as background.

    With several segments the clip is divided into equal windows with one freeze in each; source
    frames are consumed in order. compat="released" draws 1 ... T/2-1 frozen frames (one: only the
    label changes). The published code's background, class 0 of the K classes, corresponds to
    background="class" on labels that are not shifted. Paper: "Volume Freeze", Table A.1a.
    """

    segments: int = 1
    background: str = "class"
    compat: str = "paper"

    def __post_init__(self) -> None:
        check_choice("background", self.background, BACKGROUNDS)
        check_choice("compat", self.compat, COMPATS)
        if self.segments < 1:
            raise ValueError(f"segments={self.segments}: expected at least 1")
        if self.compat == "released" and self.segments > 1:
            raise ValueError(f"segments={self.segments}: the released freeze has one segment")

    @property
    def draws_type(self) -> type[FreezeDraws]:
        return FreezeDraws

    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> FreezeDraws:
        if self.compat == "released":
            if frames < 4:
                raise ValueError(f"{frames} frames: expected at least 4 (compat='released')")
            one = torch.ones(batch, 1, dtype=torch.long)
            lengths = uniform(one, one * (frames // 2 - 1), generator)
            return FreezeDraws(uniform(one * 0, frames - lengths, generator), lengths)
        if frames < 2 * self.segments:
            raise ValueError(
                f"{frames} frames, {self.segments} segments: expected at least 2 frames each"
            )
        edges = torch.arange(self.segments + 1) * frames // self.segments
        begin, end = edges[:-1].expand(batch, -1), edges[1:].expand(batch, -1)
        starts = uniform(begin, end - 2, generator)
        lengths = uniform(torch.full_like(starts, 2), end - starts, generator)
        return FreezeDraws(starts, lengths)

    def evaluation_draws(self, batch: int, frames: int, width: int) -> FreezeDraws:
        odd = torch.arange(batch)[:, None] % 2 == 1
        starts = torch.where(odd, 5 * frames // 8, frames // 8)
        return FreezeDraws(starts, torch.full_like(starts, max(1, frames // 4)))

    def effects(self, draws: FreezeDraws, clips_BCTHW: Tensor) -> list[Effect]:
        batch, _, frames, _, _ = clips_BCTHW.shape
        starts_BS = draws.starts.reshape(len(draws.starts), -1)
        lengths_BS = draws.lengths.reshape(len(draws.lengths), -1)
        shape = (batch, starts_BS.shape[1])
        check_draw("starts", starts_BS, shape, 0, frames - 1)
        check_draw("lengths", lengths_BS, shape, 1, frames - starts_BS)
        source_BT, frozen_BT = _timeline(starts_BS, lengths_BS, frames)
        return [_Freeze(source_BT, frozen_BT, self.background, clips_BCTHW.device)]


class _Freeze:
    aligned = False

    def __init__(
        self, source_BT: Tensor, frozen_BT: Tensor, background: str, device: torch.device
    ) -> None:
        self.partner = [-1] * len(source_BT)
        self.sources, self.source_BT = source_BT.tolist(), source_BT.to(device)
        self.frozen_BT, self.background = frozen_BT, background

    def write(self, b: int, out: Tensor, own: Tensor, other: Tensor, first: int) -> None:
        if out.device.type != "cpu":  # one gather costs less than many small launches
            out.copy_(own.index_select(1, self.source_BT[b]))
            return
        # Sources are never later than t: going backwards, frames are read before overwritten.
        for t in reversed(range(out.shape[1])):
            source = self.sources[b][t]
            if source != t or own is not out:
                out[:, t].copy_(own[:, source])

    def blend(self, b: int, own: Tensor, other: Tensor) -> Tensor:
        frames = own.unbind(1)  # unlike gather, its gradient sums repeats in a fixed order
        return torch.stack([frames[source] for source in self.sources[b]], 1)

    def relabel(self, components: Components) -> Components:
        labels = components.labels
        source_BT, frozen_BT = (x.to(labels.device) for x in (self.source_BT, self.frozen_BT))
        labels = labels.take_along_dim(source_BT[None, :, None], -1)
        labels = labels.masked_fill(frozen_BT[None, :, None], 0)
        if self.background == "class":
            labels[:, :, 0].masked_fill_(frozen_BT[None], 1)
        return components._replace(labels=labels)


def _timeline(starts_BS: Tensor, lengths_BS: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Source frame of each output frame, and whether it is frozen; both [B, T]."""
    t = torch.arange(frames)
    since_BST = t - starts_BS[..., None]
    inside_BST = (since_BST >= 0) & (since_BST < lengths_BS[..., None])
    still_BT = (inside_BST & (since_BST > 0)).any(1)
    return t - still_BT.long().cumsum(-1), inside_BST.any(1)
