"""Which runs stand beside each other: one of every arm for each seed, or seeds of one arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

Row = Mapping[str, Any]


@dataclass(frozen=True)
class EnsembleCandidates:
    """Candidates of one ensemble; equal positions of the teams of several seeds are one arm."""

    seed: int | None
    """None: runs of all seeds together."""
    rows: tuple[Row, ...]
    names: tuple[tuple[str, ...], ...]
    """Arm names of each position, those that its runs have in common over the seeds."""

    @property
    def runs(self) -> list[str]:
        """Ids of the candidates."""
        return [row["id"] for row in self.rows]

    def label(self, position: int) -> str:
        """Name of an arm."""
        return self.names[position][0] if self.names[position] else self.runs[position]

    def keep(self, positions: Sequence[int]) -> "EnsembleCandidates":
        """The team of these candidates alone."""
        rows, names = self.rows, self.names
        return EnsembleCandidates(
            self.seed, tuple(rows[i] for i in positions), tuple(names[i] for i in positions)
        )


def candidates_of(frame: pd.DataFrame, per_seed: bool) -> list[EnsembleCandidates]:
    """Teams of the runs in a frame: one a seed, in the order of seeds, or one of all runs.

    Raises ValueError with fewer than two candidates a team, and where seeds have other arms, or
    two runs of one seed the same one.
    """
    rows: list[Row] = sorted(frame.to_dict("records"), key=lambda row: row["id"])
    if not rows:
        raise ValueError("no finished run fits the query: see `Results.runs` for what there is")
    if not per_seed:
        if len(rows) < 2:
            raise ValueError(f"only {rows[0]['id']} fits the query: an ensemble needs 2 runs")
        return [EnsembleCandidates(None, tuple(rows), tuple(row["arms"] for row in rows))]
    seeds: dict[int, list[Row]] = {}
    for row in rows:
        seeds.setdefault(int(row["seed"]), []).append(row)
    if max(map(len, seeds.values())) < 2:
        raise ValueError(
            f"{len(rows)} finished runs of {len(seeds)} seeds fit the query: an ensemble of each "
            "seed needs 2 arms; per_seed=False (--pool) combines runs of all seeds"
        )
    first = sorted(seeds)[0]
    names = [tuple(row["arms"]) for row in seeds[first]]
    matched = {seed: _matched(names, seeds[seed], seed, first) for seed in sorted(seeds)}
    for ordered in matched.values():
        names = [_common(name, row) for name, row in zip(names, ordered, strict=True)]
    return [
        EnsembleCandidates(seed, tuple(ordered), tuple(names)) for seed, ordered in matched.items()
    ]


def _matched(names: list[tuple[str, ...]], rows: list[Row], seed: int, first: int) -> list[Row]:
    """One row for each arm, in the order of the arms."""
    ordered = []
    for name in names:
        found = [row for row in rows if _common(name, row)]
        if len(found) != 1:
            raise ValueError(
                f"seed {seed} has {len(found)} runs of {' / '.join(name) or 'an arm of no study'}, "
                f"as seed {first} has it: finish the runs, ask for less, or combine runs of all "
                "seeds with per_seed=False (--pool)"
            )
        ordered += found
    if len(rows) != len(names):
        raise ValueError(
            f"seed {seed} has {len(rows)} runs, seed {first} has {len(names)}: finish the runs, "
            "ask for less, or combine runs of all seeds with per_seed=False (--pool)"
        )
    return ordered


def _common(names: tuple[str, ...], row: Row) -> tuple[str, ...]:
    return tuple(name for name in names if name in row["arms"])


def seeds_of(frame: pd.DataFrame, row: Row, names: Sequence[str]) -> dict[int, str]:
    """Runs by seed of the arm that ``row`` is one of: same study, one of these names, same data.

    Raises ValueError where a seed has two.
    """
    found: dict[int, str] = {}
    for other in frame.to_dict("records"):
        same = all(other[column] == row[column] for column in ("protocol", "data"))
        if same and set(names) & {*other["arms"]} and {*row["studies"]} & {*other["studies"]}:
            if int(other["seed"]) in found:
                raise ValueError(
                    f"two runs of seed {other['seed']} are called {' / '.join(names)}: "
                    f"{found[int(other['seed'])]} and {other['id']}"
                )
            found[int(other["seed"])] = other["id"]
    return dict(sorted(found.items()))
