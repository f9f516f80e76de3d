"""What a study is: arms times seeds over a base, a protocol and a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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

    def with_seed(self, seed: int) -> "Experiment":
        """The same with this seed for weights, data order and augmentation."""
        pretrain = self.pretrain and replace(self.pretrain, seed=seed)
        return replace(self, pretrain=pretrain, finetune=replace(self.finetune, seed=seed))


Change = Callable[[Experiment], Experiment]


def unchanged(experiment: Experiment) -> Experiment:
    """The base as it is: detection pretraining without augmentation."""
    return experiment


def scratch(experiment: Experiment) -> Experiment:
    """No pretraining."""
    return replace(experiment, pretrain=None)


def classification(experiment: Experiment) -> Experiment:
    """Pretraining on the clip's averaged features, one label a clip: the paper's baseline."""
    return pretraining(readout="clip", augment="none")(experiment)


def pretraining(**fields: Any) -> Change:
    """Change these fields of the pretraining recipe."""

    def change(experiment: Experiment) -> Experiment:
        if experiment.pretrain is None:
            raise ValueError(f"pretraining({fields}): this experiment has no pretraining to change")
        return replace(experiment, pretrain=replace(experiment.pretrain, **fields))

    return change


def augmented(name: str, **options: Any) -> Change:
    """Detection pretraining with a volume augmentation of `ssdet.augment.create`."""
    return pretraining(augment=name, augment_options=options)


@dataclass(frozen=True)
class Arm:
    """One row of an ablation: a change to the base, or an ensemble of other arms."""

    name: str
    change: Change = unchanged
    title: str = ""
    """How tables call it; the name by default."""
    members: tuple[str, ...] = ()
    """Arms whose predictions of one seed are averaged; then `change` is not used."""
    seeds_of: str = ""
    """Arm whose predictions of `size` seeds are averaged: what an ensemble of equal size gets
    from seeds alone."""
    size: int = 3

    @property
    def label(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class Table:
    """How a study's result is laid out."""

    title: str = ""
    baseline: str = ""
    """Arm that all others are compared with; the first by default."""
    quoted: Mapping[str, float] = field(default_factory=dict)
    """The paper's own numbers in percent, by arm; printed in a column of their own."""
    source: str = ""
    """Where the quoted numbers stand, and on what they were measured."""


@dataclass(frozen=True)
class Study:
    """Arms times seeds. Arms that agree in a stage share it."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocol: str = "dense_map/v1"
    table: Table = Table()
    base: Experiment | None = None
    """What arms change: of the preset that the command line names, else of `tiny`."""
    data: Any = None
    """`ssdet.studies.Data`; Moving Shapes by default."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"study {self.name!r}: two arms share a name: {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"study {self.name!r}: seeds {self.seeds} must be distinct, at least 1"
            )
        wanted = {self.table.baseline or names[0], *self.table.quoted}
        for arm in self.arms:
            wanted |= {*arm.members, *([arm.seeds_of] if arm.seeds_of else [])}
        if unknown := wanted - set(names):
            raise ValueError(f"study {self.name!r}: no arm named {sorted(unknown)}, only {names}")

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> str:
        """Name of the arm that the others are compared with."""
        return self.table.baseline or self.arms[0].name
