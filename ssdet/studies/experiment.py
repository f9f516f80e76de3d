"""One way from clips to scores, and what changes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssdet.training.head_recipes import published_head
from ssdet.training.heads import HeadRecipe
from ssdet.training.inference import PredictRecipe
from ssdet.training.probe import ProbeRecipe
from ssdet.training.recipe import TrainRecipe


@dataclass(frozen=True)
class Experiment:
    """One way from clips to scores: pretraining, fine-tuning, and how the result is read out."""

    finetune: TrainRecipe
    pretrain: TrainRecipe | None = None
    """None: fine-tuning starts from fresh weights."""
    predict: PredictRecipe = PredictRecipe()
    probe: ProbeRecipe | None = ProbeRecipe()
    """Second read-out, a linear classifier on the frozen pretrained features; None for none."""
    start: TrainRecipe | None = None
    """An earlier pretraining whose end `pretrain` starts from, with a fresh classifier."""

    def __post_init__(self) -> None:
        if self.start is not None and self.pretrain is None:
            raise ValueError("start is what pretrain goes on from: give pretrain, or no start")

    @property
    def pretrainings(self) -> tuple[TrainRecipe, ...]:
        """What happens before fine-tuning, each going on from the one before."""
        return tuple(recipe for recipe in (self.start, self.pretrain) if recipe is not None)

    def with_seed(self, seed: int) -> "Experiment":
        """The same with this seed for weights, data order and augmentation."""
        start = self.start and replace(self.start, seed=seed)
        pretrain = self.pretrain and replace(self.pretrain, seed=seed)
        finetune = replace(self.finetune, seed=seed)
        return replace(self, start=start, pretrain=pretrain, finetune=finetune)


Change = Callable[[Experiment], Experiment]


def declaring(*fields: str) -> Callable[[Change], Change]:
    """Mark a change with the recipe fields that it is meant to alter, such as `pretrain.augment`:
    the audit reports any other in which its arm differs."""

    def mark(change: Change) -> Change:
        change.__dict__["declares"] = fields
        return change

    return mark


def declared(change: Change) -> tuple[str, ...]:
    """The fields that a change was marked with; none for a plain function."""
    return tuple(getattr(change, "declares", ()))


def unchanged(experiment: Experiment) -> Experiment:
    """The base as it is: detection pretraining without augmentation."""
    return experiment
