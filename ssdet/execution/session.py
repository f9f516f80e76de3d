"""Ray sessions: starting or joining Ray, and the share of it that a study may use."""

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
"""What one machine has, or may offer: `CPU` and `GPU`."""

DRIVER_CPU = 0.001
"""CPUs of a process that only waits for its workers; Ray refuses a trial that asks for none."""

WORKER_CPU = 0.99
"""CPUs of such a worker: with a whole one, a full node has no room for the driver beside it."""

LOCAL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Inherited by the workers of an own Ray; what the user has set already is left as it is."""

OBJECT_STORE_BYTES = 300_000_000
CLUSTER_FILE_ON_HEAD = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the resolved cluster file, as JSON."""
KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes tells a pod, beside the account that it may ask the API server with."""


@dataclass(frozen=True)
class Workers:
    """How many workers may share a training stage."""

    low: int
    high: int

    @classmethod
    def of(cls, workers: int | str) -> "Workers":
        """From a number, or a range "2:8". ValueError for anything else."""
        low, colon, high = str(workers).partition(":")
        if not (low.isdecimal() and (high.isdecimal() if colon else True)):
            raise ValueError(f"workers={workers}: expected a number, or a range such as 2:8")
        found = cls(int(low), int(high or low))
        if not 1 <= found.low <= found.high:
            raise ValueError(
                f"workers={workers}: expected 1 or more, and the smaller number of a range first"
            )
        return found

    @property
    def elastic(self) -> bool:
        return self.low < self.high


@dataclass(frozen=True)
class Resources:
    """What one stage asks of Ray, and how many stages may ask at once."""

    workers: int
    """As many as there is room for, of those that a stage may have."""
    cpus_per_worker: float
    gpus_per_worker: float
    concurrent: int
    elastic: Workers | None = None
    """The range, where each stage has as many workers of it as there is room for when it starts."""
    decoders: int = 0
    """Tasks beside each worker of a training that decode for it, each on a core."""

    @property
    def drives(self) -> bool:
        """Whether a trial's process only drives workers, which train."""
        return self.workers > 1 or self.elastic is not None

    @property
    def worker(self) -> dict[str, float]:
        """What each training worker asks for: `ScalingConfig(resources_per_worker=)`."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus}

    @property
    def trial(self) -> dict[str, float]:
        """What the trial's own process asks for: it runs the loop, or drives several workers."""
        return {"CPU": DRIVER_CPU} if self.drives else self.worker


@dataclass(frozen=True)
class Session:
    """A Ray in use: the nodes that run, and those that its autoscaler may add (`growth`)."""

    address: str
    owned: bool
    nodes: tuple[Node, ...]
    growth: tuple[Node, ...] = ()
    dashboard: str = ""
    folder: Path | None = None
    """Where an own Ray has its files, if TMPDIR is too long for its sockets."""

    @property
    def capacity(self) -> tuple[Node, ...]:
        """Every node that a study may count on."""
        return self.nodes + self.growth

    def summary(self) -> str:
        """One line for the user: whose Ray this is, and how large."""
        where = "own Ray on this machine" if self.owned else f"Ray cluster {self.address}"
        grown = f", may grow to {_size(self.capacity)}" if self.growth else ""
        shown = f", dashboard http://{self.dashboard}" if self.dashboard else ""
        files = f", its files in {self.folder} (TMPDIR is too long)" if self.folder else ""
        return f"{where}: {_size(self.nodes)}{grown}{shown}{files}"


@contextmanager
def connect(address: str | None = None, *, dashboard: bool = False) -> Iterator[Session]:
    """Join the Ray at `address`, else at RAY_ADDRESS, else run an own one while the block lasts.

    A cluster that merely runs on this machine is never joined. One that was joined keeps running
    afterwards; a Ray that this process uses already is used on, and left as it is. Nothing is
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
    """Folder that `connect` starts an own Ray in; None for Ray's choice, or a cluster to join.

    Commands call this before they spend time on data. Raises ValueError where TMPDIR is too long
    for the sockets of Ray and nothing can take its place.
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
    """What each stage asks for so that `concurrent` of them (default: all that fit) never starve.

    workers: a number, or a range "2:8": planned is the largest of it that fits.
    `cluster`: CPUs and GPUs of each node; a single mapping is a single node. A worker needs one
    core, and its GPUs from one node. One worker is the trial itself; several have a driver beside
    them, and all drivers and workers of the running trials must fit at once, even with every
    driver on the fullest node: otherwise drivers wait for workers that wait for drivers. So must
    the `decoders` of every worker, one core each: of nodes without GPUs where workers have GPUs.
    Raises ValueError with what was asked, what there is, and the way out.
    """
    asked = Workers.of(workers)
    _check_request(gpus_per_worker, concurrent, decoders)
    nodes = [cluster] if isinstance(cluster, Mapping) else list(cluster)
    hosts = [(node, slots) for node in nodes if (slots := _slots(node, gpus_per_worker))]
    room, at_least = sum(slots for _, slots in hosts), concurrent or 1
    if decoders:
        room = min(room, _decoded_for(nodes, gpus_per_worker, decoders))
        hosts += [(n, cores) for n in nodes if not n.get("GPU") and (cores := int(n["CPU"]))]
    team = max(asked.low, min(asked.high, room // at_least))
    most = room // team
    if asked.high > 1:
        most = min([most, *(_drivers_beside(node, slots) for node, slots in hosts)])
    if most < at_least:
        raise ValueError(_shortage(team, gpus_per_worker, concurrent, most, nodes, decoders))
    cpus = 1.0 if asked.high == 1 else WORKER_CPU
    elastic = asked if asked.elastic else None
    return Resources(team, cpus, gpus_per_worker, concurrent or most, elastic, decoders)


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
    """Fail in seconds; a Ray driver retries a dead address for minutes before it gives up."""
    host, _, port = target.rpartition(":")
    if "://" in target or not host or not port.isdigit():
        raise ValueError(
            f'Ray address {target!r}: expected host:port, "auto" (on a node of the cluster) or'
            ' "local"; from outside a cluster use `ray submit` or `ray job submit`'
        )
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables while the block lasts, for the processes that it starts."""
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

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple(_node(resources) for resources in found)
    address = ray.get_runtime_context().gcs_address
    on_head = not owned and address.rsplit(":", 1)[0] == ray.util.get_node_ip_address()
    limits = _autoscaler_limits() if on_head else None
    return Session(address, owned, nodes, _growth(limits, nodes) if limits else (), dashboard)


def _autoscaler_limits() -> Mapping[str, Any] | None:
    """The cluster file that the autoscaler beside this head follows; None where there is none.

    Ray's own place for it, `ClusterConfig` in the GCS, is filled by no autoscaler of Ray 2.60.
    """
    if (file := CLUSTER_FILE_ON_HEAD.expanduser()).exists():
        limits: Mapping[str, Any] = json.loads(file.read_text())
        return limits
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay sets it in every pod
    return _kuberay_limits(name) if name and KUBERNETES_NAMESPACE.exists() else None


def _kuberay_limits(name: str) -> Mapping[str, Any] | None:
    """The same from a RayCluster. KubeRay's autoscaler runs in the head's pod and reads it with
    the account of that pod, so where this is forbidden there is no autoscaler either."""
    import requests
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    client = node_provider.KubernetesHttpApiClient(KUBERNETES_NAMESPACE.read_text().strip())
    try:
        found = client.get(f"rayclusters/{name}")
    except requests.RequestException as error:
        if error.response is None or error.response.status_code not in (401, 403, 404):
            told = "only nodes that run are counted, not what KubeRay's autoscaler may add"
            warnings.warn(f"RayCluster {name!r} cannot be read ({error}): {told}", stacklevel=2)
        return None
    if not found["spec"].get("enableInTreeAutoscaling"):
        return None
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(found)


def _growth(cluster_file: Mapping[str, Any], running: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes that a cluster file allows beyond the running ones; none where it names no sizes."""
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
    """Workers that a node holds."""
    gpus = node.get("GPU", 0) / gpus_per_worker if gpus_per_worker else inf
    return int(min(node.get("CPU", 0), gpus + 1e-9))


def _decoded_for(nodes: Sequence[Node], gpus_per_worker: float, decoders: int) -> int:
    """Workers whose decoders have a core each, beside those of the workers themselves."""
    if gpus_per_worker:
        return sum(int(n.get("CPU", 0)) for n in nodes if not n.get("GPU")) // decoders
    return sum(int(n.get("CPU", 0)) for n in nodes) // (1 + decoders)


def _drivers_beside(node: Node, slots: int) -> int:
    return int((node["CPU"] - slots * WORKER_CPU) / DRIVER_CPU + 1e-6)


def _shortage(
    workers: int,
    gpus_per_worker: float,
    concurrent: int | None,
    most: int,
    nodes: Sequence[Node],
    decoders: int,
) -> str:
    trials, team = _count(concurrent or 1, "trial"), _count(workers, "worker")
    asked = f"{trials} at once, each of {team} with 1 CPU and {gpus_per_worker:g} GPUs"
    if decoders:
        where = " on nodes without GPUs" if gpus_per_worker else ""
        asked += f", and for each {_count(decoders, 'decoder')} with 1 CPU{where}"
    largest = max((node.get("GPU", 0) for node in nodes), default=0)
    if gpus_per_worker > largest:
        return (
            f"{asked}: the largest of {_count(len(nodes), 'node')} has {largest:g} GPUs, and the"
            f" GPUs of a worker come from one node: use gpus_per_worker={largest:g} or a cluster"
            " with larger nodes"
        )
    fewer = f"concurrent={most} or less" if most else "a smaller gpus_per_worker"
    return (
        f"{asked}: the cluster has {_size(nodes)}, room for {_count(most, 'trial')}:"
        f" use {fewer}, fewer workers{' or decoders' if decoders else ''}, or more nodes"
    )
