"""From finished stages to a table: mean ± sd over seeds, and differences with their uncertainty."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssdet.evaluation import PredictionSet, mean_and_sd, paired_bootstrap
from ssdet.evaluation.significance import BootstrapResult
from ssdet.studies.plan import Plan, Run
from ssdet.studies.store import Store
from ssdet.training.inference import frame_targets

READOUTS = {"finetuned": "fine-tuned", "probe": "linear probe"}


@dataclass(frozen=True)
class Cell:
    """One read-out of one arm: scores of its seeds (fractions), and how it differs."""

    scores: Mapping[int, float]
    """Score by seed."""
    difference: BootstrapResult | None
    """Against the baseline, over videos and the seeds that both have; None for the baseline."""

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
    """By read-out; an ensemble has no probe."""
    quoted: float | None
    """The paper's number in percent."""


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


def result_table(plan: Plan, store: Store, resamples: int = 1000) -> ResultTable:
    """Table of a finished study on its test split.

    Raises ValueError where a stage is not finished, or where scores differ in protocol or in the
    videos that they were computed on: such numbers do not belong into one column.
    """
    study = plan.study
    manifest = study.data.split("downstream", "test")
    targets = frame_targets(manifest, study.data.reader("downstream"))
    found = {(run.arm, run.seed): _scores(run, store) for run in plan.runs}
    kinds = {_setting(score) for scores in found.values() for score in scores.values()}
    if len(kinds) > 1:
        raise ValueError(f"study {study.name!r} mixes protocols or coverage: {sorted(kinds)}")
    protocol, scored, expected, frames = kinds.pop()
    if protocol != study.protocol:
        raise ValueError(f"study {study.name!r} asks for {study.protocol}, scores are {protocol}")
    rows = []
    for arm in study.arms:
        cells = {}
        for readout in READOUTS:
            mine = {run.seed: found[arm.name, run.seed] for run in plan.of(arm.name)}
            scores = {seed: s[readout]["value"] for seed, s in mine.items() if readout in s}
            if scores:
                difference = _difference(plan, store, arm.name, readout, targets, resamples)
                cells[readout] = Cell(scores, difference)
        rows.append(Row(arm.name, arm.label, cells, study.table.quoted.get(arm.name)))
    return ResultTable(
        study.name, study.table.title or study.name, study.baseline, tuple(rows), protocol, scored,
        expected, frames, len(study.seeds), resamples, study.table.source, _unreadable(plan, store),
    )  # fmt: skip


def _scores(run: Run, store: Store) -> dict[str, dict[str, Any]]:
    scores = {}
    for readout, stage in (("finetuned", run.predict), ("probe", run.probe)):
        if stage is None:
            continue
        result = store.result(stage.id)
        if result is None:
            raise ValueError(f"arm {run.arm!r} seed {run.seed}: {stage.id} is not finished")
        scores[readout] = result["scores"]["test"]
    return scores


def _unreadable(plan: Plan, store: Store) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in plan.stages:
        result = store.result(name) or {}
        for field in ("replaced", "unreadable", "unreadable_train"):
            found |= result.get(field, {})
    return found


def _setting(score: Mapping[str, Any]) -> tuple[str, int, int, int]:
    return score["protocol"], score["videos_scored"], score["videos_expected"], score["frames"]


def _difference(
    plan: Plan,
    store: Store,
    arm: str,
    readout: str,
    targets: Mapping[str, np.ndarray],
    resamples: int,
) -> BootstrapResult | None:
    if arm == plan.study.baseline:
        return None
    ours = _predictions(plan, store, arm, readout)
    base = _predictions(plan, store, plan.study.baseline, readout)
    if len(ours) == 1:  # the one ensemble of all seeds stands against every seed of the baseline
        ours = dict.fromkeys(base, *ours.values())
    seeds = sorted(ours.keys() & base.keys())
    scored = {name: rows for name, rows in targets.items() if name in base[seeds[0]]}
    return paired_bootstrap(
        [base[seed] for seed in seeds], [ours[seed] for seed in seeds], scored, resamples
    )


def _predictions(plan: Plan, store: Store, arm: str, readout: str) -> dict[int, PredictionSet]:
    sets = {}
    for run in plan.of(arm):
        stage = run.predict if readout == "finetuned" else run.probe
        if stage is not None:
            sets[run.seed] = PredictionSet.open(store.folder(stage.id) / "predictions" / "test")
    return sets


HEADER = ("arm", "mAP, fine-tuned", "difference [95 %]", "mAP, linear probe", "difference [95 %]",
          "paper (quoted)", "seeds")  # fmt: skip


def cells(table: ResultTable) -> list[tuple[str, ...]]:
    """The table as text, in percent, in the order of `HEADER`."""
    rows = []
    for row in table.rows:
        shown = [row.label]
        for readout in READOUTS:
            shown += _texts(row.cells.get(readout), row.arm == table.baseline)
        quoted = "" if row.quoted is None else f"{row.quoted:.2f}"
        rows.append((*shown, quoted, str(len(row.cells["finetuned"].scores))))
    return rows


def _texts(cell: Cell | None, baseline: bool) -> list[str]:
    if cell is None:
        return ["", ""]
    spread = "" if cell.sd is None else f" ± {100 * cell.sd:.2f}"
    value = f"{100 * cell.mean:.2f}{spread}"
    d = cell.difference
    if d is None:
        return [value, "baseline" if baseline else ""]
    interval = f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return [value, f"{100 * d.difference:+.2f} {interval}"]


def footnotes(table: ResultTable) -> list[str]:
    """What one has to know to read the numbers."""
    notes = [
        f"Protocol {table.protocol} on the test split: {table.videos_scored} of "
        f"{table.videos_expected} videos, {table.frames} frames. mAP in percent, "
        + ("one seed." if table.seeds == 1 else f"mean ± standard deviation, {table.seeds} seeds."),
        f"Difference from “{table.baseline}” with a 95 % interval: paired bootstrap, "
        f"{table.resamples} resamples of videos and seeds.",
    ]
    if table.unreadable:
        listed = ", ".join(f"{name} ({why})" for name, why in sorted(table.unreadable.items())[:5])
        more = ", …" if len(table.unreadable) > 5 else ""
        notes.append(
            f"{len(table.unreadable)} videos could not be read; in training other clips stood in "
            f"for them: {listed}{more}"
        )
    if any(row.quoted is not None for row in table.rows):
        notes.append(f"Quoted, not measured here: {table.source}")
    return notes


def write_markdown(table: ResultTable, path: Path) -> None:
    """The table as Markdown with its footnotes."""
    lines = [f"# {table.title}", "", _line(HEADER), _line(["---"] * len(HEADER))]
    lines += [_line(row) for row in cells(table)]
    lines += ["", *(f"- {note}" for note in footnotes(table)), ""]
    path.write_text("\n".join(lines))


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def write_csv(table: ResultTable, path: Path) -> None:
    """The numbers as fractions, one line an arm and read-out; equal results are equal files."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["arm", "readout", "mean", "sd", "seeds", "difference", "low", "high", "p_value",
             "paper_quoted_percent", "protocol", "videos_scored", "videos_expected", "frames",
             "scores_by_seed"]
        )  # fmt: skip
        for row in table.rows:
            for readout, cell in row.cells.items():
                d = cell.difference
                differing = (
                    ["", "", "", ""]
                    if d is None
                    else [
                        _number(d.difference),
                        _number(d.low),
                        _number(d.high),
                        _number(d.p_value),
                    ]
                )
                by_seed = " ".join(f"{seed}:{_number(v)}" for seed, v in cell.scores.items())
                writer.writerow(
                    [row.arm, readout, _number(cell.mean), _number(cell.sd), len(cell.scores),
                     *differing, "" if row.quoted is None else row.quoted, table.protocol,
                     table.videos_scored, table.videos_expected, table.frames, by_seed]
                )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
