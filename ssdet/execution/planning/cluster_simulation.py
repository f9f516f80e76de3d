"""A plan on a cluster that is only described: how long it takes, how busy nodes are, the cost.

The description is a YAML file (clusters/nodes_example.yaml). Stages start as the runner starts
them: in the plan's order, each as soon as its parents are done and there is room.
"""

import heapq
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ssdet.execution.session import Resources, plan_resources
from ssdet.studies.graph.identity import Stage

TRAINING = ("pretrain", "finetune")
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, strict=True)]
OneOrMore = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    count: OneOrMore
    cpus: OneOrMore
    gpus: Whole = 0
    memory: Positive | None = None
    """GB."""
    price: Amount | None = None
    """Of one node for an hour."""
    speed: Positive | None = None
    """Of one worker there, in multiples of one on the machine that plans."""
    measured: str | None = None
    """Instead of it, the output of `--dry-run --json` on such a node; relative to this file."""


@dataclass(frozen=True)
class Assumed:
    """A described cluster."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    nodes: Annotated[tuple[NodeKind, ...], Field(min_length=1)]
    memory_per_worker: Amount = 0.0
    """GB; 0 leaves memory out."""
    currency: str = ""

    def workers_on(self, kind: NodeKind, gpus_per_worker: float = 0) -> int:
        """Workers that one node of a kind holds; each has a core of its own."""
        most = [float(kind.cpus)]
        if self.memory_per_worker and kind.memory is not None:
            most.append(kind.memory / self.memory_per_worker)
        if gpus_per_worker:
            most.append(kind.gpus / gpus_per_worker + 1e-9)
        return int(min(most))

    def fit(self, workers: int | str, gpus_per_worker: float, concurrent: int | None) -> Resources:
        """What stages ask for and how many run at once; ValueError, with the reason, where a stage
        fits no node."""
        least = self.memory_per_worker
        if not any(self.workers_on(kind) for kind in self.nodes):
            largest = max(kind.memory or 0 for kind in self.nodes)
            raise ValueError(
                f"memory_per_worker {least:g} GB: no node holds one worker, the largest has "
                f"{largest:g} GB: add larger nodes, or lower it"
            )
        cluster = [
            {"CPU": self.workers_on(kind), "GPU": kind.gpus}
            for kind in self.nodes
            for _ in range(kind.count)
        ]
        try:
            return plan_resources(workers, gpus_per_worker, concurrent, cluster=cluster)
        except ValueError as error:
            note = f" (CPUs: workers that have {least:g} GB each)" if least else ""
            raise ValueError(f"the described cluster is too small: {error}{note}") from error


@dataclass(frozen=True)
class Use:
    """What becomes of the nodes of one kind."""

    kind: NodeKind
    at_once: int
    """Workers that all nodes hold together; where they hold none, their cores."""
    busy: float
    """Share of them that work, from beginning to end."""
    node_seconds: float
    """In which a node has any work, over all nodes."""


@dataclass(frozen=True)
class Schedule:
    """When stages would run: `spans` has start and end by id, in seconds."""

    makespan: float
    spans: Mapping[str, tuple[float, float]]
    uses: tuple[Use, ...]


def read_nodes(path: str | Path) -> Assumed:
    """The cluster that a YAML file describes; ValueError with the field and what is wrong."""
    import yaml

    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        assumed = TypeAdapter(Assumed).validate_python(found)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_problem(detail) for detail in error.errors())
        raise ValueError(f"{path}: {problems} (clusters/nodes_example.yaml has all)") from error
    names = [kind.name for kind in assumed.nodes]
    for kind in assumed.nodes:
        where = f"{path}: node {kind.name!r}"
        if names.count(kind.name) > 1:
            raise ValueError(f"{where}: twice; give each kind a name of its own")
        if (kind.speed is None) == (kind.measured is None):
            raise ValueError(f"{where}: expected either speed or measured")
        if assumed.memory_per_worker and kind.memory is None:
            raise ValueError(f"{where}: memory_per_worker needs the memory of every node")
    return assumed


def _problem(detail: Any) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]]
    where = "".join(parts).lstrip(".") or "the file"
    found = detail["input"]
    shown = "" if isinstance(found, dict | list) else f", found {found!r}"
    return f"{where}: {detail['msg']}{shown}"


def speeds(assumed: Assumed, folder: Path, here: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Speed by kind of node, given or measured.

    here: label and seconds of a step of each kind of training, as the plan measured them on this
    machine. A measured speed is the geometric mean of the ratios of those that both have.
    ValueError for a file that has none of them.
    """
    mine = {_plain(rate["label"]): rate["seconds"] for rate in here}
    found = {kind.name: kind.speed or 1.0 for kind in assumed.nodes}
    for kind in assumed.nodes:
        if kind.measured is None:
            continue
        path = folder / kind.measured
        try:
            rates = json.loads(path.read_text(encoding="utf-8"))["measured"]
            theirs = {_plain(rate["label"]): float(rate["seconds"]) for rate in rates}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not what --dry-run --json prints ({error!r})") from error
        ratios = [math.log(mine[label] / theirs[label]) for label in mine.keys() & theirs.keys()]
        if not ratios:
            raise ValueError(
                f"{path}: measures none of {', '.join(mine) or 'nothing'}: write it by --dry-run "
                "--json of this experiment, with the same options, on such a node"
            )
        found[kind.name] = math.exp(math.fsum(ratios) / len(ratios))
    return found


def _plain(label: str) -> str:
    """A label without how much of the batch was tried."""
    return label.partition(", of which")[0]


@dataclass
class _Node:
    """A node with what is free of it."""

    kind: int
    speed: float
    cpus: int
    gpus: float
    workers: int = 0
    since: float = 0.0

    def free_for(self, gpus: float) -> int:
        return int(min(self.cpus, self.gpus / gpus + 1e-9 if gpus else math.inf))

    def take(self, workers: int, gpus: float) -> None:
        """Workers come (or go, below 0), each with a core and its GPUs."""
        self.cpus -= workers
        self.gpus -= workers * gpus
        self.workers += workers


def schedule(
    stages: Collection[Stage],
    seconds: Mapping[str, float],
    assumed: Assumed,
    speed: Mapping[str, float],
    resources: Resources,
) -> Schedule:
    """List scheduling of stages on the described nodes, the fastest that are free first.

    seconds: by id, of one worker on a machine of speed 1. Several workers share a training stage
    evenly and the slowest sets the pace, which is the best case. resources: from `Assumed.fit`.
    """
    nodes = [
        _Node(index, speed[kind.name], assumed.workers_on(kind), float(kind.gpus))
        for index, kind in enumerate(assumed.nodes)
        for _ in range(kind.count)
    ]
    nodes.sort(key=lambda node: -node.speed)
    waiting = {stage.id: stage for stage in stages}
    running: dict[str, list[tuple[_Node, int, float]]] = {}
    ends: list[tuple[float, int, str]] = []
    spans: dict[str, tuple[float, float]] = {}
    work = [0.0] * len(assumed.nodes)
    up = [0.0] * len(assumed.nodes)
    now = 0.0
    while waiting or ends:
        for stage in list(_ready(waiting, running)):
            if len(running) == resources.concurrent:
                break
            if not (team := _team(nodes, stage, resources)):
                continue
            pace = min(node.speed for node, _, _ in team) * sum(count for _, count, _ in team)
            lasts = seconds[stage.id] / pace
            for node, count, gpus in team:
                node.since = node.since if node.workers else now
                node.take(count, gpus)
                work[node.kind] += count * lasts
            spans[stage.id] = now, now + lasts
            heapq.heappush(ends, (now + lasts, len(spans), stage.id))
            running[stage.id] = team
            del waiting[stage.id]
        now, _, name = heapq.heappop(ends)
        for node, count, gpus in running.pop(name):
            node.take(-count, gpus)
            up[node.kind] += 0.0 if node.workers else now - node.since
    return Schedule(now, spans, tuple(_uses(assumed, resources, work, up, now)))


def repeated(
    stages: Collection[Stage], seconds: Mapping[str, float], times: int
) -> tuple[list[Stage], dict[str, float]]:
    """So many copies of stages (parents first) that share nothing, one whole copy after another;
    and how long each lasts, by id."""
    found: list[Stage] = []
    lasts: dict[str, float] = {}
    for number in range(times):
        made: dict[str, Stage] = {}
        for stage in stages:
            parents = tuple(made[parent.id] for parent in stage.parents)
            copy = replace(stage, parents=parents, fingerprint=f"{stage.fingerprint}, {number}")
            made[stage.id], lasts[copy.id] = copy, seconds[stage.id]
        found += made.values()
    return found, lasts


def _ready(waiting: Mapping[str, Stage], running: Collection[str]) -> Iterator[Stage]:
    for stage in waiting.values():
        if not any(p.id in waiting or p.id in running for p in stage.parents):
            yield stage


def _team(
    nodes: Sequence[_Node], stage: Stage, resources: Resources
) -> list[tuple[_Node, int, float]]:
    """Nodes, workers and GPUs of each for a stage that may start now; nobody where it may not."""
    gpus = 0.0 if stage.kind == "ensemble" else resources.gpus_per_worker
    missing = resources.workers if stage.kind in TRAINING else 1
    team = []
    for node in nodes:
        if count := min(missing, node.free_for(gpus)):
            team.append((node, count, gpus))
            missing -= count
    return [] if missing else team


def _uses(
    assumed: Assumed, resources: Resources, work: list[float], up: list[float], makespan: float
) -> Iterator[Use]:
    for index, kind in enumerate(assumed.nodes):
        each = assumed.workers_on(kind, resources.gpus_per_worker) or assumed.workers_on(kind)
        busy = work[index] / (each * kind.count * makespan) if each and makespan else 0.0
        yield Use(kind, each * kind.count, busy, up[index])


def figures(assumed: Assumed, planned: Schedule) -> dict[str, Any]:
    """The figures of a schedule as JSON values; money None where a price is missing.

    `cost` has every node up from beginning to end, `cost_busy` only while it has work.
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
        "currency": assumed.currency,
        "cost": _total(kinds, "cost"),
        "cost_busy": _total(kinds, "cost_busy"),
        "kinds": kinds,
    }


def _money(kind: NodeKind, node_seconds: float) -> float | None:
    return None if kind.price is None else kind.price * node_seconds / 3600


def _total(kinds: Sequence[Mapping[str, Any]], what: str) -> float | None:
    costs = [kind[what] for kind in kinds]
    return None if None in costs else math.fsum(costs)
