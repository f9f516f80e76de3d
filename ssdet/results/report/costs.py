"""Cost section of the report: time of the stages, and time saved by sharing them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssdet.results.report.plan_drawing import Node
from ssdet.results.report.stage_entries import labels
from ssdet.store.base import Store
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.studies.graph.plan import Plan, Run

KINDS = ("pretrain", "finetune", "predict", "probe", "ensemble")


@dataclass(frozen=True)
class Spent:
    """Time of some stages."""

    label: str
    stages: int
    seconds: Mapping[str, float]
    """By kind of stage."""
    gpu_seconds: float

    @property
    def total(self) -> float:
        return math.fsum(self.seconds.values())


@dataclass(frozen=True)
class Costs:
    """Time of a study's stages, summed over all of them as if one ran after the other."""

    kinds: tuple[str, ...]
    arms: tuple[Spent, ...]
    """Everything that an arm rests on; what arms share is counted in each."""
    all: Spent
    """Every stage once."""
    unshared: Spent
    """Every stage as often as there are runs that rest on it."""
    first: float | None
    last: float | None
    """Epoch seconds of the first start and of the last end; None where nothing says so."""
    again: int
    """Stages that took more than one attempt."""
    unknown: int
    """Stages whose time is not known; they count nothing."""

    @property
    def saved(self) -> float:
        return self.unshared.total - self.all.total


def costs(plan: Plan, store: Store) -> Costs:
    """What the provenance of a plan's stages adds up to."""
    how = {name: store.provenance(name) or {} for name in plan.stages}
    called = labels(plan.study)
    arms = [
        _spent(called[arm.name], _below(runs).values(), how)
        for arm in plan.study.arms
        if (runs := plan.of(arm.name))
    ]
    apart = [stage for run in plan.runs for stage in _below([run]).values()]
    started = [values["started"] for values in how.values() if "started" in values]
    ended = [
        v["started"] + v["seconds"] for v in how.values() if {"started", "seconds"} <= v.keys()
    ]
    kinds = {stage.kind for stage in plan.stages.values()}
    return Costs(
        tuple(kind for kind in KINDS if kind in kinds),
        tuple(arms),
        _spent("every stage once", plan.stages.values(), how),
        _spent("every run for itself", apart, how),
        min(started, default=None),
        max(ended, default=None),
        sum(values.get("attempts", 1) > 1 for values in how.values()),
        sum("seconds" not in values for values in how.values()),
    )


def _below(runs: Sequence[Run]) -> dict[str, Stage]:
    """All stages that these runs rest on, each once."""
    ends = [end for run in runs for end in (run.predict, run.probe) if end is not None]
    return {stage.id: stage for end in ends for stage in ancestry(end)}


def _spent(label: str, stages: Collection[Stage], how: Mapping[str, Mapping[str, Any]]) -> Spent:
    times: dict[str, list[float]] = {}
    for stage in stages:
        times.setdefault(stage.kind, []).append(how[stage.id].get("seconds", 0.0))
    on_gpu = math.fsum(how[stage.id].get("gpu_seconds", 0.0) for stage in stages)
    seconds = {kind: math.fsum(values) for kind, values in times.items()}
    return Spent(label, len(stages), seconds, on_gpu)


def of_node(node: Node, store: Store) -> float:
    """Seconds of the stages of a box of the plan."""
    return math.fsum((store.provenance(name) or {}).get("seconds", 0.0) for name in node.stages)
