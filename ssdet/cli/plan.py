"""Plan of a study on the console: stages, estimated time and cost, detectable difference."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.tree import Tree

from ssdet.execution.planning.cluster_simulation import (
    DescribedCluster,
    read_nodes,
    repeated,
    schedule,
    schedule_json,
    speeds,
)
from ssdet.execution.planning.estimate import Estimate, detectable, estimate, makespan, slots_here
from ssdet.execution.session import Workers
from ssdet.store.base import Store
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.plan import Plan
from ssdet.studies.graph.record import record_of
from ssdet.system.console import duration

if TYPE_CHECKING:
    from ssdet.cli.experiment import Options


@dataclass(frozen=True)
class Trials:
    """Trials of a search, one of which is planned."""

    asked: int
    left: int
    scheduler: str | None
    """Scheduler that may stop them early."""


def show_plan(
    planned: Plan, store: Store, options: Options, out: Console, trials: Trials | None = None
) -> None:
    """Print stages by arm, and the cost of unfinished ones on this machine; of a search, that
    of one trial of its base, and of all remaining trials on a described cluster.

    The estimate is stored, for the report to show beside the actual cost; an estimate with fewer
    finished stages replaces one with more. ValueError for a wrong description in --assume.
    """
    described = assumed(options)
    cost = estimate(planned)
    costs = summary(planned, store, cost, options)
    digest = record_of(planned, 0.0).digest
    earlier = store.estimate(digest)
    if earlier is None or costs["done"] <= earlier["done"]:
        store.keep_estimate(digest, costs)
    if trials is not None:
        costs["trials"] = asdict(trials)
    if described is not None:
        costs["assumed"] = on_cluster(described, planned, store, cost, options, trials)
    if options.json:
        out.print_json(json.dumps(costs), ensure_ascii=True)
        return
    out.print(tree(planned, store))
    for line in lines(costs):
        out.print(line, soft_wrap=True)


def assumed(options: Options) -> DescribedCluster | None:
    """Cluster of --assume; ValueError for a wrong description, or where no stage fits on it."""
    if options.assume is None:
        return None
    if not options.dry_run:
        raise ValueError("--assume describes a cluster for --dry-run: add that, or leave it out")
    described = read_nodes(options.assume)
    described.fit(options.workers, options.gpus_per_worker, options.concurrent)
    return described


def on_cluster(
    described: DescribedCluster,
    planned: Plan,
    store: Store,
    cost: Estimate,
    options: Options,
    trials: Trials | None = None,
) -> dict[str, Any]:
    """Schedule of the unfinished stages on a described cluster, as JSON values; times in seconds.

    Trials of a search are assumed to share no stage and not to be stopped early.
    """
    assert options.assume is not None
    left, seconds = [s for n, s in planned.stages.items() if store.result(n) is None], cost.seconds
    if trials is not None:
        left, seconds = repeated(planned.stages.values(), cost.seconds, trials.left)
    resources = described.fit(options.workers, options.gpus_per_worker, options.concurrent)
    speed = speeds(described, Path(options.assume).parent, [asdict(rate) for rate in cost.rates])
    scheduled = schedule(left, seconds, described, speed, resources)
    return {"file": options.assume, "speeds": speed, **schedule_json(described, scheduled)}


def tree(planned: Plan, store: Store) -> Tree:
    """Arms, seeds and stages, marked as done and as shared by several runs."""
    shared: dict[str, int] = {}
    for stage in planned.unshared:
        shared[stage.id] = shared.get(stage.id, 0) + 1

    def title(stage: Stage) -> str:
        done = " (done)" if store.result(stage.id) is not None else ""
        return stage.kind + done + (f" (shared by {n})" if (n := shared[stage.id]) > 1 else "")

    study = planned.study
    root = Tree(f"{study.name}: {len(study.arms)} arms × {len(study.seeds)} seeds")
    for arm in study.arms:
        missing = planned.missing(arm)
        branch = root.add(arm.label)
        if missing:
            branch.add(f"needs {missing}: not built yet")
        for run in planned.of(arm.name):
            stages = [*_chain(run.predict), *([run.probe] if run.probe else [])]
            branch.add(f"seed {run.seed}: {' → '.join(map(title, stages))}")
    return root


def _chain(stage: Stage) -> list[Stage]:
    """A stage's ancestors in order, and the stage."""
    if stage.kind == "ensemble":
        return [*stage.parents, stage]
    return [*(ancestor for parent in stage.parents for ancestor in _chain(parent)), stage]


def summary(planned: Plan, store: Store, cost: Estimate, options: Options) -> dict[str, Any]:
    """Size and cost of the plan as JSON values; times in seconds."""
    left = [s for name, s in planned.stages.items() if store.result(name) is None]
    workers = Workers.of(options.workers).high
    slots = slots_here(workers, options.concurrent)
    work = sum(cost.seconds[stage.id] for stage in left)
    unit = options.gpus_per_worker or 1.0
    hours = work * unit / 3600
    difference = detectable(planned, store)
    measured = cost.device == "cuda" or not options.gpus_per_worker
    return {
        "study": planned.study.name,
        "stages": len(planned.stages),
        "done": len(planned.stages) - len(left),
        "unshared": len(planned.unshared),
        "work_seconds": work,
        "unshared_seconds": sum(cost.seconds[stage.id] for stage in planned.unshared),
        "device": cost.device,
        "at_once": slots,
        "workers": workers,
        "wall_seconds": makespan(left, cost.seconds, slots, workers),
        "device_hours": hours if measured else None,
        "device_hours_unit": "GPU-hours" if options.gpus_per_worker else "core-hours",
        "money": None if options.price is None or not measured else hours * options.price,
        "budget": options.budget,
        "disk_bytes": sum(cost.bytes[stage.id] for stage in left),
        "detectable_difference": difference and difference[0],
        "noise_from_pairs": difference[1] if difference else 0,
        "seeds": len(planned.study.seeds),
        "measured": [asdict(rate) for rate in cost.rates],
    }


def lines(costs: dict[str, Any]) -> list[str]:
    """Text of `summary`."""
    text = [
        f"{costs['stages']} stages, {costs['done']} done; {costs['unshared']} if every run trained "
        f"its own: sharing saves {costs['unshared'] - costs['stages']}"
    ]
    for rate in costs["measured"]:
        text.append(
            f"measured here ({costs['device']}, one process, {rate['steps']} steps): "
            f"{rate['seconds']:.3f} s a step of {rate['label']}"
        )
    text.append(
        f"about {duration(costs['work_seconds'])} of work left "
        f"({duration(costs['unshared_seconds'])} without sharing and from nothing), "
        f"{duration(costs['wall_seconds'])} with {costs['at_once']} at once"
        + (f" of {costs['workers']} workers, if they scale" if costs["workers"] > 1 else "")
    )
    text.append(_devices(costs) + f", {costs['disk_bytes'] / 1e6:.0f} MB of disk")
    text.append(_trials(costs) if "trials" in costs else _power(costs))
    return text + (_described(costs["assumed"]) if "assumed" in costs else [])


def _trials(costs: dict[str, Any]) -> str:
    """Which trials of a search the costs are of."""
    trials = costs["trials"]
    text = f"this is one trial of the base; {trials['asked']} are asked for, {trials['left']} left"
    if "assumed" not in costs:
        return text
    reasons = [f"{trials['scheduler']} may stop some sooner"] if trials["scheduler"] else []
    reasons += ["stages that they share run once"]
    bound = f"an upper bound ({', '.join(reasons)})"
    return f"{text}; below are these, at the base's cost each: {bound}"


def _described(costs: dict[str, Any]) -> list[str]:
    """Text of the schedule on a described cluster."""

    def money(amount: float | None) -> str:
        return "unknown" if amount is None else f"{amount:.2f} {costs['currency']}".rstrip()

    text = [
        f"on the cluster of {costs['file']}, with its prices and speeds: "
        f"{duration(costs['makespan_seconds'])}; cost {money(costs['cost'])} with every node up "
        f"from beginning to end, {money(costs['cost_busy'])} where nodes without work are not paid"
    ]
    for kind in costs["kinds"]:
        text.append(
            f"  {kind['name']}: {kind['count']} × speed {costs['speeds'][kind['name']]:.3g}, "
            f"{kind['workers_at_once']} workers at once, {100 * kind['utilisation']:.0f} % busy, "
            f"{money(kind['cost'])}"
        )
    return text


def _devices(costs: dict[str, Any]) -> str:
    if costs["device_hours"] is None:
        return "GPU-hours: unknown, this machine has none to measure on; plan on a node with a GPU"
    text = f"{costs['device_hours']:.2g} {costs['device_hours_unit']}"
    if costs["money"] is not None:
        text += f", {costs['money']:.2f} in money"
    if costs["budget"] is not None and costs["budget"] < costs["device_hours"]:
        text += f" (the budget of {costs['budget']:g} will end it sooner)"
    return text


def _power(costs: dict[str, Any]) -> str:
    if costs["seeds"] < 2:
        return "one seed: no difference can be told from noise; use --seeds 3 or more"
    if costs["detectable_difference"] is None:
        return (
            "smallest difference that the seeds can detect: unknown until two seeds of two arms "
            "are done in this store"
        )
    if costs["detectable_difference"] >= 1:
        return (
            f"{costs['seeds']} seeds are too few to detect any difference between so many arms, "
            f"going by the noise of {costs['noise_from_pairs']} finished pairs: plan for more"
        )
    return (
        f"{costs['seeds']} seeds can detect {100 * costs['detectable_difference']:.1f} points of "
        "mAP (80 % power, paired t test, corrected for all arms), going by the noise of "
        f"{costs['noise_from_pairs']} finished pairs"
    )
