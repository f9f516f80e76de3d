"""Audit section of the report: runs and stages with recipes, provenance and weights."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ssdet.results.tables.result_table import READOUTS
from ssdet.store.base import Store
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.studies.graph.plan import Plan, stage_labels
from ssdet.studies.study import Study

HIDDEN = ("host",)
"""Provenance that is left out, since pages are passed on to others."""


@dataclass(frozen=True)
class RunEntry:
    """One scored run."""

    id: str
    arms: tuple[str, ...]
    """Labels of all arms that share it."""
    seed: str
    readout: str
    test: float
    val: float | None
    """Scores, fractions."""
    setting: str
    """Protocol and coverage."""
    stages: tuple[str, ...]
    """Its ancestors, parents first, and itself."""
    weights: str
    """Path of its weights in the store; empty for ensembles."""


@dataclass(frozen=True)
class StageEntry:
    """One stage."""

    id: str
    kind: str
    users: str
    parents: tuple[str, ...]
    recipe: str
    """JSON."""
    provenance: Mapping[str, str]


def labels(study: Study) -> dict[str, str]:
    """Labels of arms by name; equal labels are followed by the names."""
    texts = [arm.label for arm in study.arms]
    return {
        arm.name: arm.label if texts.count(arm.label) == 1 else f"{arm.label} ({arm.name})"
        for arm in study.arms
    }


def run_entries(plan: Plan, store: Store) -> list[RunEntry]:
    """Every run that scores some arm, in the order of arms, read-outs and seeds; each once."""
    seeds = {name: seed for name, (_, _, seed) in stage_labels(plan).items()}
    names = labels(plan.study)
    entries: dict[str, RunEntry] = {}
    for arm in plan.study.arms:
        for readout, title in READOUTS.items():
            for run in plan.of(arm.name):
                stage = run.predict if readout == "finetuned" else run.probe
                if stage is None:
                    continue
                earlier = entries.get(stage.id)
                arms = (*(earlier.arms if earlier else ()), names[arm.name])
                seed = _seed(run.seed, stage, seeds)
                entries[stage.id] = _run(stage, arms, seed, title, store)
    return list(entries.values())


def _seed(seed: int, stage: Stage, seeds: Mapping[str, int]) -> str:
    """Seed of a run; of an ensemble the seeds of its members."""
    if stage.kind != "ensemble":
        return str(seed)
    return ", ".join(map(str, sorted({seeds[parent.id] for parent in stage.parents})))


def _run(stage: Stage, arms: tuple[str, ...], seed: str, readout: str, store: Store) -> RunEntry:
    result = store.result(stage.id)
    assert result is not None, "the table exists"
    scores = result["scores"]
    test = scores["test"]
    setting = f"{test['protocol']}, {test['videos_scored']} of {test['videos_expected']} videos"
    chain = tuple(dict.fromkeys(one.id for one in ancestry(stage)))
    return RunEntry(
        stage.id, arms, seed, "ensemble" if stage.kind == "ensemble" else readout,
        test["value"], scores.get("val", {}).get("value"), setting, chain, _weights(stage, store),
    )  # fmt: skip


def _weights(stage: Stage, store: Store) -> str:
    if stage.kind == "ensemble" or not stage.parents:
        return ""
    parent, file = stage.parents[0].id, "checkpoints/last.pt"
    return f"stages/{parent}/{file}" + ("" if store.has_file(parent, file) else " (gone)")


def stage_entries(plan: Plan, store: Store) -> list[StageEntry]:
    """Every stage of a plan, parents first."""
    stages, names = stage_labels(plan), labels(plan.study)
    entries = []
    for name, stage in plan.stages.items():
        kind, arms, seed = stages[name]
        users = ", ".join(names[arm] for arm in arms)
        recipe = json.dumps(stage.identity["recipe"], indent=1, sort_keys=True)
        parents = tuple(parent.id for parent in stage.parents)
        users += "" if kind == "ensemble" else f", seed {seed}"
        provenance = dict(_flat(store.provenance(name) or {}))
        entries.append(StageEntry(name, kind, users, parents, recipe, provenance))
    return entries


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif name == "started":
            yield name, utc(value)
        elif name not in HIDDEN and value is not None:
            yield prefix + name, f"{value:.1f}" if isinstance(value, float) else str(value)


def utc(seconds: float) -> str:
    """A time in UTC, so that the page does not depend on the time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
