"""Checks of this machine, or of every node of a cluster, before studies run there.

`ssdet.execution.doctor.node` collects facts on each machine, `ssdet.execution.doctor.findings`
compares them with the requirements.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ssdet.execution.doctor.findings import Facts, Finding, clock_finding, compare, problem
from ssdet.execution.doctor.node import attempt, clock, note_name, survey
from ssdet.store.base import Store


def examine(
    store: str, data: str | None = None, cluster: bool = False, limit: float = 120.0
) -> list[Finding]:
    """Findings of this machine; with `cluster`, of it as the driver and of every alive node of the
    Ray that this process has joined.

    Nodes are examined in parallel, by tasks that need no free CPU; a node without an answer after
    `limit` seconds is a problem. Files that were written to the store are removed again.
    """
    place, token = Store.at(store), f"driver-{uuid.uuid4().hex}"
    driver = "driver" if cluster else "this machine"
    failure = attempt(lambda: place.write_shared(note_name(token), token.encode()))
    own = survey(store, token, data, 0) | ({"store": failure} if failure else {})
    nodes = _alive() if cluster else {}
    answers = {driver: own} | _survey_nodes(nodes, (store, token, data), limit)
    files = [] if failure else [token]
    for node, answer in answers.items():
        if isinstance(name := answer.get("store"), str):
            lost = {"error": f"the driver does not see what {node} wrote"}
            same = attempt(partial(place.read_shared, note_name(name))) == token.encode()
            answer["store"] = "read and written" if same else lost
            files += [name] if same else []
    findings = compare(driver, own)
    for node, record in nodes.items():
        findings += compare(node, answers[node], own, record["Resources"])
        findings += [] if "error" in answers[node] else [_clock(node, record, limit)]
    removals = [attempt(partial(place.remove_shared, note_name(name))) for name in files]
    failures = [problem(driver, "store", failed["error"]) for failed in removals if failed]
    return [*findings, *failures]


def _alive() -> dict[str, Facts]:
    """Ray's record of every running node, by host name."""
    import ray

    nodes: dict[str, Facts] = {}
    for node in ray.nodes():
        name = node["NodeManagerHostname"]
        if node["Alive"]:
            nodes[name if name not in nodes else f"{name} {node['NodeID'][:6]}"] = node
    return nodes


def _pinned(function: Callable[..., Any], node: Facts) -> Any:
    """A task that runs on this node only, without waiting for a free CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(function)
    return task.options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def _survey_nodes(
    nodes: Mapping[str, Facts], arguments: tuple[str, str, str | None], limit: float
) -> dict[str, dict[str, Any]]:
    """Result of `survey` on each node, or {"error": reason}."""
    tasks = {
        name: _pinned(survey, node).remote(*arguments, node["Resources"].get("GPU", 0.0))
        for name, node in nodes.items()
    }
    if tasks:
        import ray

        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=limit)
    return {name: _answer(task, 1.0, limit) for name, task in tasks.items()}


def _answer(task: Any, wait: float, limit: float) -> Any:
    """A task's result, or {"error": reason} after the last `wait` seconds of `limit`."""
    import ray

    try:
        return ray.get(task, timeout=wait)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        return {"error": f"none within {limit:g} s"}
    except ray.exceptions.RayError as error:
        return {"error": str(error).strip().splitlines()[-1]}


def _clock(name: str, node: Facts, limit: float) -> Finding:
    task, samples = _pinned(clock, node), []
    for _ in range(5):
        sent = time.time()
        answer = _answer(task.remote(), limit, limit)
        if isinstance(answer, Mapping):
            return problem(name, "answer", answer["error"])
        samples.append((sent, answer, time.time()))
    return clock_finding(name, samples)
