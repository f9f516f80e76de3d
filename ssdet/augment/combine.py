"""Combinations of the augmentations, one or several per clip, and the empty augmentation."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssdet.augment.base import Augmentation, Components, Effect, uniform
from ssdet.augment.checks import check_batch, check_generator, destination
from ssdet.augment.cutmix import VolumeCutMix
from ssdet.augment.freeze import VolumeFreeze
from ssdet.augment.mixup import VolumeMixUp


@dataclass
class JointDraws:
    """Draws of the three augmentations, and which of them are applied to each clip."""

    active: Tensor
    """bool [B, 3]: freeze, mixup, cutmix."""
    freeze: Any
    mixup: Any
    cutmix: Any


@dataclass(frozen=True, kw_only=True)
class _Combination(Augmentation):
    segments: int = 1
    background: str = "class"
    mask: str = "seamless"
    ramp: float = 1.0
    window: str = "view"
    delta: float | None = None
    pan: str = "opposite"
    compat: str = "paper"

    def __post_init__(self) -> None:
        self.members()  # checks the options

    def members(self) -> tuple[VolumeFreeze, VolumeMixUp, VolumeCutMix]:
        """The three augmentations with the options of this one."""
        return (
            VolumeFreeze(self.segments, self.background, self.compat),
            VolumeMixUp(self.mask, self.compat, self.ramp),
            VolumeCutMix(self.window, self.delta, self.pan, self.compat),
        )

    @property
    def draws_type(self) -> type[JointDraws]:
        return JointDraws

    @abstractmethod
    def draw_active(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the augmentations of each clip, bool [B, 3]."""

    @abstractmethod
    def fixed_active(self, batch: int) -> Tensor:
        """The same for validation."""

    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> JointDraws:
        active = self.draw_active(batch, generator)
        draws = [m.draw(batch, frames, width, generator) for m in self.members()]
        return JointDraws(active, *draws)

    def evaluation_draws(self, batch: int, frames: int, width: int) -> JointDraws:
        draws = [m.evaluation_draws(batch, frames, width) for m in self.members()]
        return JointDraws(self.fixed_active(batch), *draws)

    def _member_effects(self, draws: JointDraws, clips_BCTHW: Tensor) -> list[Effect]:
        if draws.active.shape != (len(clips_BCTHW), 3) or draws.active.dtype != torch.bool:
            actual = f"{draws.active.dtype} {tuple(draws.active.shape)}"
            raise ValueError(f"draws: active {actual}, expected torch.bool ({len(clips_BCTHW)}, 3)")
        parts = zip(self.members(), (draws.freeze, draws.mixup, draws.cutmix), strict=True)
        return [member.effects(part, clips_BCTHW)[0] for member, part in parts]


@dataclass(frozen=True, kw_only=True)
class Joint(_Combination):
    """Apply each of freeze, MixUp and CutMix with probability p, in this order, drawn per clip.

    Partners are mixed in after their own earlier augmentations, with the labels of those.
    compat="released": drawn once for the whole batch. Paper: "Combining Augmentations" (Joint
    train), Table A.1d. Options are those of the three classes.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p <= 1:
            raise ValueError(f"p={self.p}: expected a probability")

    def draw_active(self, batch: int, generator: torch.Generator) -> Tensor:
        check_generator(generator)
        rows = 1 if self.compat == "released" else batch
        active = torch.rand(rows, 3, generator=generator, dtype=torch.float64) < self.p
        return active.expand(batch, 3)

    def fixed_active(self, batch: int) -> Tensor:
        return torch.ones(batch, 3, dtype=torch.bool)

    def effects(self, draws: JointDraws, clips_BCTHW: Tensor) -> list[Effect]:
        effects = zip(self._member_effects(draws, clips_BCTHW), draws.active.T, strict=True)
        return [_Choice([effect], used_B.long() - 1) for effect, used_B in effects if used_B.any()]


@dataclass(frozen=True, kw_only=True)
class JointSingle(_Combination):
    """Apply one of freeze, MixUp and CutMix, drawn uniformly for each clip.

    Partners are mixed in unaugmented. compat="released": one draw for the whole batch,
    with no augmentation as a fourth outcome. Paper: "Combining Augmentations" (Joint train -
    single), Table A.1d. Options are those of the three classes.
    """

    def draw_active(self, batch: int, generator: torch.Generator) -> Tensor:
        rows, outcomes = (1, 4) if self.compat == "released" else (batch, 3)
        zero = torch.zeros(rows, dtype=torch.long)
        choice_B = uniform(zero, zero + outcomes - 1, generator)
        return (choice_B[:, None] == torch.arange(3)).expand(batch, 3)

    def fixed_active(self, batch: int) -> Tensor:
        return torch.arange(batch)[:, None] % 3 == torch.arange(3)

    def effects(self, draws: JointDraws, clips_BCTHW: Tensor) -> list[Effect]:
        effects = self._member_effects(draws, clips_BCTHW)
        if bool((draws.active.sum(1) > 1).any()):
            raise ValueError("draws: active has several augmentations for one clip: use Joint")
        choice_B = torch.where(draws.active.any(1), draws.active.long().argmax(1), -1)
        return [_Choice(effects, choice_B)]


class _Choice:
    """One of several effects for each clip; -1 for none."""

    def __init__(self, effects: Sequence[Effect], choice_B: Tensor) -> None:
        self.choice_B, self.choice = choice_B, choice_B.tolist()
        self.effects = effects
        self.aligned = all(effect.aligned for effect in effects)
        self.partner = [effects[c].partner[b] if c >= 0 else -1 for b, c in enumerate(self.choice)]

    def write(self, b: int, out: Tensor, own: Tensor, other: Tensor, first: int) -> None:
        if self.choice[b] >= 0:
            self.effects[self.choice[b]].write(b, out, own, other, first)
        elif own is not out:
            out.copy_(own)

    def blend(self, b: int, own: Tensor, other: Tensor) -> Tensor:
        choice = self.choice[b]
        return self.effects[choice].blend(b, own, other) if choice >= 0 else own

    def relabel(self, components: Components) -> Components:
        used = sorted({c for c in self.choice if c >= 0})
        results = {c: self.effects[c].relabel(components) for c in used}
        count = max([len(r.weights) for r in results.values()], default=len(components.weights))
        merged = _padded(components, count)
        for c, result in results.items():
            chosen = (self.choice_B == c).nonzero()[:, 0].to(components.weights.device)
            for part, new in zip(merged, _padded(result, count), strict=True):
                part.index_copy_(1, chosen, new[:, chosen])
        return merged


def _padded(components: Components, count: int) -> Components:
    """A copy with `count` components; the added ones have weight 0."""
    added = count - len(components.weights)
    return Components(*(torch.cat([p, p.new_zeros(added, *p.shape[1:])]) for p in components))


@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    """Return clips and targets unchanged, copied only into a given `out`."""

    @property
    def draws_type(self) -> type[None]:
        return type(None)

    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> None:
        return None

    def evaluation_draws(self, batch: int, frames: int, width: int) -> None:
        return None

    def effects(self, draws: None, clips_BCTHW: Tensor) -> list[Effect]:
        return []

    def apply(
        self,
        clips_BCTHW: Tensor,
        targets_BKT: Tensor,
        draws: None,
        out: Tensor | None = None,
        inplace: bool = False,
        return_components: bool = False,
    ) -> tuple[Any, ...]:
        check_batch(clips_BCTHW, targets_BKT)
        if out is not None:
            clips_BCTHW = destination(clips_BCTHW, out, inplace).copy_(clips_BCTHW)
        components = (Components.of(targets_BKT),) if return_components else ()
        return clips_BCTHW, targets_BKT, *components
