"""Data of the figures: learning curves, gains by class, cost against score."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssdet.inference.scoring import frame_targets
from ssdet.results.tables.result_table import ResultTable
from ssdet.store.base import Store
from ssdet.studies.graph.lineage import named_stages
from ssdet.studies.graph.plan import Plan
from ssdet.studies.scoring import Scoring

LOGGED = ("loss", "validation")
KINDS = ("pretrain", "finetune")
STEPS = ("classification", "detection", "ensemble")


@dataclass(frozen=True)
class Curve:
    """One number over the steps of one training stage."""

    arm: str
    """Its label in tables."""
    seed: int
    kind: str
    """pretrain or finetune; `pretrain, start` for what a pretraining starts from, and
    `…, fine_stream` for a fine stream's."""
    field: str
    """One of `LOGGED`."""
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ClassGain:
    """Difference of an arm's average precision of one class from the baseline's."""

    name: str
    seeds: tuple[float, ...]
    """Differences by seed, fractions."""
    positives: int
    """Frames of the class in the test split."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.seeds))


@dataclass(frozen=True)
class Track:
    """Points of one network in a plot of score against cost, one per training step."""

    label: str
    points: tuple[tuple[float, float], ...]
    """GFLOPs and mAP in percent of each step."""
    quoted: bool = False
    """The points are quoted from a publication, not measured."""
    source: str = ""
    """The publication and its data set."""
    steps: tuple[str, ...] = STEPS


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Logged values of a stage by step, in order. Of a step that a resumed run repeated, the last
    value of each field counts (loss and validation of a step are two lines); incomplete lines are
    skipped."""
    by_step: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        try:
            metrics = json.loads(line)
        except ValueError:
            continue
        if isinstance(metrics, dict) and "step" in metrics:
            by_step.setdefault(metrics["step"], {}).update(metrics)
    return dict(sorted(by_step.items()))


def curves(plan: Plan, store: Store, arms: Sequence[str] = ()) -> list[Curve]:
    """Loss and validation score of the training stages of these arms (all by default)."""
    result: list[Curve] = []
    for arm in plan.study.arms:
        if arm.members or arm.seeds_of or (arms and arm.name not in arms):
            continue
        for run in plan.of(arm.name):
            stages = {n: s for n, s in named_stages(run.predict).items() if s.kind in KINDS}
            for name, stage in stages.items():
                log = store.fetch(stage.id, "metrics.jsonl") / "metrics.jsonl"
                if log.is_file():
                    which = name.removesuffix(stage.kind).strip(".")
                    kind = f"{stage.kind}, {which}" if which else stage.kind
                    result += _curves(log, arm.label, run.seed, kind)
    return result


def _curves(log: Path, arm: str, seed: int, kind: str) -> Iterator[Curve]:
    metrics = read_metrics(log)
    for field in LOGGED:
        pairs = [(step, values[field]) for step, values in metrics.items() if field in values]
        if pairs:
            steps, values = zip(*pairs, strict=True)
            yield Curve(arm, seed, kind, field, steps, values)


def class_gains(plan: Plan, store: Store, arm: str, readout: str = "finetuned") -> list[ClassGain]:
    """Gains of an arm over the baseline in every class with a positive test frame, by seed.

    An ensemble of all seeds is compared with every seed of the baseline. ValueError where a
    stage is not finished.
    """
    study = plan.study
    ours, base = (_per_class(plan, store, name, readout) for name in (arm, study.baseline))
    if len(ours) == 1:
        ours = dict.fromkeys(base, *ours.values())
    manifest = study.data.split("downstream", "test")
    targets = frame_targets(manifest, study.data.reader("downstream"))
    positives_K = sum(rows_TK.sum(0) for rows_TK in targets.values())
    pairs = [(ours[seed], base[seed]) for seed in sorted(ours.keys() & base.keys())]
    return [
        ClassGain(name, tuple(mine[k] - other[k] for mine, other in pairs), int(positives_K[k]))
        for k, name in enumerate(manifest.classes)
        if positives_K[k] and not any(side[k] is None for pair in pairs for side in pair)
    ]


def _per_class(plan: Plan, store: Store, arm: str, readout: str) -> dict[int, Any]:
    found, data = {}, plan.study.data
    scoring = Scoring.of(store, data, plan.study.protocol)
    for run in plan.of(arm):
        stage = run.predict if readout == "finetuned" else run.probe
        if stage is None:
            raise ValueError(f"arm {arm!r} has no read-out {readout!r}")
        try:
            reading = scoring.reading(stage.id)
        except ValueError as error:
            raise ValueError(f"arm {arm!r} seed {run.seed}: {error}") from error
        found[run.seed] = reading.per_class or [None] * len(data.manifests["downstream"].classes)
    return found


def track(table: ResultTable, label: str, arms: Sequence[str], readout: str = "finetuned") -> Track:
    """A network's measured points: these arms of a table, in the order of `STEPS`.

    ValueError for an arm without a score, or a table whose layout has no column `macs`.
    """
    rows = {row.arm: row for row in table.rows}
    points = []
    for arm in arms:
        row = rows.get(arm)
        if row is None or readout not in row.cells or "macs" not in row.costs:
            raise ValueError(
                f"track {label!r}: arm {arm!r} has no score or no cost: run it, and add 'macs' to "
                "the columns of the table"
            )
        points.append((row.costs["macs"] / 1e9, 100 * row.cells[readout].mean))
    return Track(label, tuple(points))
