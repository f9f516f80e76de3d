"""Checks of this machine, or of every node of a cluster, before studies run there.

What each machine has is seen by `doctor_node` there; `doctor_findings` says what is wrong with it.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ssdet.execution.doctor.findings import Facts, Finding, clock_finding, judge, problem
from ssdet.execution.doctor.node import attempt, clock, note_name, survey
from ssdet.store.base import Store


def examine(
    store: str, data: str | None = None, cluster: bool = False, limit: float = 120.0
) -> list[Finding]:
    """Findings of this machine; with `cluster`, of it as the driver and of every node that is
    alive in the Ray that this process has joined.

    Nodes are asked at once, by tasks that need no free CPU; what has not answered after `limit`
    seconds is a finding. Files that were left in the store are removed again.
    """
    place, token = Store.at(store), f"driver-{uuid.uuid4().hex}"
    me = "driver" if cluster else "this machine"
    written = attempt(lambda: place.write_shared(note_name(token), token.encode()))
    here = survey(store, token, data, 0) | ({"store": written} if written else {})
    nodes = _alive() if cluster else {}
    answers = {me: here} | _ask(nodes, (store, token, data), limit)
    seen = [] if written else [token]
    for node, answer in answers.items():
        if isinstance(name := answer.get("store"), str):
            lost = {"error": f"the driver does not see what {node} wrote"}
            same = attempt(partial(place.read_shared, note_name(name))) == token.encode()
            answer["store"] = "read and written" if same else lost
            seen += [name] if same else []
    found = judge(me, here)
    for node, record in nodes.items():
        found += judge(node, answers[node], here, record["Resources"])
        found += [] if "error" in answers[node] else [_clock(node, record, limit)]
    cleared = [attempt(partial(place.remove_shared, note_name(name))) for name in seen]
    return [*found, *(problem(me, "store", failed["error"]) for failed in cleared if failed)]


def _alive() -> dict[str, Facts]:
    """Ray's record of every node that runs, by host name."""
    import ray

    found: dict[str, Facts] = {}
    for node in ray.nodes():
        name = node["NodeManagerHostname"]
        if node["Alive"]:
            found[name if name not in found else f"{name} {node['NodeID'][:6]}"] = node
    return found


def _pinned(function: Callable[..., Any], node: Facts) -> Any:
    """A task on one node, and on no other, that waits for no free CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(function)
    return task.options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def _ask(
    nodes: Mapping[str, Facts], asked: tuple[str, str, str | None], limit: float
) -> dict[str, dict[str, Any]]:
    """What each node answers to `survey`, or {"error": why there is none}."""
    tasks = {
        name: _pinned(survey, node).remote(*asked, node["Resources"].get("GPU", 0.0))
        for name, node in nodes.items()
    }
    if tasks:
        import ray

        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=limit)
    return {name: _answer(task, 1.0, limit) for name, task in tasks.items()}


def _answer(task: Any, wait: float, limit: float) -> Any:
    """A task's result, or {"error": why there is none} after the last `wait` seconds of `limit`."""
    import ray

    try:
        return ray.get(task, timeout=wait)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        return {"error": f"none within {limit:g} s"}
    except ray.exceptions.RayError as error:
        return {"error": str(error).strip().splitlines()[-1]}


def _clock(name: str, node: Facts, limit: float) -> Finding:
    ask, samples = _pinned(clock, node), []
    for _ in range(5):
        sent = time.time()
        there = _answer(ask.remote(), limit, limit)
        if isinstance(there, Mapping):
            return problem(name, "answer", there["error"])
        samples.append((sent, there, time.time()))
    return clock_finding(name, samples)
