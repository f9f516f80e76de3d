"""Studies: arms times seeds over a base experiment, with a protocol and a table."""

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


def protocol_id(name: str) -> str:
    """Id of a protocol from its name or id; ValueError for any other."""
    if name == DENSE:  # nothing has to be imported for it
        return name
    from ssdet.evaluation.protocols.registry import protocol_of

    return protocol_of(name).id


@dataclass(frozen=True)
class Study:
    """Arms times seeds. Arms that agree in a stage share it."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocol: str = DENSE
    """What is scored, compared and printed: name or id of a protocol (docs/protocols.md),
    kept as its id. Stages are the same under every protocol."""
    table: Table = Table()
    base: Experiment | None = None
    """What arms change: of the preset that the command line names, else of `tiny`."""
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
        from ssdet.models import available

        return all(available(name) for name in self.needs(arm).split(", ") if name)

    @property
    def baseline(self) -> str:
        """Name of the arm that the others are compared with, unless the table says otherwise."""
        return self.table.baseline or self.arms[0].name

    def baseline_of(self, arm: str) -> str:
        """Name of the arm that this one is compared with; empty for the baseline itself."""
        return "" if arm == self.baseline else self.table.against.get(arm, self.baseline)
