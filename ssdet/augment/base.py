"""Base class of the volume augmentations: random draws, their application, label components."""

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
    """Labels of an augmented batch before they are mixed, as the published loss takes them."""

    labels: Tensor
    """[M, B, K, T] target of each component."""
    weights: Tensor
    """[M, B, T] share of each frame that the component covers."""
    visible: Tensor
    """[M, B, T] 1 where the component's clip is visible, else 0."""

    @classmethod
    def of(cls, targets_BKT: Tensor) -> "Components":
        """One fully visible component: the labels before any augmentation."""
        batch, _, frames = targets_BKT.shape
        dtype = torch.promote_types(targets_BKT.dtype, torch.float32)
        ones_MBT = torch.ones(1, batch, frames, dtype=dtype, device=targets_BKT.device)
        return cls(targets_BKT[None], ones_MBT, ones_MBT.clone())

    def soft_targets(self) -> Tensor:
        """[B, K, T] in the dtype of the labels."""
        return (self.labels * self.weights[:, :, None]).sum(0).to(self.labels.dtype)


class Effect(Protocol):
    """Effect of one set of draws on a batch, applied clip by clip."""

    partner: list[int]
    """Clip mixed into clip b, -1 for none."""
    aligned: bool
    """Whether output frame t depends on input frames t only."""

    def write(self, b: int, out: Tensor, own: Tensor, other: Tensor, first: int) -> None:
        """Write clip b [C, T, H, W], or its frames from `first` on if aligned.

        In place, `own is out`; `other`, the partner, never shares memory with out.
        """

    def blend(self, b: int, own: Tensor, other: Tensor) -> Tensor:
        """Clip b after this effect, by differentiable operations; same values as `write`."""

    def relabel(self, components: Components) -> Components:
        """Components after this effect."""


@dataclass
class MixWeights:
    """Weights of clip b at frame t and of its partner at frame t - shift."""

    partner: Tensor
    """[B] clip mixed into clip b."""
    shift: Tensor
    """[B] delay of the partner in frames."""
    own: Tensor
    """[B, T] weight of clip b."""
    other: Tensor
    """[B, T] weight of its partner."""
    visible: Tensor
    """bool [2, B, T] whether clip b and its partner are visible."""

    def relabel(self, components: Components) -> Components:
        """Own components first, then the partner's (weights multiply, as in the published code)."""
        device, dtype = components.weights.device, components.weights.dtype
        own_BT, other_BT = self.own.to(device, dtype), self.other.to(device, dtype)
        own_visible_BT, other_visible_BT = self.visible.to(device, dtype)
        parts = [part[:, self.partner.to(device)] for part in components]
        source_BT = torch.arange(own_BT.shape[1]) - self.shift[:, None]
        source_BT = source_BT.clamp(min=0).to(device)  # frames before the partner enters weigh 0
        labels = parts[0].take_along_dim(source_BT[None, :, None], -1)
        weights, visible = (part.take_along_dim(source_BT[None], -1) for part in parts[1:])
        return Components(
            torch.cat([components.labels, labels]),
            torch.cat([components.weights * own_BT, weights * other_BT]),
            torch.cat([components.visible * own_visible_BT, visible * other_visible_BT]),
        )


class Augmentation(ABC):
    """A volume augmentation: random draws on the CPU, applied on the device of the clips."""

    @property
    @abstractmethod
    def draws_type(self) -> type:
        """Dataclass of the random numbers (CPU tensors) that `apply` takes."""

    @abstractmethod
    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> Any:
        """Draw the random numbers of a batch from this CPU generator only."""

    @abstractmethod
    def evaluation_draws(self, batch: int, frames: int, width: int) -> Any:
        """Fixed draws for validation, as in the published code's eval mode."""

    @abstractmethod
    def effects(self, draws: Any, clips_BCTHW: Tensor) -> list[Effect]:
        """Effects of these draws, in order of application."""

    def __call__(
        self,
        clips_BCTHW: Tensor,
        targets_BKT: Tensor,
        generator: torch.Generator,
        out: Tensor | None = None,
        inplace: bool = False,
        return_components: bool = False,
    ) -> tuple[Any, ...]:
        """Draw and apply: return (clips, soft targets) and, with `return_components`, Components.

        Clips float [B, C, T, H, W], targets float [B, K, T]; both keep shape and dtype. Without
        `out` or `inplace` the result is new memory and the inputs stay unchanged; targets are never
        changed. Clips that require a gradient (features of a layer) get it through the mixture.
        Raises TypeError or ValueError for shapes, dtypes or memory that do not fit.
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
        """Apply given draws; arguments, result and errors as in `__call__`."""
        check_batch(clips_BCTHW, targets_BKT)
        if not isinstance(draws, self.draws_type):
            expected, actual = self.draws_type.__name__, type(draws).__name__
            raise TypeError(f"{self!r}: draws of type {actual}, expected {expected}")
        effects = self.effects(draws, clips_BCTHW)
        components = Components.of(targets_BKT)
        for effect in effects:
            components = effect.relabel(components)
        if needs_gradient(clips_BCTHW) and out is None and not inplace:
            mixed = clips_BCTHW if effects else clips_BCTHW.clone()
            for effect in effects:
                pairs = zip(mixed.unbind(), effect.partner, strict=True)
                blended = [effect.blend(b, own, mixed[p]) for b, (own, p) in enumerate(pairs)]
                mixed = torch.stack(blended)
        else:
            mixed, source = destination(clips_BCTHW, out, inplace), clips_BCTHW
            with torch.no_grad():
                for effect in effects:
                    _write_effect(effect, source, mixed)
                    source = mixed
                if source is not mixed:
                    mixed.copy_(source)
        targets = components.soft_targets()
        return (mixed, targets, components) if return_components else (mixed, targets)


def _write_effect(effect: Effect, clips_BCTHW: Tensor, out_BCTHW: Tensor) -> None:
    in_place = clips_BCTHW is out_BCTHW
    batch, _, frames, _, _ = out_BCTHW.shape
    order = list(_safe_order(effect.partner)) if in_place else [(b, False) for b in range(batch)]
    # Allocating a spare clip costs more than copying it, so aligned effects copy a few frames.
    by_block = in_place and effect.aligned and out_BCTHW.device.type == "cpu"
    block, spare = _BLOCK if by_block else frames, torch.empty(0)
    for first in range(0, frames, block):
        source, target = (x[:, :, first : first + block] for x in (clips_BCTHW, out_BCTHW))
        saved = -1
        for b, copy_first in order:
            out = target[b]
            own = out if in_place else source[b]
            if copy_first:
                spare = spare.copy_(own) if spare.shape == own.shape else own.clone()
                saved = b
            partner = effect.partner[b]
            other = spare if saved >= 0 and partner == saved else source[partner]
            effect.write(b, out, own, other, first)


def _safe_order(partner: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Order the clips so that each is overwritten after all clips that read it.

    A cycle of partners has no such order: True marks the clip to copy before it is overwritten.
    One cycle is finished before the next begins, so one spare clip is enough.
    """
    readers = [0] * len(partner)
    for b, p in enumerate(partner):
        if p >= 0 and p != b:
            readers[p] += 1
    free = [b for b, count in enumerate(readers) if count == 0 and partner[b] != b]
    cycles = [b for b, p in enumerate(partner) if p >= 0]
    done: set[int] = set()
    while free or cycles:
        copy_first = not free
        b = cycles.pop() if copy_first else free.pop()
        if b in done:
            continue
        done.add(b)
        yield b, copy_first
        p = partner[b]
        if p >= 0 and p != b:
            readers[p] -= 1
            if readers[p] == 0 and partner[p] != p:
                free.append(p)


def uniform(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Draw integers uniformly from low ... high (inclusive), element by element."""
    check_generator(generator)
    unit = torch.rand(low.shape, generator=generator, dtype=torch.float64)
    return low + (unit * (high - low + 1)).floor().long()


def random_partners(batch: int, generator: torch.Generator) -> Tensor:
    """Draw a permutation [B] of the batch; a clip may be its own partner."""
    check_generator(generator)
    return torch.randperm(batch, generator=generator)


def fixed_partners(batch: int, offset: int) -> Tensor:
    """Partners [B] for validation: the clip half the batch plus `offset` further on."""
    return (torch.arange(batch) + batch // 2 + offset) % batch
