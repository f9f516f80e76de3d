"""Experiment: the recipes of pretraining, fine-tuning and scoring; and changes to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.inference.recipe import PredictRecipe
from ssdet.system.recipe_json import EXCLUDED_FROM_ID
from ssdet.training.recipe import HeadRecipe, OptimRecipe, ProbeRecipe, TrainRecipe


@dataclass(frozen=True)
class SecondNetworkDefaults:
    """Defaults for arms with a second network (head, stream)."""

    epoch_videos: int = 200
    """Training videos per epoch in the published schedules of heads."""
    head_optim: OptimRecipe | None = None
    """Schedule of heads; None: the published one."""
    head_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of heads at the size of this experiment, by head."""
    stream_clip: ClipRecipe | None = None
    """Clips of slow, coarse and two-stream networks; None: those of fine-tuning."""
    fusion_optim: OptimRecipe | None = None
    """Schedule of the second stage of a two-stream network; None: that of fine-tuning."""
    grid: int = 7
    """Height and width, in cells, of the fine stream's feature maps."""
    fine_steps: int = 128
    """Coarse-Fine reads the fine stream's maps of the first clip frames of a video, at most this
    many."""


@dataclass(frozen=True)
class Experiment:
    """Recipes of one chain of stages: pretraining, fine-tuning, scoring and linear probe."""

    finetune: TrainRecipe
    pretrain: TrainRecipe | None = None
    """None: fine-tuning starts from fresh weights."""
    predict: PredictRecipe = PredictRecipe()
    probe: ProbeRecipe | None = ProbeRecipe()
    """Second read-out, a linear classifier on the frozen pretrained features; None: no probe."""
    start: TrainRecipe | None = None
    """An earlier pretraining whose end `pretrain` starts from, with a fresh classifier."""
    head: HeadRecipe | None = None
    """A model of the fine-tuned network's features, which scores the videos; None: the fine-tuned
    network scores them."""
    fine_stream: "Experiment | None" = None
    """The fine stream of a two-stream network, trained first: `finetune` reads its features."""
    second_network: SecondNetworkDefaults = field(
        default=SecondNetworkDefaults(), compare=False, metadata=EXCLUDED_FROM_ID
    )

    def __post_init__(self) -> None:
        if self.start is not None and self.pretrain is None:
            raise ValueError(
                "start without pretrain: give the pretraining that continues it, or none"
            )
        if (self.fine_stream is None) != (self.finetune.fine_steps == 0):
            raise ValueError(
                f"finetune.fine_steps={self.finetune.fine_steps}: a network reads another one's "
                "features with `fine_stream` and fine_steps, or with neither"
            )

    @property
    def pretrainings(self) -> tuple[TrainRecipe, ...]:
        """Recipes of the pretrainings in order; each starts from the weights of the one before."""
        return tuple(recipe for recipe in (self.start, self.pretrain) if recipe is not None)

    def with_seed(self, seed: int) -> "Experiment":
        """The same experiment with this seed for weights, data order and augmentation."""
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
    """Mark a change with the recipe fields that it is meant to alter, such as `pretrain.augment`.

    The audit reports every other field in which its arm differs from the arm it is compared with.
    """

    def mark(change: Change) -> Change:
        change.__dict__["declares"] = fields
        return change

    return mark


def declared(change: Change) -> tuple[str, ...]:
    """Fields that a change was marked with by `declaring`; none for a plain function."""
    return tuple(getattr(change, "declares", ()))


def unchanged(experiment: Experiment) -> Experiment:
    """Leave the base as it is: detection pretraining without augmentation."""
    return experiment
