"""Base class of the volume augmentations: draws, application, label components."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ssdet.augment.checks import check_batch, check_generator, destination, needs_gradient

COMPATS = ("paper", "released")
_BLOCK = 8


class Components(NamedTuple):
    """The labels that one augmented batch is made of, before they are mixed (released loss)."""

    labels: Tensor
    """[M, B, K, T] target of each component."""
    weights: Tensor
    """[M, B, T] share of the picture that the component has in a frame."""
    visible: Tensor
    """[M, B, T] 1 where the component's clip is in the frame, else 0."""

    @classmethod
    def of(cls, targets_BKT: Tensor) -> "Components":
        """One component, fully visible: the state before any augmentation."""
        batch, _, frames = targets_BKT.shape
        dtype = torch.promote_types(targets_BKT.dtype, torch.float32)
        ones_MBT = torch.ones(1, batch, frames, dtype=dtype, device=targets_BKT.device)
        return cls(targets_BKT[None], ones_MBT, ones_MBT.clone())

    def soft_targets(self) -> Tensor:
        """[B, K, T] in the dtype of the labels."""
        return (self.labels * self.weights[:, :, None]).sum(0).to(self.labels.dtype)


class Effect(Protocol):
    """What a set of draws does to a batch, clip by clip."""

    partner: list[int]
    """Clip mixed into clip b, -1 for none."""
    aligned: bool
    """Whether output frame t is made of frames t alone."""

    def write(self, b: int, out: Tensor, own: Tensor, other: Tensor, first: int) -> None:
        """Write clip b [C, T, H, W], or its frames from `first` on if aligned.

        In place, `own is out`; `other`, the partner, never shares memory with out.
        """

    def blend(self, b: int, own: Tensor, other: Tensor) -> Tensor:
        """Clip b after this effect, by differentiable operations: the values that write writes."""

    def relabel(self, components: Components) -> Components:
        """The components after this effect."""


@dataclass
class Shares:
    """How two clips divide each frame: clip b and frame t - shift of its partner."""

    partner: Tensor
    """[B] clip mixed into clip b."""
    shift: Tensor
    """[B] frames by which the partner is delayed."""
    own: Tensor
    """[B, T] weight of clip b."""
    other: Tensor
    """[B, T] weight of its partner."""
    visible: Tensor
    """bool [2, B, T] whether clip b, its partner, is in the frame."""

    def relabel(self, components: Components) -> Components:
        """Own components first, then the partner's (weights multiply, as in the published code)."""
        device, dtype = components.weights.device, components.weights.dtype
        own_BT, other_BT = self.own.to(device, dtype), self.other.to(device, dtype)
        mine_BT, theirs_BT = self.visible.to(device, dtype)
        labels, weights, visible = (part[:, self.partner.to(device)] for part in components)
        source_BT = torch.arange(own_BT.shape[1]) - self.shift[:, None]
        source_BT = source_BT.clamp(min=0).to(device)  # frames before the partner enters weigh 0
        labels = labels.take_along_dim(source_BT[None, :, None], -1)
        weights = weights.take_along_dim(source_BT[None], -1)
        visible = visible.take_along_dim(source_BT[None], -1)
        return Components(
            torch.cat([components.labels, labels]),
            torch.cat([components.weights * own_BT, weights * other_BT]),
            torch.cat([components.visible * mine_BT, visible * theirs_BT]),
        )


class Augmentation(ABC):
    """A volume augmentation: random draws on the CPU, then the work on the clips' own device."""

    @property
    @abstractmethod
    def draws_type(self) -> type:
        """Dataclass of random numbers (CPU tensors) that `apply` takes."""

    @abstractmethod
    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> Any:
        """Random numbers for a batch, from this CPU generator alone."""

    @abstractmethod
    def evaluation_draws(self, batch: int, frames: int, width: int) -> Any:
        """Fixed draws for validation, as in the published code's eval mode."""

    @abstractmethod
    def effects(self, draws: Any, clips_BCTHW: Tensor) -> list[Effect]:
        """The effects of these draws, in order of application."""

    def __call__(
        self,
        clips_BCTHW: Tensor,
        targets_BKT: Tensor,
        generator: torch.Generator,
        out: Tensor | None = None,
        inplace: bool = False,
        return_components: bool = False,
    ) -> tuple[Any, ...]:
        """Draw and apply: (clips, soft targets), and Components if asked for.

        Clips float [B, C, T, H, W], targets float [B, K, T]; both keep shape and dtype. Without
        `out` or `inplace` the result is new memory and nothing given is changed; targets are
        never changed. Clips that need a gradient, such as the features of a layer, get one through
        the mixture. Raises TypeError or ValueError where shapes, dtypes or memory do not fit.
        """
        check_batch(clips_BCTHW, targets_BKT)
        batch, _, frames, _, width = clips_BCTHW.shape
        draws = self.draw(batch, frames, width, generator)
        return self.apply(clips_BCTHW, targets_BKT, draws, out, inplace, return_components)

    def apply(
        self,
        clips_BCTHW: Tensor,
        targets_BKT: Tensor,
        draws: Any,
        out: Tensor | None = None,
        inplace: bool = False,
        return_components: bool = False,
    ) -> tuple[Any, ...]:
        """Apply given draws; arguments and result as in the call itself."""
        check_batch(clips_BCTHW, targets_BKT)
        if not isinstance(draws, self.draws_type):
            expected = self.draws_type.__name__
            raise TypeError(f"{self!r} applies {expected}, got {type(draws).__name__}")
        effects = self.effects(draws, clips_BCTHW)
        components = Components.of(targets_BKT)
        for effect in effects:
            components = effect.relabel(components)
        if needs_gradient(clips_BCTHW) and out is None and not inplace:
            mixed = clips_BCTHW if effects else clips_BCTHW.clone()
            for effect in effects:
                mixed = _blended(effect, mixed)
        else:
            mixed = destination(clips_BCTHW, out, inplace)
            _write(effects, clips_BCTHW, mixed)
        targets = components.soft_targets()
        return (mixed, targets, components) if return_components else (mixed, targets)


def _blended(effect: Effect, clips_BCTHW: Tensor) -> Tensor:
    clips = clips_BCTHW.unbind()
    pairs = zip(clips, effect.partner, strict=True)
    return torch.stack([effect.blend(b, own, clips[p]) for b, (own, p) in enumerate(pairs)])


@torch.no_grad()
def _write(effects: Sequence[Effect], source: Tensor, out: Tensor) -> None:
    for effect in effects:
        _run(effect, source, out)
        source = out
    if source is not out:
        out.copy_(source)


def _run(effect: Effect, clips_BCTHW: Tensor, out_BCTHW: Tensor) -> None:
    in_place = clips_BCTHW is out_BCTHW
    batch, _, frames, _, _ = out_BCTHW.shape
    order = list(_safe_order(effect.partner)) if in_place else [(b, False) for b in range(batch)]
    # Fresh pages for a spare clip cost more than the copy; where frames allow, copy few at a time.
    by_block = in_place and effect.aligned and out_BCTHW.device.type == "cpu"
    block, spare = _BLOCK if by_block else frames, torch.empty(0)
    for first in range(0, frames, block):
        source, target = (x[:, :, first : first + block] for x in (clips_BCTHW, out_BCTHW))
        saved = -1
        for b, keep in order:
            out = target[b]
            own = out if in_place else source[b]
            if keep:
                spare = spare.copy_(own) if spare.shape == own.shape else own.clone()
                saved = b
            partner = effect.partner[b]
            other = spare if saved >= 0 and partner == saved else source[partner]
            effect.write(b, out, own, other, first)


def _safe_order(partner: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Clips ordered so that each is overwritten after all that read it.

    A ring of partners has no such order: True marks the clip to copy before it is overwritten.
    One ring is finished before the next begins, so one spare clip serves all.
    """
    readers = [0] * len(partner)
    for b, p in enumerate(partner):
        if p >= 0 and p != b:
            readers[p] += 1
    free = [b for b, count in enumerate(readers) if count == 0 and partner[b] != b]
    rings = [b for b, p in enumerate(partner) if p >= 0]
    done: set[int] = set()
    while free or rings:
        keep = not free
        b = rings.pop() if keep else free.pop()
        if b in done:
            continue
        done.add(b)
        yield b, keep
        p = partner[b]
        if p >= 0 and p != b:
            readers[p] -= 1
            if readers[p] == 0 and partner[p] != p:
                free.append(p)


def uniform(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Integers uniform in low ... high (both included), element by element."""
    check_generator(generator)
    unit = torch.rand(low.shape, generator=generator, dtype=torch.float64)
    return low + (unit * (high - low + 1)).floor().long()


def random_partners(batch: int, generator: torch.Generator) -> Tensor:
    """[B] a permutation of the batch; a clip may be its own partner."""
    check_generator(generator)
    return torch.randperm(batch, generator=generator)


def fixed_partners(batch: int, offset: int) -> Tensor:
    """[B] partners for validation: half the batch and `offset` clips further on."""
    return (torch.arange(batch) + batch // 2 + offset) % batch
