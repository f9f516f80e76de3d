"""What a study is: arms times seeds over a base, a protocol and a table."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssdet.data.clips import ClipRecipe
from ssdet.models import available
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


@declaring("start", "pretrain")
def scratch(experiment: Experiment) -> Experiment:
    """No pretraining."""
    return replace(experiment, pretrain=None, start=None)


@declaring("pretrain.readout", "pretrain.augment", "pretrain.augment_options")
def classification(experiment: Experiment) -> Experiment:
    """Pretraining on the clip's averaged features, one label a clip: the paper's baseline."""
    return pretraining(readout="clip", augment="none")(experiment)


def pretraining(**fields: Any) -> Change:
    """Change these fields of the pretraining recipe."""

    @declaring(*(f"pretrain.{name}" for name in fields))
    def change(experiment: Experiment) -> Experiment:
        if experiment.pretrain is None:
            raise ValueError(f"pretraining({fields}): this experiment has no pretraining to change")
        return replace(experiment, pretrain=replace(experiment.pretrain, **fields))

    return change


def augmented(name: str, **options: Any) -> Change:
    """Detection pretraining with a volume augmentation of `ssdet.augment.create`."""
    return pretraining(augment=name, augment_options=options)


def lasting(share: float, change: Change = unchanged) -> Change:
    """A change whose pretraining takes this share of its steps, one at least."""

    @declaring("pretrain.optim.steps", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        if experiment.pretrain is None:
            raise ValueError(f"lasting({share}): this experiment has no pretraining to change")
        optim = experiment.pretrain.optim
        optim = replace(optim, steps=max(1, round(share * optim.steps)))
        return pretraining(optim=optim)(experiment)

    return changed


def from_checkpoint(start: Change, change: Change) -> Change:
    """A change whose pretraining goes on from where another one ended.

    The other one is the very stage that an arm with the change `start` has.
    """

    @declaring("start", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        return replace(change(experiment), start=start(experiment).pretrain)

    return changed


def coarser(factor: int, change: Change = unchanged) -> Change:
    """A change whose clips hold, after pretraining, every factor-th frame of the same stretch."""

    def cut(clip: ClipRecipe) -> ClipRecipe:
        return replace(clip, stride=clip.stride * factor, frames=clip.frames // factor)

    @declaring("finetune.clip", "predict.clip", "probe.predict.clip", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment, probe = change(experiment), experiment.probe
        predict = replace(experiment.predict, clip=cut(experiment.predict.clip))
        if probe is not None:
            probe = replace(probe, predict=replace(probe.predict, clip=cut(probe.predict.clip)))
        finetune = replace(experiment.finetune, clip=cut(experiment.finetune.clip))
        return replace(experiment, finetune=finetune, predict=predict, probe=probe)

    return changed


def finetuned_as(model: str, change: Change = unchanged) -> Change:
    """A change that is fine-tuned as another network, which takes over the pretrained weights."""

    @declaring("finetune.model", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        network = replace(experiment.finetune.model, name=model)
        return replace(experiment, finetune=replace(experiment.finetune, model=network))

    return changed


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
    needs: str = ""
    """Network that the change asks for. While it is not among `ssdet.models.available()` the plan
    and the table list the arm and say so, and nothing of it runs."""
    declares: tuple[str, ...] = ()
    """Recipe fields in which the arm may differ from others; what its change declares by
    default."""

    @property
    def declared(self) -> tuple[str, ...]:
        return self.declares or declared(self.change)

    @property
    def label(self) -> str:
        return self.title or self.name


COLUMNS = (
    "finetuned", "probe", "difference", "quoted", "seeds", "parameters", "macs", "pflops"
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """How a study's result is laid out.

    ValueError for unknown columns, an arm in two groups, or one that is compared with itself.
    """

    title: str = ""
    baseline: str = ""
    """Arm that all others are compared with; the first by default."""
    quoted: Mapping[str, float] = field(default_factory=dict)
    """The paper's own numbers in percent, by arm; printed in a column of their own."""
    source: str = ""
    """Where the quoted numbers stand, and on what they were measured."""
    columns: tuple[str, ...] = ("finetuned", "probe", "difference", "quoted", "seeds")
    """Some of `COLUMNS`, in order; `difference` (interval, p-value and verdict) stands behind
    every read-out."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sub-headings with the arms below them; arms of no group stand first."""
    against: Mapping[str, str] = field(default_factory=dict)
    """Arms that are compared with another one than the baseline, and with which."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise ValueError(f"table: no column {unknown}, choose from {', '.join(COLUMNS)}")
        if not {"finetuned", "probe"} & {*self.columns}:
            raise ValueError(f"table: columns {self.columns} show no score: add 'finetuned'")
        placed = [arm for arms in self.groups.values() for arm in arms]
        if twice := sorted({arm for arm in placed if placed.count(arm) > 1}):
            raise ValueError(f"table: {', '.join(twice)} in several groups, name each arm once")
        if alone := [arm for arm, other in self.against.items() if arm == other]:
            raise ValueError(f"table: {', '.join(alone)} compared with itself: name another arm")

    @property
    def arms(self) -> set[str]:
        """Every arm that the layout names."""
        named = {*self.quoted, *(arm for arms in self.groups.values() for arm in arms)}
        named |= {*self.against, *self.against.values()}
        return named | ({self.baseline} if self.baseline else set())

    def only(self, arms: Collection[str]) -> "Table":
        """The same layout for some of the arms; ValueError where one of them is compared with an
        arm that is not among them."""
        groups = {
            heading: kept
            for heading, members in self.groups.items()
            if (kept := tuple(arm for arm in members if arm in arms))
        }
        quoted = {arm: value for arm, value in self.quoted.items() if arm in arms}
        against = {arm: other for arm, other in self.against.items() if arm in arms}
        for arm, other in against.items():
            if other not in arms:
                raise ValueError(f"{arm!r} is compared with {other!r}: ask for that arm as well")
        return replace(self, quoted=quoted, groups=groups, against=against)


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
        wanted = self.table.arms
        for arm in self.arms:
            wanted |= {*arm.members, *([arm.seeds_of] if arm.seeds_of else [])}
        if unknown := wanted - set(names):
            raise ValueError(f"study {self.name!r}: no arm named {sorted(unknown)}, only {names}")
        if (other := self.table.against.get(self.baseline)) is not None:
            raise ValueError(
                f"study {self.name!r}: its baseline {self.baseline!r} is compared with {other!r}: "
                "the baseline is compared with nothing, name another baseline"
            )

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def needs(self, arm: Arm) -> str:
        """Networks that the arm or its members declare a need of, separated by commas."""
        used = [arm, *map(self.arm, (*arm.members, *filter(None, [arm.seeds_of])))]
        return ", ".join(dict.fromkeys(member.needs for member in used if member.needs))

    def can_run(self, arm: Arm) -> bool:
        """Whether all that the arm needs is built."""
        return all(available(name) for name in self.needs(arm).split(", ") if name)

    @property
    def baseline(self) -> str:
        """Name of the arm that the others are compared with, unless the table says otherwise."""
        return self.table.baseline or self.arms[0].name

    def baseline_of(self, arm: str) -> str:
        """Name of the arm that this one is compared with; empty for the baseline itself."""
        return "" if arm == self.baseline else self.table.against.get(arm, self.baseline)
