"""Figures of the report as data URIs, with text alternatives."""

import base64
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ssdet.results.figures.figure_data import ClassGain, Curve, class_gains, curves
from ssdet.results.figures.study_figures import (
    write_class_gains,
    write_curves,
    write_figure,
    write_forest,
)
from ssdet.results.tables.columns import difference_text, label_against, p_text, score_title
from ssdet.results.tables.result_table import READOUTS, ResultTable, Row
from ssdet.store.base import Store
from ssdet.studies.graph.plan import Plan


@dataclass(frozen=True)
class Picture:
    """One figure."""

    title: str
    uri: str
    """SVG as a data URI."""
    alt: str
    """Text alternative with the numbers of the figure."""


def pictures(plan: Plan, store: Store, table: ResultTable) -> Iterator[Picture]:
    """Forest plot, scores, learning curves, and the best arm's gains by class; figures without data
    are left out."""
    if any(cell.difference for row in table.rows for cell in row.cells.values()):
        yield _picture("Differences from the baseline", _differences_text(table),
                       lambda path: write_forest(_with_baselines(table), path))  # fmt: skip
    yield _picture("Scores", _scores_text(table), lambda path: write_figure(table, path))
    if lines := curves(plan, store):
        yield _picture("Learning curves", _curves_text(lines),
                       lambda path: write_curves(lines, path))  # fmt: skip
    if (best := best_row(table)) is not None:
        layout = replace(plan.study.table, baseline=best.against, against={})
        pair = replace(plan, study=replace(plan.study, table=layout))
        gains = class_gains(pair, store, best.arm)
        title = f"Gains by class of “{label_against(table, best)}”, the highest difference"
        yield _picture(title, _gains_text(gains), lambda path: write_class_gains(gains, path))


def _picture(title: str, alt: str, write: Callable[[Path], Path]) -> Picture:
    with tempfile.TemporaryDirectory() as folder:
        data = write(Path(folder) / "figure.svg").read_bytes()
    return Picture(title, f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}", alt)


def best_row(table: ResultTable) -> Row | None:
    """The arm with the highest fine-tuned difference from its baseline, if any."""
    ranked = [
        (cell.difference.difference, -index, row)
        for index, row in enumerate(table.rows)
        if (cell := row.cells.get("finetuned")) is not None and cell.difference is not None
    ]
    return max(ranked)[2] if ranked else None


def _with_baselines(table: ResultTable) -> ResultTable:
    """The table with labels that name an arm's own baseline, if it has one."""
    rows = tuple(replace(row, label=label_against(table, row)) for row in table.rows)
    return replace(table, rows=rows)


def _differences_text(table: ResultTable) -> str:
    table, parts = _with_baselines(table), []
    for readout, name in READOUTS.items():
        cells = [(row.label, row.cells[readout]) for row in table.rows if readout in row.cells]
        texts = [
            f"{label} {difference_text(cell)}, p {p_text(cell.p_adjusted)}"
            for label, cell in cells
            if cell.difference
        ]
        parts += [f"{name}: {'; '.join(texts)}."] if texts else []
    score = score_title(table.protocol)
    return f"Differences in points of {score} with 95 % intervals. {' '.join(parts)}"


def _scores_text(table: ResultTable) -> str:
    parts = []
    for readout, name in READOUTS.items():
        cells = [(row.label, row.cells[readout]) for row in table.rows if readout in row.cells]
        if cells:
            told = "; ".join(f"{label} {100 * cell.mean:.1f}" for label, cell in cells)
            parts.append(f"{name}: {told}.")
    score = score_title(table.protocol)
    return f"Mean {score} in percent as bars, single seeds as dots. {' '.join(parts)}"


def _curves_text(lines: list[Curve]) -> str:
    ends: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        ends.setdefault((line.kind, line.field, line.arm), []).append(line.values[-1])
    texts = [
        f"{kind}, {field} of {arm}: {sum(values) / len(values):.3g}"
        for (kind, field, arm), values in ends.items()
    ]
    return f"Loss and validation score by step. At the end, mean over seeds: {'; '.join(texts)}."


def _gains_text(gains: list[ClassGain]) -> str:
    ordered = sorted(gains, key=lambda gain: (-gain.mean, gain.name))
    text = "; ".join(f"{gain.name} {100 * gain.mean:+.1f}" for gain in ordered)
    return f"Difference of average precision in points, largest first: {text}."
