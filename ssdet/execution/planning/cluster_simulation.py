"""Simulation of a plan on a described cluster: duration, utilisation of nodes, cost.

The description is a YAML file (clusters/nodes_example.yaml). Stages start in the order of the
runner: the plan's, each as soon as its parents are done and it fits.
"""

import heapq
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ssdet.execution.planning.budget import TRAINING
from ssdet.execution.session import Resources, plan_resources
from ssdet.studies.graph.identity import Stage

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, strict=True)]
OneOrMore = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class NodeKind:
    """Nodes with equal resources, price and speed."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    count: OneOrMore
    cpus: OneOrMore
    gpus: Whole = 0
    memory: Positive | None = None
    """GB."""
    price: Amount | None = None
    """Price of one node for an hour."""
    speed: Positive | None = None
    """Speed of a worker, relative to one on the machine that plans."""
    measured: str | None = None
    """In place of speed: a file with the output of `--dry-run --json` on such a node; its path is
    relative to the YAML file."""


@dataclass(frozen=True)
class DescribedCluster:
    """A cluster that a YAML file describes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    nodes: Annotated[tuple[NodeKind, ...], Field(min_length=1)]
    memory_per_worker: Amount = 0.0
    """GB; 0 ignores memory."""
    currency: str = ""

    def workers_on(self, kind: NodeKind, gpus_per_worker: float = 0) -> int:
        """Workers that fit on one node of a kind, each on a core of its own."""
        limits = [float(kind.cpus)]
        if self.memory_per_worker and kind.memory is not None:
            limits.append(kind.memory / self.memory_per_worker)
        if gpus_per_worker:
            limits.append(kind.gpus / gpus_per_worker + 1e-9)
        return int(min(limits))

    def fit(self, workers: int | str, gpus_per_worker: float, concurrent: int | None) -> Resources:
        """Resources of stages and how many run at once; ValueError, with the reason, where a stage
        fits on no node."""
        memory = self.memory_per_worker
        if not any(self.workers_on(kind) for kind in self.nodes):
            largest = max(kind.memory or 0 for kind in self.nodes)
            raise ValueError(
                f"memory_per_worker {memory:g} GB: no node has room for a worker, the largest has "
                f"{largest:g} GB: add larger nodes, or lower it"
            )
        nodes = [
            {"CPU": self.workers_on(kind), "GPU": kind.gpus}
            for kind in self.nodes
            for _ in range(kind.count)
        ]
        try:
            return plan_resources(workers, gpus_per_worker, concurrent, cluster=nodes)
        except ValueError as error:
            note = f" (CPUs: workers that have {memory:g} GB each)" if memory else ""
            raise ValueError(f"the described cluster is too small: {error}{note}") from error


@dataclass(frozen=True)
class NodeUse:
    """Utilisation of the nodes of one kind."""

    kind: NodeKind
    at_once: int
    """Workers that fit on all nodes together; without GPUs for any, their cores."""
    busy: float
    """Mean share of these workers that are busy."""
    node_seconds: float
    """Time in which a node has work, summed over nodes."""


@dataclass(frozen=True)
class Schedule:
    """Simulated schedule: `spans` has start and end by stage id, in seconds."""

    makespan: float
    spans: Mapping[str, tuple[float, float]]
    uses: tuple[NodeUse, ...]


def read_nodes(path: str | Path) -> DescribedCluster:
    """Read the description of a cluster; ValueError with the field and what is wrong."""
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        cluster = TypeAdapter(DescribedCluster).validate_python(values)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_problem(detail) for detail in error.errors())
        raise ValueError(f"{path}: {problems} (clusters/nodes_example.yaml has all)") from error
    names = [kind.name for kind in cluster.nodes]
    for kind in cluster.nodes:
        where = f"{path}: node {kind.name!r}"
        if names.count(kind.name) > 1:
            raise ValueError(f"{where}: twice; give each kind a name of its own")
        if (kind.speed is None) == (kind.measured is None):
            raise ValueError(f"{where}: expected either speed or measured")
        if cluster.memory_per_worker and kind.memory is None:
            raise ValueError(f"{where}: memory_per_worker needs the memory of every node")
    return cluster


def _problem(detail: Any) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]]
    where = "".join(parts).lstrip(".") or "the file"
    found = detail["input"]
    shown = "" if isinstance(found, dict | list) else f", found {found!r}"
    return f"{where}: {detail['msg']}{shown}"


def speeds(
    cluster: DescribedCluster, folder: Path, here: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Speed by kind of node, given or measured.

    here: label and seconds per step of each kind of training, as the plan measured them on this
    machine. A measured speed is the geometric mean of the ratios of the steps that both machines
    measured. ValueError for a file without any of them.
    """
    own = {_kind_of_step(rate["label"]): rate["seconds"] for rate in here}
    speeds = {kind.name: kind.speed or 1.0 for kind in cluster.nodes}
    for kind in cluster.nodes:
        if kind.measured is None:
            continue
        path = folder / kind.measured
        try:
            rates = json.loads(path.read_text(encoding="utf-8"))["measured"]
            other = {_kind_of_step(rate["label"]): float(rate["seconds"]) for rate in rates}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not what --dry-run --json prints ({error!r})") from error
        ratios = [math.log(own[label] / other[label]) for label in own.keys() & other.keys()]
        if not ratios:
            raise ValueError(
                f"{path}: measures none of {', '.join(own) or 'nothing'}: write it by --dry-run "
                "--json of this experiment, with the same options, on such a node"
            )
        speeds[kind.name] = math.exp(math.fsum(ratios) / len(ratios))
    return speeds


def _kind_of_step(label: str) -> str:
    """A rate's label without the measured part of the batch."""
    return label.partition(", of which")[0]


@dataclass
class _Node:
    """A node with its free cores and GPUs."""

    kind: int
    speed: float
    cpus: int
    gpus: float
    workers: int = 0
    since: float = 0.0

    def free_for(self, gpus: float) -> int:
        return int(min(self.cpus, self.gpus / gpus + 1e-9 if gpus else math.inf))

    def take(self, workers: int, gpus: float) -> None:
        """Place so many workers (remove them, below 0), each with a core and its GPUs."""
        self.cpus -= workers
        self.gpus -= workers * gpus
        self.workers += workers


def schedule(
    stages: Collection[Stage],
    seconds: Mapping[str, float],
    cluster: DescribedCluster,
    speed: Mapping[str, float],
    resources: Resources,
) -> Schedule:
    """List scheduling of stages on the described nodes, the fastest free nodes first.

    seconds: duration by stage id with one worker of speed 1. Several workers share a training stage
    evenly at the pace of the slowest, which is the best case. resources: from
    `DescribedCluster.fit`.
    """
    nodes = [
        _Node(index, speed[kind.name], cluster.workers_on(kind), float(kind.gpus))
        for index, kind in enumerate(cluster.nodes)
        for _ in range(kind.count)
    ]
    nodes.sort(key=lambda node: -node.speed)
    waiting = {stage.id: stage for stage in stages}
    running: dict[str, list[tuple[_Node, int, float]]] = {}
    ends: list[tuple[float, int, str]] = []
    spans: dict[str, tuple[float, float]] = {}
    work = [0.0] * len(cluster.nodes)
    up = [0.0] * len(cluster.nodes)
    now = 0.0
    while waiting or ends:
        for stage in list(_ready(waiting, running)):
            if len(running) == resources.concurrent:
                break
            if not (workers := _placement(nodes, stage, resources)):
                continue
            pace = min(node.speed for node, _, _ in workers) * sum(count for _, count, _ in workers)
            lasts = seconds[stage.id] / pace
            for node, count, gpus in workers:
                node.since = node.since if node.workers else now
                node.take(count, gpus)
                work[node.kind] += count * lasts
            spans[stage.id] = now, now + lasts
            heapq.heappush(ends, (now + lasts, len(spans), stage.id))
            running[stage.id] = workers
            del waiting[stage.id]
        now, _, name = heapq.heappop(ends)
        for node, count, gpus in running.pop(name):
            node.take(-count, gpus)
            up[node.kind] += 0.0 if node.workers else now - node.since
    return Schedule(now, spans, tuple(_uses(cluster, resources, work, up, now)))


def repeated(
    stages: Collection[Stage], seconds: Mapping[str, float], times: int
) -> tuple[list[Stage], dict[str, float]]:
    """So many independent copies of stages (parents first), one after another, and their durations
    by id."""
    copies: list[Stage] = []
    durations: dict[str, float] = {}
    for number in range(times):
        made: dict[str, Stage] = {}
        for stage in stages:
            parents = tuple(made[parent.id] for parent in stage.parents)
            copy = replace(stage, parents=parents, fingerprint=f"{stage.fingerprint}, {number}")
            made[stage.id], durations[copy.id] = copy, seconds[stage.id]
        copies += made.values()
    return copies, durations


def _ready(waiting: Mapping[str, Stage], running: Collection[str]) -> Iterator[Stage]:
    for stage in waiting.values():
        if not any(p.id in waiting or p.id in running for p in stage.parents):
            yield stage


def _placement(
    nodes: Sequence[_Node], stage: Stage, resources: Resources
) -> list[tuple[_Node, int, float]]:
    """Nodes with numbers of workers and GPUs per worker for a stage; empty if it does not fit."""
    gpus = 0.0 if stage.kind == "ensemble" else resources.gpus_per_worker
    missing = resources.workers if stage.kind in TRAINING else 1
    workers = []
    for node in nodes:
        if count := min(missing, node.free_for(gpus)):
            workers.append((node, count, gpus))
            missing -= count
    return [] if missing else workers


def _uses(
    cluster: DescribedCluster,
    resources: Resources,
    work: list[float],
    up: list[float],
    makespan: float,
) -> Iterator[NodeUse]:
    for index, kind in enumerate(cluster.nodes):
        per_node = cluster.workers_on(kind, resources.gpus_per_worker) or cluster.workers_on(kind)
        at_once = per_node * kind.count
        busy = work[index] / (at_once * makespan) if at_once and makespan else 0.0
        yield NodeUse(kind, at_once, busy, up[index])


def schedule_json(cluster: DescribedCluster, planned: Schedule) -> dict[str, Any]:
    """A schedule's duration, utilisation and cost as JSON values; cost None without all prices.

    `cost` counts every node for the whole duration, `cost_busy` only while it has work.
    """
    kinds = [
        {
            "name": use.kind.name,
            "count": use.kind.count,
            "workers_at_once": use.at_once,
            "utilisation": use.busy,
            "cost": _money(use.kind, use.kind.count * planned.makespan),
            "cost_busy": _money(use.kind, use.node_seconds),
        }
        for use in planned.uses
    ]
    return {
        "makespan_seconds": planned.makespan,
        "currency": cluster.currency,
        "cost": _total(kinds, "cost"),
        "cost_busy": _total(kinds, "cost_busy"),
        "kinds": kinds,
    }


def _money(kind: NodeKind, node_seconds: float) -> float | None:
    return None if kind.price is None else kind.price * node_seconds / 3600


def _total(kinds: Sequence[Mapping[str, Any]], what: str) -> float | None:
    costs = [kind[what] for kind in kinds]
    return None if None in costs else math.fsum(costs)
