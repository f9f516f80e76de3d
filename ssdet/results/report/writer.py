"""Writing the report of a finished study as one self-contained HTML page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ssdet.data.loading.recipe import DENSE
from ssdet.execution.tuning import SUFFIX, Choice, choices
from ssdet.results.figures.breakdown import (
    breakdown,
    breakdown_header,
    breakdown_notes,
    breakdown_rows,
)
from ssdet.results.report.costs import costs, of_node
from ssdet.results.report.images import best_row, pictures
from ssdet.results.report.page import render
from ssdet.results.report.plan_drawing import BOX, HEIGHT, draw, nodes
from ssdet.results.report.sentences import compared, outcomes, warnings
from ssdet.results.report.stage_entries import labels, run_entries, stage_entries, utc
from ssdet.results.report.viewer import Viewer, viewer
from ssdet.results.tables.render import html
from ssdet.results.tables.result_table import Cell, ResultTable, result_table
from ssdet.store.base import Store
from ssdet.studies.graph.audit import audit
from ssdet.studies.graph.plan import Plan
from ssdet.studies.graph.record import record_of
from ssdet.studies.scoring import Scoring
from ssdet.system.console import duration
from ssdet.system.safe_files import write_bytes

BREAKDOWN_SCORES = 20_000_000
"""Maximum number of scores for which the page has a breakdown; more would take minutes."""

PLANNED = ("stages", "done", "at_once", "work_seconds", "wall_seconds")


@dataclass(frozen=True)
class Written:
    """A written report and its viewer."""

    path: Path
    bytes: int
    viewer: Viewer


@dataclass(frozen=True)
class Tuned:
    """Scores of an arm without and with tuned nuisance parameters, in percent."""

    label: str
    untuned: str
    tuned: str
    gain: float
    choice: Choice | None
    """None where the store has no record of the tuning."""


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one class, in percent; mean over seeds."""

    name: str
    scores: Mapping[str, float | None]
    """By label of the arm."""


def write_report(
    plan: Plan,
    store: Store,
    path: Path,
    videos: int = 12,
    megabytes: float = 4.0,
    resamples: int | None = None,
    planned: Path | None = None,
) -> Written:
    """Write the page of a finished study; equal stores give equal bytes.

    videos: test videos in the timeline viewer, fewer if the page would exceed `megabytes` (10⁶
    bytes); other parts are never cut. planned: output of `ssdet plan --json` before the run, shown
    beside the actual cost; by default the estimate in the store. ValueError where there is no
    table: see `result_table`.
    """
    if videos < 0 or megabytes <= 0:
        raise ValueError(f"videos={videos}, megabytes={megabytes}: expected 0 or more, above 0")
    stored = store.estimate(record_of(plan, 0.0).digest)
    estimate = stored if planned is None else _planned(planned)
    table = result_table(plan, store, resamples)
    values = _values(plan, store, table) | {"planned": estimate}
    best = best_row(table)
    arm = plan.study.baseline if best is None else best.arm
    rest = len(render(**values, viewer=viewer(plan, store, arm, 0, 0)).encode())
    shown = viewer(plan, store, arm, videos, int(1e6 * megabytes) - rest)
    page = render(**values, viewer=shown).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, page)
    return Written(path, len(page), shown)


def _values(plan: Plan, store: Store, table: ResultTable) -> dict[str, Any]:
    """Values of the template."""
    checked = audit(plan, store)
    boxes = nodes(plan)
    return {
        "plan": plan,
        "table": table,
        "table_html": _scrolling(html(table)),
        "compared": compared(plan, table),
        "outcomes": outcomes(table),
        "warnings": warnings(plan, table, checked, store),
        "tuned": _tuned(plan, store, table),
        "pictures": list(pictures(plan, store, table)),
        "classes": _classes(plan, store),
        "breakdown": _breakdown(plan, store, table),
        "drawing": draw(plan, boxes),
        "box": (BOX, HEIGHT),
        "nodes": [(node, of_node(node, store)) for node in boxes],
        "audit": checked,
        "labels": labels(plan.study),
        "costs": costs(plan, store),
        "runs": run_entries(plan, store),
        "stages": stage_entries(plan, store),
        "duration": duration,
        "utc": utc,
    }


def _planned(path: Path) -> dict[str, Any]:
    """An earlier plan's costs; ValueError for another file."""
    try:
        values = json.loads(path.read_bytes())
        return {
            name: float(values[name]) if "seconds" in name else int(values[name])
            for name in PLANNED
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected the output of `ssdet plan EXPERIMENT --json` ({error!r})"
        ) from error


def _scrolling(figure: str) -> Markup:
    """HTML of a table in a scrolling box, with its notes outside."""
    box = '<div class="scroll" role="region" tabindex="0" aria-label="results">'
    opened = figure.replace("<table>", f"{box}<table>", 1)
    return Markup(opened.replace("</table>", "</table></div>", 1))


def _tuned(plan: Plan, store: Store, table: ResultTable) -> list[Tuned]:
    """Arms that have a tuned counterpart in the study."""
    rows = {row.arm: row for row in table.rows}
    try:
        chosen = {c.arm: c for c in choices(store, plan.study.name.removesuffix("_tuned"))}
    except FileNotFoundError:
        chosen = {}
    tuned = []
    for name, row in rows.items():
        other = rows.get(f"{name}{SUFFIX}")
        if other is not None and "finetuned" in row.cells.keys() & other.cells.keys():
            before, after = row.cells["finetuned"], other.cells["finetuned"]
            gain = 100 * (after.mean - before.mean)
            tuned.append(Tuned(row.label, _score(before), _score(after), gain, chosen.get(name)))
    return tuned


def _score(cell: Cell) -> str:
    return f"{100 * cell.mean:.2f}" + ("" if cell.sd is None else f" ± {100 * cell.sd:.2f}")


def _classes(plan: Plan, store: Store) -> list[ClassScore]:
    """Every class by arm, fine-tuned."""
    scores: dict[str, list[Sequence[float | None]]] = {}
    called = labels(plan.study)
    scoring = Scoring.of(store, plan.study.data, plan.study.protocol)
    for arm in plan.study.arms:
        for run in plan.of(arm.name):
            per_class = scoring.reading(run.predict.id).per_class
            scores.setdefault(called[arm.name], []).append(per_class)
    return [
        ClassScore(
            name, {label: _mean([one[k] for one in of if one]) for label, of in scores.items()}
        )
        for k, name in enumerate(plan.study.data.manifests["downstream"].classes)
    ]


def _mean(values: list[float | None]) -> float | None:
    """In percent; None for a class without a positive."""
    scored = [value for value in values if value is not None]
    return 100 * fmean(scored) if scored else None


def _breakdown(plan: Plan, store: Store, table: ResultTable) -> dict[str, Any] | None:
    """Scores in strata of frames, or a note why they are left out; None without strata."""
    scores = len(plan.runs) * table.frames * plan.study.data.manifests["downstream"].num_classes
    if table.protocol != DENSE:
        return None
    if scores > BREAKDOWN_SCORES:
        why = f"Left out: for {scores / 1e6:,.0f} million scores it would take long."
        return {"header": [], "rows": [], "notes": [why]}
    result = breakdown(plan, store, resamples=table.resamples)
    header = breakdown_header(result)
    return {"header": header, "rows": breakdown_rows(result), "notes": breakdown_notes(result)}
