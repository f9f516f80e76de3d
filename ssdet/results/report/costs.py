"""Cost section of the report: time of stages, and time saved by sharing them."""

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
    """All stages of each arm; shared ones are counted in each."""
    all: Spent
    """Every stage once."""
    unshared: Spent
    """Every stage once per run that depends on it."""
    first: float | None
    last: float | None
    """Epoch seconds of the first start and of the last end; None where unknown."""
    again: int
    """Number of stages with more than one attempt."""
    unknown: int
    """Number of stages without a recorded time, which count 0 s."""

    @property
    def saved(self) -> float:
        return self.unshared.total - self.all.total


def costs(plan: Plan, store: Store) -> Costs:
    """Sum up the times in the provenance of a plan's stages."""
    provenance = {name: store.provenance(name) or {} for name in plan.stages}
    names = labels(plan.study)
    arms = [
        _spent(names[arm.name], _below(runs).values(), provenance)
        for arm in plan.study.arms
        if (runs := plan.of(arm.name))
    ]
    unshared = [stage for run in plan.runs for stage in _below([run]).values()]
    timed = [v for v in provenance.values() if "started" in v]
    kinds = {stage.kind for stage in plan.stages.values()}
    return Costs(
        tuple(kind for kind in KINDS if kind in kinds),
        tuple(arms),
        _spent("every stage once", plan.stages.values(), provenance),
        _spent("every run for itself", unshared, provenance),
        min((v["started"] for v in timed), default=None),
        max((v["started"] + v["seconds"] for v in timed if "seconds" in v), default=None),
        sum(values.get("attempts", 1) > 1 for values in provenance.values()),
        sum("seconds" not in values for values in provenance.values()),
    )


def _below(runs: Sequence[Run]) -> dict[str, Stage]:
    """All stages that these runs depend on, each once."""
    ends = [end for run in runs for end in (run.predict, run.probe) if end is not None]
    return {stage.id: stage for end in ends for stage in ancestry(end)}


def _spent(
    label: str, stages: Collection[Stage], provenance: Mapping[str, Mapping[str, Any]]
) -> Spent:
    times: dict[str, list[float]] = {}
    for stage in stages:
        times.setdefault(stage.kind, []).append(provenance[stage.id].get("seconds", 0.0))
    on_gpu = math.fsum(provenance[stage.id].get("gpu_seconds", 0.0) for stage in stages)
    seconds = {kind: math.fsum(values) for kind, values in times.items()}
    return Spent(label, len(stages), seconds, on_gpu)


def of_node(node: Node, store: Store) -> float:
    """Seconds of the stages of a node of the plan drawing."""
    return math.fsum((store.provenance(name) or {}).get("seconds", 0.0) for name in node.stages)
