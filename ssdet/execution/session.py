"""Ray sessions: starting or joining Ray, and planning the resources of stages."""

import json
import logging
import os
import socket
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from ssdet.system.sockets import ray_folder

Node = Mapping[str, float]
"""Resources of one machine: `CPU` and `GPU`."""

DRIVER_CPU = 0.001
"""CPUs of a process that only waits for its workers; Ray refuses a trial without resources."""

WORKER_CPU = 0.99
"""CPUs of a worker that has a driver: with a whole one, a full node has no room for the driver."""

LOCAL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment of the workers of an own Ray; variables that the user has set keep their values."""

OBJECT_STORE_BYTES = 300_000_000
CLUSTER_FILE_ON_HEAD = Path("~/ray_bootstrap_config.yaml")
"""Resolved cluster file that `ray up` writes, as JSON."""
KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Namespace of a pod, beside the credentials of its service account."""


@dataclass(frozen=True)
class Workers:
    """Range of the number of workers of a training stage."""

    low: int
    high: int

    @classmethod
    def of(cls, workers: int | str) -> "Workers":
        """Parse a number, or a range "2:8". ValueError for anything else."""
        low, colon, high = str(workers).partition(":")
        if not (low.isdecimal() and (high.isdecimal() if colon else True)):
            raise ValueError(f"workers={workers}: expected a number, or a range such as 2:8")
        parsed = cls(int(low), int(high or low))
        if not 1 <= parsed.low <= parsed.high:
            raise ValueError(
                f"workers={workers}: expected 1 or more, and the smaller number of a range first"
            )
        return parsed

    @property
    def elastic(self) -> bool:
        return self.low < self.high


@dataclass(frozen=True)
class Resources:
    """Ray resources of one stage, and number of stages at once."""

    workers: int
    """Number that fits on the cluster, within the requested range."""
    cpus_per_worker: float
    gpus_per_worker: float
    concurrent: int
    elastic: Workers | None = None
    """The range, if each start of a stage uses as many workers as fit then."""
    decoders: int = 0
    """Decoding tasks per training worker, each on a core."""

    @property
    def drives(self) -> bool:
        """Whether a trial's process only waits for workers that train."""
        return self.workers > 1 or self.elastic is not None

    @property
    def worker(self) -> dict[str, float]:
        """Resources of each training worker: `ScalingConfig(resources_per_worker=)`."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus}

    @property
    def trial(self) -> dict[str, float]:
        """Resources of the trial's own process: it trains, or waits for several workers."""
        return {"CPU": DRIVER_CPU} if self.drives else self.worker


@dataclass(frozen=True)
class Session:
    """A Ray instance in use: running nodes, and those that its autoscaler may add (`growth`)."""

    address: str
    owned: bool
    nodes: tuple[Node, ...]
    growth: tuple[Node, ...] = ()
    dashboard: str = ""
    folder: Path | None = None
    """Folder of an own Ray's files, if TMPDIR is too long for its sockets."""

    @property
    def capacity(self) -> tuple[Node, ...]:
        """Running nodes and those that the autoscaler may add."""
        return self.nodes + self.growth

    def summary(self) -> str:
        """One line for the user: own Ray or cluster, and its size."""
        where = "own Ray on this machine" if self.owned else f"Ray cluster {self.address}"
        grown = f", may grow to {_size(self.capacity)}" if self.growth else ""
        shown = f", dashboard http://{self.dashboard}" if self.dashboard else ""
        files = f", its files in {self.folder} (TMPDIR is too long)" if self.folder else ""
        return f"{where}: {_size(self.nodes)}{grown}{shown}{files}"


@contextmanager
def connect(address: str | None = None, *, dashboard: bool = False) -> Iterator[Session]:
    """Join the Ray at `address`, else at RAY_ADDRESS, else run an own one during the block.

    A cluster on this machine is not joined without an address. A joined cluster keeps running
    afterwards; a Ray that this process has already initialised is used and kept. Nothing is
    shipped to the nodes: ssdet is installed on each (cluster.yaml), or comes with the job
    (`ray job submit --working-dir`). `dashboard` is for an own Ray. Raises ValueError for an
    address that is not host:port, "auto" or "local", and as `folder_for_ray`; ConnectionError where
    nothing answers.
    """
    import ray

    if ray.is_initialized():
        yield _session()
        return
    target, folder = _target(address), folder_for_ray(address)
    try:
        url = _start(dashboard, folder) if target == "local" else _join(target)
        yield replace(_session(owned=target == "local", dashboard=url), folder=folder)
    finally:
        ray.shutdown()


def folder_for_ray(address: str | None = None) -> Path | None:
    """Folder that `connect` starts an own Ray in; None for Ray's default, or a cluster to join.

    Commands call this before they prepare data. Raises ValueError where TMPDIR is too long for the
    sockets of Ray and cannot be replaced.
    """
    return ray_folder() if _target(address) == "local" else None


def _target(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def plan_resources(
    workers: int | str = 1,
    gpus_per_worker: float = 0,
    concurrent: int | None = None,
    *,
    cluster: Node | Sequence[Node],
    decoders: int = 0,
) -> Resources:
    """Resources of each stage such that `concurrent` stages (default: all that fit) run at once.

    workers: a number, or a range "2:8", of which the largest that fits is planned.
    `cluster`: CPUs and GPUs of each node; a single mapping is a single node. A worker needs one
    core, and its GPUs from one node. One worker is the trial itself; several have a driver beside
    them, and all drivers and workers of the running trials must fit at once, even with every
    driver on the fullest node: otherwise drivers wait for workers that wait for drivers. So must
    the `decoders` of every worker, one core each: of nodes without GPUs where workers have GPUs.
    Raises ValueError with the request, the cluster's size, and the way out.
    """
    sizes = Workers.of(workers)
    _check_request(gpus_per_worker, concurrent, decoders)
    nodes = [cluster] if isinstance(cluster, Mapping) else list(cluster)
    hosts = [(node, slots) for node in nodes if (slots := _slots(node, gpus_per_worker))]
    total, required = sum(slots for _, slots in hosts), concurrent or 1
    if decoders:
        total = min(total, _workers_with_decoders(nodes, gpus_per_worker, decoders))
        hosts += [(n, cores) for n in nodes if not n.get("GPU") and (cores := int(n["CPU"]))]
    size = max(sizes.low, min(sizes.high, total // required))
    trials = total // size
    if sizes.high > 1:
        trials = min([trials, *(_drivers_beside(node, slots) for node, slots in hosts)])
    if trials < required:
        raise ValueError(_shortage(size, gpus_per_worker, concurrent, trials, nodes, decoders))
    cpus = 1.0 if sizes.high == 1 else WORKER_CPU
    elastic = sizes if sizes.elastic else None
    return Resources(size, cpus, gpus_per_worker, concurrent or trials, elastic, decoders)


def _start(dashboard: bool, folder: Path | None) -> str:
    import ray

    values = {name: os.environ.get(name, value) for name, value in LOCAL_ENVIRONMENT.items()}
    if folder:  # for sockets of multiprocessing in Ray's dashboard and workers
        values["TMPDIR"] = str(folder.parent)
    with _environment(values):
        context = ray.init(
            address="local",
            num_cpus=_cores(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder) if folder else None,
        )
    return str(context.dashboard_url or "")


def _join(target: str) -> str:
    import ray

    try:
        if target != "auto":
            _probe(target)
        context = ray.init(address=target, log_to_driver=False, logging_level=logging.WARNING)
    except OSError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise ConnectionError(
            f"cannot join the Ray at {target!r}: {reason} - start it, correct the address or"
            ' RAY_ADDRESS, or pass address "local" for an own Ray on this machine'
        ) from error
    return str(context.dashboard_url or "")


def _probe(target: str) -> None:
    """Fail within seconds; a Ray driver retries a dead address for minutes."""
    host, _, port = target.rpartition(":")
    if "://" in target or not host or not port.isdigit():
        raise ValueError(
            f'Ray address {target!r}: expected host:port, "auto" (on a node of the cluster) or'
            ' "local"; from outside a cluster use `ray submit` or `ray job submit`'
        )
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block, for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _session(owned: bool = False, dashboard: str = "") -> Session:
    import ray

    nodes = tuple(_node(node["Resources"]) for node in ray.nodes() if node["Alive"])
    address = ray.get_runtime_context().gcs_address
    on_head = not owned and address.rsplit(":", 1)[0] == ray.util.get_node_ip_address()
    limits = _autoscaler_limits() if on_head else None
    return Session(address, owned, nodes, _growth(limits, nodes) if limits else (), dashboard)


def _autoscaler_limits() -> Mapping[str, Any] | None:
    """Cluster file of the autoscaler on this head node; None where there is none.

    No autoscaler of Ray 2.60 fills `ClusterConfig` in the GCS, where Ray would keep it.
    """
    if (file := CLUSTER_FILE_ON_HEAD.expanduser()).exists():
        limits: Mapping[str, Any] = json.loads(file.read_text())
        return limits
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay sets it in every pod
    return _kuberay_limits(name) if name and KUBERNETES_NAMESPACE.exists() else None


def _kuberay_limits(name: str) -> Mapping[str, Any] | None:
    """The same from a RayCluster. KubeRay's autoscaler runs in the head's pod and reads it with
    the pod's service account, so where reading is forbidden there is no autoscaler either."""
    import requests
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    client = node_provider.KubernetesHttpApiClient(KUBERNETES_NAMESPACE.read_text().strip())
    try:
        cluster = client.get(f"rayclusters/{name}")
    except requests.RequestException as error:
        if error.response is None or error.response.status_code not in (401, 403, 404):
            effect = "only running nodes are counted, not those that KubeRay's autoscaler may add"
            warnings.warn(f"RayCluster {name!r} cannot be read ({error}): {effect}", stacklevel=2)
        return None
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)


def _growth(cluster_file: Mapping[str, Any], running: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes that a cluster file allows beyond the running ones, if it gives their resources."""
    kinds, head = cluster_file["available_node_types"], cluster_file["head_node_type"]
    workers = [
        _node(kind["resources"])
        for name, kind in kinds.items()
        if name != head
        for _ in range(kind["max_workers"])
    ][: cluster_file["max_workers"]]
    allowed = Counter(_shape(node) for node in [_node(kinds[head]["resources"]), *workers])
    more = allowed - Counter(_shape(node) for node in running)
    return tuple({"CPU": cpus, "GPU": gpus} for cpus, gpus in more.elements() if cpus or gpus)


def _node(resources: Mapping[str, float]) -> Node:
    return {kind: float(resources.get(kind, 0)) for kind in ("CPU", "GPU")}


def _shape(node: Node) -> tuple[float, float]:
    return node["CPU"], node["GPU"]


def _size(nodes: Sequence[Node]) -> str:
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{_count(len(nodes), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _check_request(gpus_per_worker: float, concurrent: int | None, decoders: int) -> None:
    if decoders < 0:
        raise ValueError(f"decoders={decoders}: expected 1 or more, or 0 for none")
    if concurrent is not None and concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: expected 1 or more, or None for all that fit")
    if gpus_per_worker < 0 or (gpus_per_worker > 1 and gpus_per_worker % 1):
        raise ValueError(
            f"gpus_per_worker={gpus_per_worker:g}: expected a whole number, or a part of one GPU"
        )


def _slots(node: Node, gpus_per_worker: float) -> int:
    """Workers that fit on a node."""
    gpus = node.get("GPU", 0) / gpus_per_worker if gpus_per_worker else inf
    return int(min(node.get("CPU", 0), gpus + 1e-9))


def _workers_with_decoders(nodes: Sequence[Node], gpus_per_worker: float, decoders: int) -> int:
    """Workers for whose decoders, and themselves, the nodes have a core each."""
    if gpus_per_worker:
        return sum(int(n.get("CPU", 0)) for n in nodes if not n.get("GPU")) // decoders
    return sum(int(n.get("CPU", 0)) for n in nodes) // (1 + decoders)


def _drivers_beside(node: Node, slots: int) -> int:
    return int((node["CPU"] - slots * WORKER_CPU) / DRIVER_CPU + 1e-6)


def _shortage(
    workers: int,
    gpus_per_worker: float,
    concurrent: int | None,
    fitting: int,
    nodes: Sequence[Node],
    decoders: int,
) -> str:
    trials, group = _count(concurrent or 1, "trial"), _count(workers, "worker")
    request = f"{trials} at once, each of {group} with 1 CPU and {gpus_per_worker:g} GPUs"
    if decoders:
        where = " on nodes without GPUs" if gpus_per_worker else ""
        request += f", and for each {_count(decoders, 'decoder')} with 1 CPU{where}"
    largest = max((node.get("GPU", 0) for node in nodes), default=0)
    if gpus_per_worker > largest:
        return (
            f"{request}: the largest of {_count(len(nodes), 'node')} has {largest:g} GPUs, and the"
            f" GPUs of a worker come from one node: use gpus_per_worker={largest:g} or a cluster"
            " with larger nodes"
        )
    fewer = f"concurrent={fitting} or less" if fitting else "a smaller gpus_per_worker"
    return (
        f"{request}: the cluster has {_size(nodes)}, room for {_count(fitting, 'trial')}:"
        f" use {fewer}, fewer workers{' or decoders' if decoders else ''}, or more nodes"
    )
