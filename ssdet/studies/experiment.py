"""One way from clips to scores, and what changes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.inference.recipe import PredictRecipe
from ssdet.system.recipe_json import EXCLUDED_FROM_ID
from ssdet.training.recipe import HeadRecipe, OptimRecipe, ProbeRecipe, TrainRecipe


@dataclass(frozen=True)
class Kit:
    """What goes with a base for arms that are more than one network."""

    videos: int = 200
    """Training videos, an epoch of the published schedules of heads."""
    head_optim: OptimRecipe | None = None
    """How models of features are trained; None: as published."""
    head_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of models of features that are others at this size, by model."""
    stream: ClipRecipe | None = None
    """Clips of slow, coarse and two-stream networks; None: those of fine-tuning."""
    fusion: OptimRecipe | None = None
    """How the second stage of a two-stream network is trained; None: as fine-tuning."""
    grid: int = 7
    """Side of the maps that a two-stream network gets of its fine stream."""
    steps: int = 128
    """Most clip frames of a video that Coarse-Fine gets them of, the first ones."""


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
    head: HeadRecipe | None = None
    """A model of the fine-tuned network's features, whose scores are the result; None: its own."""
    fine_stream: "Experiment | None" = None
    """The fine stream of a two-stream network, trained first: `finetune` reads its features."""
    kit: Kit = field(default=Kit(), compare=False, metadata=EXCLUDED_FROM_ID)

    def __post_init__(self) -> None:
        if self.start is not None and self.pretrain is None:
            raise ValueError("start is what pretrain goes on from: give pretrain, or no start")
        if (self.fine_stream is None) != (self.finetune.fine_steps == 0):
            raise ValueError(
                f"finetune.fine_steps={self.finetune.fine_steps}: a network reads another one's "
                "features with `fine_stream` and fine_steps, or with neither"
            )

    @property
    def pretrainings(self) -> tuple[TrainRecipe, ...]:
        """What happens before fine-tuning, each going on from the one before."""
        return tuple(recipe for recipe in (self.start, self.pretrain) if recipe is not None)

    def with_seed(self, seed: int) -> "Experiment":
        """The same with this seed for weights, data order and augmentation."""
        return replace(
            self,
            start=self.start and replace(self.start, seed=seed),
            pretrain=self.pretrain and replace(self.pretrain, seed=seed),
            finetune=replace(self.finetune, seed=seed),
            head=self.head and replace(self.head, seed=seed),
            fine_stream=self.fine_stream and self.fine_stream.with_seed(seed),
        )

    def validated_by(self, protocol: str) -> "Experiment":
        """The same with the validations of what is scored under this protocol."""
        if self.head is not None:
            return replace(self, head=replace(self.head, validate_by=protocol))
        return replace(self, finetune=replace(self.finetune, validate_by=protocol))


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
