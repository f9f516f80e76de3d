"""Join a cluster as experiments do, run a task on every node, print their settings as JSON."""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssdet.execution.session import connect, plan_resources


def visit() -> dict[str, Any]:
    import ssdet

    store = Path(os.environ["SSDET_STORE"])
    store.mkdir(parents=True, exist_ok=True)
    (store / f"seen-{socket.gethostname()}").touch()
    names = ("RAY_AUTH_MODE", "OMP_NUM_THREADS", "SSDET_STORE")
    seen = {name: os.environ.get(name) for name in names}
    return {"host": socket.gethostname(), "ssdet": ssdet.__file__, **seen}


def main(nodes: int) -> None:
    deadline = time.monotonic() + 180
    while True:
        with connect() as session:
            if len(session.nodes) >= nodes:
                print(json.dumps(report(session.summary(), session.capacity)))
                return
        if time.monotonic() > deadline:
            sys.exit(f"{session.summary()}: expected {nodes} nodes")
        time.sleep(2)


def report(summary: str, capacity: Any) -> dict[str, Any]:
    where = [
        NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        for node in ray.nodes()
        if node["Alive"]
    ]
    task = ray.remote(num_cpus=1)(visit)
    visits = ray.get([task.options(scheduling_strategy=node).remote() for node in where])
    store = Path(os.environ["SSDET_STORE"])
    return {
        "driver": socket.gethostname(),
        "summary": summary,
        "concurrent": plan_resources(cluster=capacity).concurrent,
        "visits": sorted(visits, key=lambda visit: str(visit["host"])),
        "store": sorted(path.name for path in store.glob("seen-*")),
    }


if __name__ == "__main__":
    main(nodes=3)
