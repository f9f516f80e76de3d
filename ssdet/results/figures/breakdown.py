"""Scores of a finished study's arms by strata of frames: table on the console, CSV, Markdown."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from ssdet.data.loading.recipe import DENSE
from ssdet.evaluation import PredictionSet, paired_bootstrap
from ssdet.evaluation.protocols.strata import (
    PUBLISHED,
    Stratum,
    StratumScore,
    strata,
    stratum_masks,
    stratum_scores,
    stratum_targets,
)
from ssdet.evaluation.statistics.bootstrap import BootstrapResult
from ssdet.evaluation.statistics.comparison import holm
from ssdet.inference.scoring import frame_targets
from ssdet.results.tables.columns import AGAINST, difference_text
from ssdet.results.tables.render import markdown_text
from ssdet.results.tables.result_table import READOUTS, Cell, predictions
from ssdet.store.base import Store
from ssdet.studies.graph.plan import Plan
from ssdet.studies.study import Study
from ssdet.system.console import plain_console
from ssdet.system.safe_files import text_file, write_text

Sets = Mapping[int, PredictionSet]
"""Predictions by seed."""
Scores = Mapping[str, Mapping[int, Mapping[str, StratumScore]]]
"""By arm, seed and stratum."""


@dataclass(frozen=True)
class Quote:
    """Numbers of a publication, as it prints them."""

    value: Mapping[str, float] = field(default_factory=dict)
    """mAP in percent by stratum."""
    difference: Mapping[str, float] = field(default_factory=dict)
    """Difference from the baseline in percentage points by stratum."""


@dataclass(frozen=True)
class BreakdownRow:
    """One arm."""

    arm: str
    label: str
    cells: Mapping[str, Cell]
    """By stratum; strata without a positive frame are left out."""
    quoted: Quote
    against: str = ""
    """Arm that this arm is compared with; empty for the baseline."""


@dataclass(frozen=True)
class Breakdown:
    """Scores of arms by stratum, with protocols and coverage."""

    study: str
    title: str
    baseline: str
    readout: str
    strata: Mapping[str, StratumScore]
    """Protocol, videos, frames and positives of each stratum, from the baseline's first seed."""
    rows: tuple[BreakdownRow, ...]
    seeds: int
    resamples: int
    source: str

    @property
    def several_baselines(self) -> bool:
        """Whether an arm is compared with another arm than the baseline."""
        return any(row.against not in ("", self.baseline) for row in self.rows)


def breakdown(
    plan: Plan,
    store: Store,
    quoted: Mapping[str, Quote] | None = None,
    source: str = "",
    by: Sequence[Stratum] = PUBLISHED,
    readout: str = "finetuned",
    resamples: int = 1000,
) -> Breakdown:
    """Scores and differences of a finished study's arms inside strata of its test frames.

    ``quoted``: a publication's numbers by arm; ``source``: the publication. Differences are
    resampled over the videos that have a frame in the stratum, and over seeds. Raises ValueError
    where a stage is not finished, for a protocol other than dense_map/v1, or where arms were scored
    on different videos or frames.
    """
    study = plan.study
    if study.protocol != DENSE:
        raise ValueError(f"study {study.name!r} has protocol {study.protocol}: strata need {DENSE}")
    data = study.data
    targets = frame_targets(data.split("downstream", "test"), data.reader("downstream"))
    sets = _sets(plan, store, readout)
    scores = {arm: {s: strata(p, targets, by) for s, p in sets[arm].items()} for arm in sets}
    common = _common(study.name, scores, study.baseline)
    cells: dict[str, dict[str, Cell]] = {arm: {} for arm in sets}
    for stratum in by:
        if common[stratum.name].positives:
            differences = _differences(study, sets, targets, stratum, resamples)
            for arm, cell in _cells(scores, stratum.name, differences).items():
                cells[arm][stratum.name] = cell
    quotes = quoted or {}
    rows = tuple(
        BreakdownRow(
            arm.name,
            arm.label,
            cells[arm.name],
            quotes.get(arm.name, Quote()),
            study.baseline_of(arm.name),
        )
        for arm in study.arms
        if arm.name in sets
    )
    return Breakdown(
        study.name, study.table.title or study.name, study.baseline, readout, common, rows,
        len(study.seeds), resamples, source,
    )  # fmt: skip


def _sets(plan: Plan, store: Store, readout: str) -> dict[str, Sets]:
    """Test predictions of the arms that have this read-out."""
    if readout not in READOUTS:
        raise ValueError(f"readout={readout!r}: choose one of {', '.join(READOUTS)}")
    for run in plan.runs:
        stage = run.predict if readout == "finetuned" else run.probe
        if stage is not None and store.result(stage.id) is None:
            raise ValueError(f"arm {run.arm!r} seed {run.seed}: {stage.id} is not finished")
    sets = {arm.name: predictions(plan, store, arm.name, readout) for arm in plan.study.arms}
    return {arm: by_seed for arm, by_seed in sets.items() if by_seed}


def _common(study: str, scores: Scores, baseline: str) -> Mapping[str, StratumScore]:
    if baseline not in scores:
        raise ValueError(f"study {study!r}: its baseline {baseline!r} has no such read-out")
    first = next(iter(scores[baseline].values()))
    for arm, by_seed in scores.items():
        for seed, by_stratum in by_seed.items():
            for name, score in by_stratum.items():
                if (mine := _setting(score)) != (others := _setting(first[name])):
                    raise ValueError(
                        f"study {study!r}, stratum {name}: arm {arm!r} seed {seed} was scored on "
                        f"(videos, frames, positives) {mine}, {baseline!r} on {others}: run the "
                        "stages that lack videos again"
                    )
    return first


def _setting(score: StratumScore) -> tuple[int, int, int]:
    return score.videos_scored, score.frames, score.positives


def _cells(
    scores: Scores, name: str, differences: Mapping[str, BootstrapResult | None]
) -> dict[str, Cell]:
    """Each arm's cell of one stratum; p-values are corrected over its rows."""
    tested = {arm: result.p_value for arm, result in differences.items() if result is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    cells = {}
    for arm, difference in differences.items():
        values = {seed: by_stratum[name].value for seed, by_stratum in scores[arm].items()}
        scored = {seed: value for seed, value in values.items() if value is not None}
        cells[arm] = Cell(scored, difference, p_adjusted=adjusted.get(arm))
    return cells


def _differences(
    study: Study,
    sets: Mapping[str, Sets],
    targets: Mapping[str, np.ndarray],
    stratum: Stratum,
    resamples: int,
) -> dict[str, BootstrapResult | None]:
    """Difference of each arm from its baseline inside one stratum; None without one."""
    scored = {v: targets[v] for v in next(iter(sets[study.baseline].values()))}
    masks = stratum_masks(stratum, scored)
    truth = stratum_targets(scored, masks)
    differences: dict[str, BootstrapResult | None] = {}
    for arm, ours in sets.items():
        if (base := sets.get(study.baseline_of(arm))) is None:
            differences[arm] = None
            continue
        if len(ours) == 1:  # an ensemble of all seeds is compared with every seed of the baseline
            ours = dict.fromkeys(base, *ours.values())
        seeds = sorted(ours.keys() & base.keys())
        a, b = ([stratum_scores(of[seed], masks) for seed in seeds] for of in (base, ours))
        try:
            differences[arm] = paired_bootstrap(a, b, truth, resamples)
        except ValueError as error:
            raise ValueError(f"stratum {stratum.name}, arm {arm!r}: {error}") from error
    return differences


def breakdown_header(table: Breakdown) -> tuple[str, ...]:
    """Column titles of `breakdown_rows`: a stratum's name, protocol and frames, in lines."""
    titles = ["arm", *([AGAINST] if table.several_baselines else [])]
    for name in _columns(table):
        score = table.strata[name]
        titles.append(f"{name}\n{score.protocol}\n{score.frames} frames")
        if _quotes(table, name):
            titles.append("paper\n(quoted)")
    return (*titles, "seeds")


def breakdown_rows(table: Breakdown) -> list[tuple[str, ...]]:
    """The table as text in percent, in the order of `breakdown_header`; a cell may have lines."""
    rows = []
    labels = {row.arm: row.label for row in table.rows}
    for row in table.rows:
        shown = [row.label]
        if table.several_baselines:
            shown.append(labels.get(row.against, ""))
        for name in _columns(table):
            shown.append(_text(row.cells[name]))
            if _quotes(table, name):
                shown.append(_quoted(row.quoted, name))
        rows.append((*shown, str(max((len(c.scores) for c in row.cells.values()), default=0))))
    return rows


def _columns(table: Breakdown) -> list[str]:
    return [name for name, score in table.strata.items() if score.positives]


def _quotes(table: Breakdown, name: str) -> bool:
    return any(_quoted(row.quoted, name) for row in table.rows)


def _text(cell: Cell) -> str:
    spread = "" if cell.sd is None else f" ± {100 * cell.sd:.2f}"
    return f"{100 * cell.mean:.2f}{spread}\n{difference_text(cell)}".rstrip()


def _quoted(quote: Quote, name: str) -> str:
    lines = [f"{quote.value[name]:.2f}"] if name in quote.value else []
    lines += [f"{quote.difference[name]:+.2f}"] if name in quote.difference else []
    return "\n".join(lines)


def breakdown_notes(table: Breakdown) -> list[str]:
    """Notes below the table: protocol, coverage, intervals, sources."""
    any_stratum = next(iter(table.strata.values()))
    baseline = next(row.label for row in table.rows if row.arm == table.baseline)
    other = f"the arm under “{AGAINST}”" if table.several_baselines else f"“{baseline}”"
    seeds = "one seed" if table.seeds == 1 else f"mean ± standard deviation, {table.seeds} seeds"
    notes = [
        f"Dense mAP of the frames of a stratum alone ({READOUTS[table.readout]}), in percent; "
        f"{seeds}. Test split: {any_stratum.videos_scored} of {any_stratum.videos_expected} "
        "videos; classes without a positive in a stratum are left out of its mean.",
        f"Below it the difference from {other} with a 95 % interval: paired bootstrap, "
        f"{table.resamples} resamples of the stratum's videos and of seeds. Intervals are not "
        "corrected for the number of comparisons; p_adjusted in the CSV is (Holm, in a stratum).",
    ]
    if empty := {n: s.frames for n, s in table.strata.items() if not s.positives}:
        listed = ", ".join(f"{name} ({frames} frames)" for name, frames in empty.items())
        notes.append(f"No score without a positive frame: {listed}.")
    if any(_quotes(table, name) for name in _columns(table)):
        notes.append(f"Quoted, not measured here, a difference with its sign: {table.source}")
    return notes


def show_breakdown(table: Breakdown, out: Console) -> None:
    """Print the table, in full width without a terminal."""
    shown = RichTable(title=f"{table.title}: by strata of frames", show_lines=True)
    for title in breakdown_header(table):
        shown.add_column(title, justify="left" if title == "arm" else "right")
    for row in breakdown_rows(table):
        shown.add_row(*row)
    wide = out if out.is_terminal else plain_console(240, file=out.file)
    wide.print(shown)
    for note in breakdown_notes(table):
        out.print(note, soft_wrap=True, markup=False)


def write_breakdown(table: Breakdown, folder: Path) -> None:
    """Write `breakdown.csv` and `breakdown.md`; equal results give equal bytes."""
    header = breakdown_header(table)
    lines = [f"# {markdown_text(table.title)}: by strata of frames", ""]
    lines += [_line(header), _line(["---"] * len(header))]
    lines += [_line(row) for row in breakdown_rows(table)]
    lines += ["", *(f"- {markdown_text(note)}" for note in breakdown_notes(table)), ""]
    write_text(folder / "breakdown.md", "\n".join(lines))
    with text_file(folder / "breakdown.csv") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *(["against"] if table.several_baselines else [])))
        writer.writeheader()
        for row in table.rows:
            writer.writerows(_numbers(table, row, name) for name in table.strata)


def _line(texts: Sequence[str]) -> str:
    cells = ["<br>".join(map(markdown_text, text.split("\n"))) for text in texts]
    return f"| {' | '.join(cells)} |"


SHARED = (
    "protocol", "videos_scored", "videos_expected", "frames", "pairs", "positives",
    "classes_scored",
)  # fmt: skip
COLUMNS = (
    "arm", "readout", "stratum", "mean", "sd", "seeds", "difference", "low", "high", "p_value",
    "p_adjusted", "paper_quoted_percent", "paper_quoted_difference_points", *SHARED,
    "scores_by_seed",
)  # fmt: skip


def _numbers(table: Breakdown, row: BreakdownRow, name: str) -> dict[str, Any]:
    """One line of the CSV: numbers as fractions, quoted ones as in the publication."""
    score = table.strata[name]
    line = {
        "arm": row.arm,
        "readout": table.readout,
        "stratum": name,
        "seeds": 0,
        "paper_quoted_percent": row.quoted.value.get(name),
        "paper_quoted_difference_points": row.quoted.difference.get(name),
        **{column: getattr(score, column) for column in SHARED},
        **({"against": row.against} if table.several_baselines else {}),
    }
    if (cell := row.cells.get(name)) is None:
        return line
    numbers = {"mean": cell.mean, "sd": cell.sd, "p_adjusted": cell.p_adjusted}
    for column in ("difference", "low", "high", "p_value"):
        numbers[column] = getattr(cell.difference, column, None)
    return {
        **line,
        **{column: None if x is None else f"{x:.6f}" for column, x in numbers.items()},
        "seeds": len(cell.scores),
        "scores_by_seed": " ".join(f"{seed}:{value:.6f}" for seed, value in cell.scores.items()),
    }
