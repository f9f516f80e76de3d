"""Declaration of a study: arms, seeds, base experiment, protocol and table layout."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssdet.data.loading.recipe import DENSE
from ssdet.studies.experiment import Change, Experiment, declared, unchanged


@dataclass(frozen=True)
class Arm:
    """One row of an ablation: a change to the base, or an ensemble of other arms."""

    name: str
    change: Change = unchanged
    title: str = ""
    """Title in tables; the name by default."""
    members: tuple[str, ...] = ()
    """Arms of an ensemble: their predictions are averaged seed by seed; `change` is not used."""
    seeds_of: str = ""
    """Arm whose predictions over `size` seeds are averaged: the control for an ensemble of as many
    arms."""
    size: int = 3
    needs: str = ""
    """Network that the change uses. If `ssdet.models.available()` lacks it, plan and table list the
    arm as not available and do not run it."""
    declares: tuple[str, ...] = ()
    """Recipe fields in which the arm may differ from others; by default those that its change
    declares."""

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
    """Layout of a study's table.

    ValueError for unknown columns, an arm in two groups, or an arm compared with itself.
    """

    title: str = ""
    baseline: str = ""
    """Arm that the others are compared with; the first by default."""
    quoted: Mapping[str, float] = field(default_factory=dict)
    """Scores quoted from the paper, in percent, by arm; printed in a separate column."""
    source: str = ""
    """Table of the paper that is quoted, and the data and protocol of its scores."""
    columns: tuple[str, ...] = ("finetuned", "probe", "difference", "quoted", "seeds")
    """Some of `COLUMNS`, in order; `difference` (interval, p-value and verdict) follows every
    read-out."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arms by sub-heading; arms without a group come first."""
    against: Mapping[str, str] = field(default_factory=dict)
    """Arms that are compared with another arm than the baseline, and that arm."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise ValueError(f"table: no column {unknown}, choose from {', '.join(COLUMNS)}")
        if not {"finetuned", "probe"} & {*self.columns}:
            raise ValueError(f"table: columns {self.columns} show no score: add 'finetuned'")
        grouped = [arm for arms in self.groups.values() for arm in arms]
        if twice := sorted({arm for arm in grouped if grouped.count(arm) > 1}):
            raise ValueError(f"table: {', '.join(twice)} in several groups, name each arm once")
        if circular := [arm for arm, other in self.against.items() if arm == other]:
            raise ValueError(f"table: {', '.join(circular)} compared with itself: name another arm")

    @property
    def arms(self) -> set[str]:
        """Names of all arms that the layout mentions."""
        grouped = {arm for arms in self.groups.values() for arm in arms}
        named = {*self.quoted, *self.against, *self.against.values(), self.baseline}
        return (grouped | named) - {""}

    def only(self, arms: Collection[str]) -> "Table":
        """The layout for some of the arms.

        ValueError where one of them is compared with an arm that is not among them.
        """
        groups = {
            heading: selected
            for heading, members in self.groups.items()
            if (selected := tuple(arm for arm in members if arm in arms))
        }
        quoted = {arm: value for arm, value in self.quoted.items() if arm in arms}
        against = {arm: other for arm, other in self.against.items() if arm in arms}
        for arm, other in against.items():
            if other not in arms:
                raise ValueError(f"{arm!r} is compared with {other!r}: select that arm as well")
        return replace(self, quoted=quoted, groups=groups, against=against)


def protocol_id(name: str) -> str:
    """Id of a protocol from its name or id; ValueError for any other."""
    if name == DENSE:  # nothing has to be imported for it
        return name
    from ssdet.evaluation.protocols.registry import protocol_of

    return protocol_of(name).id


@dataclass(frozen=True)
class Study:
    """Arms times seeds over a base experiment. Arms with an equal stage share it."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocol: str = DENSE
    """What is scored, compared and printed: name or id of a protocol (docs/protocols.md),
    kept as its id. Stages are the same under every protocol."""
    table: Table = Table()
    base: Experiment | None = None
    """Experiment that the arms change; by default that of the preset chosen on the command line, or
    of `tiny`."""
    data: Any = None
    """`ssdet.studies.Data`; Moving Shapes by default."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", protocol_id(self.protocol))
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"study {self.name!r}: two arms share a name: {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"study {self.name!r}: seeds {self.seeds} must be distinct, at least 1"
            )
        mentioned = self.table.arms
        for arm in self.arms:
            mentioned |= {*arm.members, arm.seeds_of} - {""}
        if unknown := mentioned - set(names):
            raise ValueError(f"study {self.name!r}: no arm named {sorted(unknown)}, only {names}")
        if (other := self.table.against.get(self.baseline)) is not None:
            raise ValueError(
                f"study {self.name!r}: its baseline {self.baseline!r} is compared with {other!r}: "
                "the baseline is compared with nothing, name another baseline"
            )

    def arm(self, name: str) -> Arm:
        """The arm with this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def needs(self, arm: Arm) -> str:
        """Networks that the arm and its members need, separated by commas."""
        arms = [arm, *map(self.arm, (*arm.members, *filter(None, [arm.seeds_of])))]
        return ", ".join(dict.fromkeys(member.needs for member in arms if member.needs))

    def can_run(self, arm: Arm) -> bool:
        """Whether `ssdet.models.available()` has every network that the arm needs."""
        from ssdet.models import available

        return all(available(name) for name in self.needs(arm).split(", ") if name)

    @property
    def baseline(self) -> str:
        """Name of the arm that others are compared with where `Table.against` names no other."""
        return self.table.baseline or self.arms[0].name

    def baseline_of(self, arm: str) -> str:
        """Name of the arm that an arm is compared with; empty for the baseline."""
        return "" if arm == self.baseline else self.table.against.get(arm, self.baseline)
