"""From finished stages to a table's numbers: scores by seed, and differences with what they prove.

`layout` arranges them, `render` writes them for readers; the CSV, which is the numbers, is here.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from ssdet.evaluation import PredictionSet, mean_and_sd
from ssdet.evaluation.protocols.registry import Reading
from ssdet.evaluation.statistics.bootstrap import BootstrapResult, paired_difference
from ssdet.evaluation.statistics.comparison import (
    detectable_difference,
    effect_size,
    holm,
    paired_sd,
    verdict,
)
from ssdet.store.base import Store
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.studies.graph.plan import Plan, Run
from ssdet.studies.scoring import Scoring
from ssdet.studies.study import Arm, Study, Table
from ssdet.system.safe_files import text_file

READOUTS = {"finetuned": "fine-tuned", "probe": "linear probe"}
TEST = "predictions/test"
COSTS = ("parameters", "macs", "pflops")


@dataclass(frozen=True)
class Cell:
    """One read-out of one arm: scores of its seeds (fractions), and how it differs."""

    scores: Mapping[int, float]
    """Score by seed."""
    difference: BootstrapResult | None
    """From what the arm is compared with, over videos and the seeds that both have; None for the
    baseline."""
    runs: Mapping[int, str] = field(default_factory=dict)
    """Stage whose predictions were scored, by seed."""
    p_adjusted: float | None = None
    """p-value after Holm's correction over the rows of this read-out, whatever each of them is
    compared with."""
    effect: float | None = None
    """Hedges' g of the paired seeds; None where they are too few for one."""
    detectable: float | None = None
    """Smallest difference that these seeds show with a power of 80 %, at the 5 % level divided by
    the rows compared; None with fewer than two pairs."""
    verdict: str = ""

    @property
    def mean(self) -> float:
        return mean_and_sd(list(self.scores.values()))[0]

    @property
    def sd(self) -> float | None:
        return mean_and_sd(list(self.scores.values()))[1]


@dataclass(frozen=True)
class Row:
    """One arm of the table."""

    arm: str
    label: str
    cells: Mapping[str, Cell]
    """By read-out; an ensemble has no probe, an arm that is not built has nothing."""
    quoted: float | None
    """The paper's number in percent."""
    ensemble: bool = False
    """Several networks: ranked apart from single ones."""
    needs: str = ""
    """What a declared arm waits for."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Those of `COSTS` that the layout asks for; an ensemble costs what its members do."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Videos that a stage of this arm could not read, and why."""
    training: tuple[str, ...] = ()
    """What its seeds trained on where it was not the same, or not all that is annotated."""
    against: str = ""
    """Arm that this one is compared with; empty for the baseline."""


@dataclass(frozen=True)
class ResultTable:
    """A study's result, every number with its protocol and coverage."""

    study: str
    title: str
    baseline: str
    rows: tuple[Row, ...]
    protocol: str
    videos_scored: int
    videos_expected: int
    frames: int
    seeds: int
    resamples: int
    source: str
    unreadable: Mapping[str, str]
    """Videos that some stage could not read, and why."""
    layout: Table = Table()

    @property
    def several_baselines(self) -> bool:
        """Whether some arm is compared with another one than the baseline."""
        return any(row.against not in ("", self.baseline) for row in self.rows)


def enough_resamples(study: Study) -> int:
    """As many resamples of a bootstrap that its smallest p-value, 2 in so many, stays below 0.025
    after Holm's correction over all arms; 1000 at least."""
    return max(1000, 80 * len(study.arms))


def result_table(plan: Plan, store: Store, resamples: int | None = None) -> ResultTable:
    """Table of a finished study on its test split; `enough_resamples` by default.

    Scores of the study's protocol are computed from the stages' predictions where they are not
    kept beside them yet. Raises ValueError where a stage is not finished, or where arms differ in
    protocol, in the videos that they were scored on, or in their seeds (an ensemble of seeds may
    have fewer): such numbers do not belong into one column.
    """
    study = plan.study
    built = [arm for arm in study.arms if not plan.missing(arm)]
    _check_seeds(plan, built)
    scoring = Scoring.of(store, study.data, study.protocol)
    runs = [run for arm in built for run in plan.of(arm.name)]
    found = {(run.arm, run.seed): _scores(run, scoring) for run in runs}
    protocol, scored, expected, frames = _common_setting(study.name, found)
    rows = [_row(plan, store, arm, found) for arm in study.arms]
    resamples = enough_resamples(study) if resamples is None else resamples
    rows = _compared(plan, scoring, rows, resamples)
    drawn = [c.difference.resamples for row in rows for c in row.cells.values() if c.difference]
    unreadable = {name: why for row in rows for name, why in row.unreadable.items()}
    return ResultTable(
        study.name, study.table.title or study.name, study.baseline, tuple(rows), protocol, scored,
        expected, frames, len(study.seeds), min(drawn, default=resamples), study.table.source,
        unreadable, study.table,
    )  # fmt: skip


def _check_seeds(plan: Plan, arms: list[Arm]) -> None:
    seeds = {arm.name: tuple(run.seed for run in plan.of(arm.name)) for arm in arms}
    wanted = tuple(plan.study.seeds)
    odd = {arm.name: seeds[arm.name] for arm in arms if not arm.seeds_of}
    odd = {name: has for name, has in odd.items() if sorted(has) != sorted(wanted)}
    odd |= {arm.name: () for arm in arms if arm.seeds_of and not seeds[arm.name]}
    if odd:
        listed = "; ".join(f"{name!r} has {list(has)}" for name, has in odd.items())
        raise ValueError(
            f"study {plan.study.name!r} has seeds {list(wanted)}, but {listed}: run the missing "
            "seeds, or leave these arms out"
        )


def _scores(run: Run, scoring: Scoring) -> dict[str, Reading]:
    try:
        return {readout: scoring.reading(stage.id) for readout, stage in _ends(run)}
    except ValueError as error:
        raise ValueError(f"arm {run.arm!r} seed {run.seed}: {error}") from error


def _ends(run: Run) -> Iterator[tuple[str, Stage]]:
    """The stages that score a run, by read-out."""
    for readout, stage in (("finetuned", run.predict), ("probe", run.probe)):
        if stage is not None:
            yield readout, stage


Setting = tuple[str, int, int, int]


def _common_setting(study: str, found: Mapping[tuple[str, int], Mapping[str, Reading]]) -> Setting:
    """Protocol, videos scored and expected, and frames of all scores."""
    fields = attrgetter("protocol", "videos_scored", "videos_expected", "frames")
    arms: dict[Setting, list[str]] = {}
    for (arm, seed), scores in found.items():
        for score in scores.values():
            arms.setdefault(fields(score), []).append(f"{arm} (seed {seed})")
    if not arms:
        raise ValueError(f"study {study!r}: no arm has a score, so there is no table")
    if len(arms) > 1:
        parts = [
            f"{protocol} on {scored} of {expected} videos, {frames} frames: "
            + ", ".join(dict.fromkeys(names))
            for (protocol, scored, expected, frames), names in sorted(arms.items())
        ]
        raise ValueError(
            f"study {study!r} mixes protocols or coverage: {'; '.join(parts)}. Score the arms on "
            "the same videos (remove the odd stages, they run again), or leave some arms out"
        )
    return next(iter(arms))


def _row(
    plan: Plan,
    store: Store,
    arm: Arm,
    found: Mapping[tuple[str, int], Mapping[str, Reading]],
) -> Row:
    quoted = plan.study.table.quoted.get(arm.name)
    ensemble = bool(arm.members or arm.seeds_of)
    against = plan.study.baseline_of(arm.name)
    if missing := plan.missing(arm):
        return Row(arm.name, arm.label, {}, quoted, ensemble, missing, against=against)
    runs = plan.of(arm.name)
    cells = {}
    for readout in READOUTS:
        ids = {run.seed: stage.id for run in runs for name, stage in _ends(run) if name == readout}
        if ids:
            scores = {seed: found[arm.name, seed][readout].number for seed in ids}
            cells[readout] = Cell(scores, None, ids)
    unreadable, training = _coverage(runs, store)
    return Row(
        arm.name, arm.label, cells, quoted, ensemble, "", _costs(plan.study, arm), unreadable,
        training, against,
    )  # fmt: skip


def _coverage(runs: list[Run], store: Store) -> tuple[dict[str, str], tuple[str, ...]]:
    """Videos that these runs could not read, and the parts of data sets that they trained on
    where seeds differ or something is missing."""
    unreadable: dict[str, str] = {}
    trained: dict[str, set[tuple[int, int]]] = {}
    for run in runs:
        for _, end in _ends(run):
            for stage in ancestry(end):
                result = store.result(stage.id) or {}
                for name in ("replaced", "unreadable", "unreadable_train"):
                    unreadable |= result.get(name, {})
                if "videos_expected" in result:
                    counts = (result["videos"], result["videos_expected"])
                    trained.setdefault(stage.kind, set()).add(counts)
    odd = []
    for kind, counts_found in trained.items():
        if len(counts_found) > 1 or any(videos != expected for videos, expected in counts_found):
            counts_said = " or ".join(f"{v} of {n}" for v, n in sorted(counts_found))
            odd.append(f"{kind} on {counts_said} videos")
    return unreadable, tuple(odd)


def _costs(study: Study, arm: Arm) -> dict[str, float]:
    wanted = [name for name in COSTS if name in study.table.columns]
    if not wanted:
        return {}
    from ssdet.studies.network_costs import macs, parameter_count, pretraining_pflops

    assert study.base is not None
    manifests = study.data.manifests
    upstream, downstream = (manifests[role].num_classes for role in ("upstream", "downstream"))
    totals = dict.fromkeys(wanted, 0.0)
    for name in arm.members or [arm.seeds_of or arm.name] * (arm.size if arm.seeds_of else 1):
        experiment = study.arm(name).change(study.base)
        for cost in wanted:
            totals[cost] += {
                "parameters": lambda e: parameter_count(e, downstream),
                "macs": lambda e: macs(e, downstream),
                "pflops": lambda e: pretraining_pflops(e, upstream),
            }[cost](experiment)
    return totals


def _compared(plan: Plan, scoring: Scoring, rows: list[Row], resamples: int) -> list[Row]:
    """The rows with every read-out compared with that of the row's own baseline."""
    for readout in READOUTS:
        cells = {row.arm: row.cells[readout] for row in rows if readout in row.cells}
        others = [row for row in rows if row.arm in cells and row.against in cells]
        differences = [_difference(scoring, cells, row, resamples) for row in others]
        # One family over all baselines: an arm that was tuned has had a second chance to win.
        adjusted = holm([difference.p_value for difference in differences])
        judged = {
            row.arm: _judged(cells[row.arm], cells[row.against], difference, p, len(others))
            for row, difference, p in zip(others, differences, adjusted, strict=True)
        }
        rows = [
            replace(row, cells={**row.cells, readout: judged[row.arm]})
            if row.arm in judged
            else row
            for row in rows
        ]
    return rows


def _judged(
    cell: Cell, base: Cell, difference: BootstrapResult, p_adjusted: float, comparisons: int
) -> Cell:
    seeds = len(cell.scores.keys() & base.scores.keys())
    sd = paired_sd(base.scores, cell.scores)
    detectable = None if sd is None else detectable_difference(sd, seeds, comparisons=comparisons)
    return replace(
        cell,
        difference=difference,
        p_adjusted=p_adjusted,
        effect=effect_size(base.scores, cell.scores),
        detectable=detectable,
        verdict=verdict(
            difference.difference, difference.low, difference.high, p_adjusted, seeds, detectable
        ),
    )


def _difference(
    scoring: Scoring, cells: Mapping[str, Cell], row: Row, resamples: int
) -> BootstrapResult:
    ours, base = cells[row.arm].runs, cells[row.against].runs
    if len(ours) == 1:  # the one ensemble of all seeds stands against every seed of the baseline
        ours = dict.fromkeys(base, *ours.values())
    seeds = sorted(ours.keys() & base.keys())
    sides = [[scoring.statistic(of[seed]) for seed in seeds] for of in (base, ours)]
    return paired_difference(sides[0], sides[1], resamples)


def predictions(plan: Plan, store: Store, arm: str, readout: str) -> dict[int, PredictionSet]:
    """Prediction sets of an arm on the test split, by seed; empty without this read-out."""
    return {
        run.seed: PredictionSet.open(store.fetch(stage.id, TEST) / TEST)
        for run in plan.of(arm)
        for name, stage in _ends(run)
        if name == readout
    }


HEADER = (
    "arm", "readout", "mean", "sd", "seeds", "difference", "low", "high", "p_value",
    "paper_quoted_percent", "protocol", "videos_scored", "videos_expected", "frames",
    "scores_by_seed", "p_adjusted", "effect", "detectable", "verdict", "needs", "unreadable",
    *COSTS,
)  # fmt: skip


def write_csv(table: ResultTable, path: Path) -> None:
    """The numbers as fractions, one line an arm and read-out; equal results are equal files.

    A declared arm that is not built has one line without numbers. Only a table of several
    baselines has the column `against`.
    """
    header = (*HEADER, "against") if table.several_baselines else HEADER
    with text_file(path) as file:
        writer = csv.DictWriter(file, header, lineterminator="\r\n")
        writer.writeheader()
        for row in table.rows:
            shared = _shared(table, row)
            if row.needs:
                writer.writerow({**shared, "needs": row.needs})
            for readout, cell in row.cells.items():
                writer.writerow({**shared, "readout": readout, **_numbers(cell)})


def _shared(table: ResultTable, row: Row) -> dict[str, Any]:
    return {
        "arm": row.arm,
        "paper_quoted_percent": "" if row.quoted is None else row.quoted,
        "protocol": table.protocol,
        "videos_scored": table.videos_scored,
        "videos_expected": table.videos_expected,
        "frames": table.frames,
        "unreadable": len(row.unreadable),
        **{name: f"{value:.9g}" for name, value in row.costs.items()},
        **({"against": row.against} if table.several_baselines else {}),
    }


def _numbers(cell: Cell) -> dict[str, Any]:
    numbers = {
        "mean": cell.mean,
        "sd": cell.sd,
        "p_adjusted": cell.p_adjusted,
        "effect": cell.effect,
        "detectable": cell.detectable,
    }
    for name in ("difference", "low", "high", "p_value"):
        numbers[name] = getattr(cell.difference, name, None)
    return {
        **{name: "" if value is None else f"{value:.6f}" for name, value in numbers.items()},
        "seeds": len(cell.scores),
        "scores_by_seed": " ".join(f"{seed}:{v:.6f}" for seed, v in cell.scores.items()),
        "verdict": cell.verdict,
    }
