"""The plan of a study as a user reads it, before anything is spent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.tree import Tree

from ssdet.execution.planning.cluster_simulation import (
    Assumed,
    figures,
    read_nodes,
    repeated,
    schedule,
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
    """Those of a search, one of which is planned."""

    asked: int
    left: int
    scheduler: str | None
    """What may stop them early."""


def show_plan(
    planned: Plan, store: Store, asked: Options, out: Console, trials: Trials | None = None
) -> None:
    """Stages by arm, what is shared and done, and what the rest costs here; of a search, what one
    trial of its base costs here, and all that are left on a described cluster.

    The figures are kept in the store, where a report sets them beside what it took; those of a
    plan with less done already count more. ValueError for a cluster that --assume describes badly.
    """
    described = assumed(asked)
    cost = estimate(planned)
    costs = summary(planned, store, cost, asked)
    digest = record_of(planned, 0.0).digest
    earlier = store.estimate(digest)
    if earlier is None or costs["done"] <= earlier["done"]:
        store.keep_estimate(digest, costs)
    if trials is not None:
        costs["trials"] = asdict(trials)
    if described is not None:
        costs["assumed"] = on_cluster(described, planned, store, cost, asked, trials)
    if asked.json:
        out.print_json(json.dumps(costs), ensure_ascii=True)
        return
    out.print(tree(planned, store))
    for line in lines(costs):
        out.print(line, soft_wrap=True)


def assumed(asked: Options) -> Assumed | None:
    """The cluster that --assume describes; ValueError where it is described badly, or holds no
    stage as it is asked for."""
    if asked.assume is None:
        return None
    if not asked.dry_run:
        raise ValueError("--assume describes a cluster for --dry-run: add that, or leave it out")
    described = read_nodes(asked.assume)
    described.fit(asked.workers, asked.gpus_per_worker, asked.concurrent)
    return described


def on_cluster(
    described: Assumed,
    planned: Plan,
    store: Store,
    cost: Estimate,
    asked: Options,
    trials: Trials | None = None,
) -> dict[str, Any]:
    """How what is left would run on a described cluster, as JSON values; times in seconds.

    Trials of a search are held to share no stage, to find none done, and to come to their end.
    """
    assert asked.assume is not None
    left, seconds = [s for n, s in planned.stages.items() if store.result(n) is None], cost.seconds
    if trials is not None:
        left, seconds = repeated(planned.stages.values(), cost.seconds, trials.left)
    resources = described.fit(asked.workers, asked.gpus_per_worker, asked.concurrent)
    speed = speeds(described, Path(asked.assume).parent, [asdict(rate) for rate in cost.rates])
    found = schedule(left, seconds, described, speed, resources)
    return {"file": asked.assume, "speeds": speed, **figures(described, found)}


def tree(planned: Plan, store: Store) -> Tree:
    """Arms, seeds and their stages; what is done, and how many runs share a stage."""
    shared: dict[str, int] = {}
    for stage in planned.unshared:
        shared[stage.id] = shared.get(stage.id, 0) + 1

    def told(stage: Stage) -> str:
        done = " (done)" if store.result(stage.id) is not None else ""
        return stage.kind + done + (f" (shared by {n})" if (n := shared[stage.id]) > 1 else "")

    study = planned.study
    root = Tree(f"{study.name}: {len(study.arms)} arms × {len(study.seeds)} seeds")
    for arm in study.arms:
        needs = planned.missing(arm)
        branch = root.add(arm.label + (f": needs {needs}, not built yet" if needs else ""))
        if missing := planned.missing(arm):
            branch.add(f"needs {missing}: not built yet")
        for run in planned.of(arm.name):
            stages = [*_chain(run.predict), *([run.probe] if run.probe else [])]
            branch.add(f"seed {run.seed}: {' → '.join(map(told, stages))}")
    return root


def _chain(stage: Stage) -> list[Stage]:
    """A stage after its ancestors, in order."""
    if stage.kind == "ensemble":
        return [*stage.parents, stage]
    return [*(ancestor for parent in stage.parents for ancestor in _chain(parent)), stage]


def summary(planned: Plan, store: Store, cost: Estimate, asked: Options) -> dict[str, Any]:
    """The plan's figures as JSON values; times in seconds."""
    left = [s for name, s in planned.stages.items() if store.result(name) is None]
    workers = Workers.of(asked.workers).high
    slots = slots_here(workers, asked.concurrent)
    work = sum(cost.seconds[stage.id] for stage in left)
    unit = asked.gpus_per_worker or 1.0
    hours = work * unit / 3600
    found = detectable(planned, store)
    measured = cost.device == "cuda" or not asked.gpus_per_worker
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
        "device_hours_unit": "GPU-hours" if asked.gpus_per_worker else "core-hours",
        "money": None if asked.price is None or not measured else hours * asked.price,
        "budget": asked.budget,
        "disk_bytes": sum(cost.bytes[stage.id] for stage in left),
        "detectable_difference": found and found[0],
        "noise_from_pairs": found[1] if found else 0,
        "seeds": len(planned.study.seeds),
        "measured": [asdict(rate) for rate in cost.rates],
    }


def lines(costs: dict[str, Any]) -> list[str]:
    """The figures in words."""
    told = [
        f"{costs['stages']} stages, {costs['done']} done; {costs['unshared']} if every run trained "
        f"its own: sharing saves {costs['unshared'] - costs['stages']}"
    ]
    for rate in costs["measured"]:
        told.append(
            f"measured here ({costs['device']}, one process, {rate['steps']} steps): "
            f"{rate['seconds']:.3f} s a step of {rate['label']}"
        )
    told.append(
        f"about {duration(costs['work_seconds'])} of work left "
        f"({duration(costs['unshared_seconds'])} without sharing and from nothing), "
        f"{duration(costs['wall_seconds'])} with {costs['at_once']} at once"
        + (f" of {costs['workers']} workers, if they scale" if costs["workers"] > 1 else "")
    )
    told.append(_devices(costs) + f", {costs['disk_bytes'] / 1e6:.0f} MB of disk")
    told.append(_trials(costs) if "trials" in costs else _power(costs))
    return told + (_described(costs["assumed"]) if "assumed" in costs else [])


def _trials(costs: dict[str, Any]) -> str:
    """What the figures are of where a search is planned."""
    found = costs["trials"]
    told = f"this is one trial of the base; {found['asked']} are asked for, {found['left']} left"
    if "assumed" not in costs:
        return told
    why = [f"{found['scheduler']} may stop some sooner"] if found["scheduler"] else []
    why += ["stages that they share run once"]
    return f"{told}; below are these, at the base's cost each: an upper bound ({', '.join(why)})"


def _described(found: dict[str, Any]) -> list[str]:
    """The figures of a described cluster in words."""

    def money(amount: float | None) -> str:
        return "unknown" if amount is None else f"{amount:.2f} {found['currency']}".rstrip()

    told = [
        f"on the cluster of {found['file']}, with its prices and speeds: "
        f"{duration(found['makespan_seconds'])}; cost {money(found['cost'])} with every node up "
        f"from beginning to end, {money(found['cost_busy'])} where nodes without work are not paid"
    ]
    for kind in found["kinds"]:
        told.append(
            f"  {kind['name']}: {kind['count']} × speed {found['speeds'][kind['name']]:.3g}, "
            f"{kind['workers_at_once']} workers at once, {100 * kind['utilisation']:.0f} % busy, "
            f"{money(kind['cost'])}"
        )
    return told


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
