"""One scenario beside a stranger's cluster (in its own processes), and the arithmetic of resources.

The resource rule is checked by placing drivers and workers by hand, in the worst order.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import requests
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdet.execution import session
from ssdet.execution.session import DRIVER_CPU, Session, _growth, connect, plan_resources

ROOT = Path(__file__).resolve().parents[2]

SCENARIO = """
import json, os, sys
import ray
from ssdet.execution.session import connect

stranger, dead = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
seen = {"errors": []}

bare = ray.init(log_to_driver=False)
seen["bare"] = bare.address_info["gcs_address"]
ray.shutdown()

before = dict(os.environ)
with connect() as session:
    seen["own"] = [session.address, session.owned, session.summary(), list(session.nodes)]
    read = ray.remote(num_cpus=0.001)(lambda: dict(os.environ))
    seen["worker_environment"] = ray.get(read.remote())
    with connect() as inner:
        seen["inner"] = [inner.address, inner.owned]
    seen["alive_after_inner"] = ray.is_initialized()
seen["alive_after_own"] = ray.is_initialized()
seen["leaked"] = sorted(set(os.environ) - set(before))

os.environ["RAY_ADDRESS"] = stranger
with connect() as session:
    seen["environment"] = [session.address, session.owned, session.summary()]
os.environ["RAY_ADDRESS"] = dead
with connect(stranger) as session:
    seen["argument"] = [session.address, session.owned]
for address in (None, "http://127.0.0.1:8265", "ray://127.0.0.1:10001", "nonsense"):
    try:
        with connect(address):
            pass
    except (ConnectionError, ValueError) as error:
        seen["errors"].append([type(error).__name__, str(error)])
print(json.dumps(seen))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def port_of(address: str) -> int:
    return int(address.split(":")[1])  # Ray renames localhost to the machine's own address


def answers(address: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port_of(address))) == 0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets need a short path
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """A machine of its own, as far as Ray can see: temporary folder, home, no cluster given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    mine = {"RAY_TMPDIR": str(folder), "HOME": str(folder), "RAY_AUTH_MODE": "disabled"}
    return kept | mine | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def stranger(environment: dict[str, str]) -> Iterator[str]:
    """Address of somebody else's cluster on this machine."""
    port = free_port()
    options = f"--head --block --port={port} --num-cpus=1"
    ports = f"--ray-client-server-port={free_port()} --dashboard-agent-listen-port=0"
    small = "--include-dashboard=false --disable-usage-stats --object-store-memory=80000000"
    words = f"start {options} {ports} {small}".split()
    command = [sys.executable, "-u", "-m", "ray.scripts.scripts", *words]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("".join(said))
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def seen(stranger: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-c", SCENARIO, stranger, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_without_an_address_a_stranger_is_not_joined(seen: dict[str, Any], stranger: str) -> None:
    address, owned, summary, nodes = seen["own"]
    assert port_of(seen["bare"]) == port_of(stranger)  # the trap: what a bare ray.init() does
    assert port_of(address) != port_of(stranger) and owned
    assert nodes == [{"CPU": 1.0, "GPU": nodes[0]["GPU"]}]  # the scenario's affinity, not the box
    assert summary.startswith("own Ray on this machine: 1 node, 1 CPUs")


def test_workers_of_an_own_ray_inherit_the_defaults(seen: dict[str, Any]) -> None:
    workers = seen["worker_environment"]
    assert workers["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert workers["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    assert workers["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not {"OMP_NUM_THREADS", "RAY_TRAIN_METRICS_ENABLED"} & set(seen["leaked"])


def test_a_ray_in_use_is_used_on_and_left_alone(seen: dict[str, Any]) -> None:
    assert seen["inner"] == [seen["own"][0], False]
    assert seen["alive_after_inner"] and not seen["alive_after_own"]
    assert not answers(seen["own"][0])


def test_a_given_cluster_is_joined_and_kept(seen: dict[str, Any], stranger: str) -> None:
    address, owned, summary = seen["environment"]
    assert port_of(address) == port_of(stranger) and not owned
    assert summary.startswith(f"Ray cluster {address}: 1 node, 1 CPUs")
    assert seen["argument"] == [address, False]  # RAY_ADDRESS named another one
    assert answers(stranger)


def test_bad_addresses_say_what_is_expected(seen: dict[str, Any]) -> None:
    (dead, dead_message), *urls = seen["errors"]
    assert dead == "ConnectionError" and 'pass address "local"' in dead_message
    assert [kind for kind, _ in urls] == ["ValueError"] * 3
    assert all("expected host:port" in message for _, message in urls)


@pytest.mark.parametrize(
    ("request_", "nodes", "expected"),
    [
        ({}, {"CPU": 2}, ({"CPU": 1.0}, {"CPU": 1.0}, 2)),
        ({}, [{"CPU": 2.5}, {"CPU": 1}], ({"CPU": 1.0}, {"CPU": 1.0}, 3)),
        ({"workers": 2}, {"CPU": 2}, ({"CPU": 0.001}, {"CPU": 0.99}, 1)),
        ({"workers": 2}, {"CPU": 7}, ({"CPU": 0.001}, {"CPU": 0.99}, 3)),
        (
            {"gpus_per_worker": 1},
            [{"CPU": 2}, {"CPU": 8, "GPU": 4}],
            ({"CPU": 1.0, "GPU": 1}, {"CPU": 1.0, "GPU": 1}, 4),
        ),
        (
            {"workers": 2, "gpus_per_worker": 2},
            [{"CPU": 8, "GPU": 3}] * 3,  # nine GPUs, but only three pairs on one node each
            ({"CPU": 0.001}, {"CPU": 0.99, "GPU": 2}, 1),
        ),
        (
            {"gpus_per_worker": 0.1},
            {"CPU": 16, "GPU": 1},
            ({"CPU": 1.0, "GPU": 0.1}, {"CPU": 1.0, "GPU": 0.1}, 10),
        ),
    ],
)
def test_by_default_as_many_as_fit(request_: Any, nodes: Any, expected: Any) -> None:
    planned = plan_resources(**request_, cluster=nodes)
    assert (planned.trial, planned.worker, planned.concurrent) == expected


def test_fewer_may_be_asked_for() -> None:
    assert plan_resources(concurrent=3, cluster={"CPU": 64}).concurrent == 3


@pytest.mark.parametrize(
    ("request_", "nodes", "parts"),
    [
        ({"workers": 3}, {"CPU": 2}, ["3 workers", "2 CPUs", "room for 0 trials", "more nodes"]),
        ({"concurrent": 3}, {"CPU": 2}, ["3 trials", "2 CPUs", "concurrent=2 or less"]),
        ({"gpus_per_worker": 1}, [{"CPU": 2}] * 2, ["2 nodes has 0 GPUs", "gpus_per_worker=0"]),
        ({"gpus_per_worker": 4}, [{"CPU": 8, "GPU": 2}] * 4, ["2 GPUs", "from one node"]),
        ({"gpus_per_worker": 1.5}, {"CPU": 8, "GPU": 8}, ["1.5", "whole number"]),
        ({"workers": 0}, {"CPU": 2}, ["workers=0"]),
        ({"concurrent": 0}, {"CPU": 2}, ["concurrent=0"]),
        ({"gpus_per_worker": -1}, {"CPU": 2}, ["gpus_per_worker=-1"]),
        ({}, [], ["0 nodes", "room for 0 trials"]),
    ],
)
def test_what_does_not_fit_names_the_way_out(request_: Any, nodes: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        plan_resources(**request_, cluster=nodes)
    assert all(part in str(error.value) for part in parts), str(error.value)


nodes_strategy = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(1, 16), "GPU": st.integers(0, 8)}), max_size=6
)


@settings(deadline=None)
@given(nodes_strategy, st.integers(1, 6), st.sampled_from([0, 0.25, 0.5, 1, 2, 4]))
def test_drivers_and_workers_fit_wherever_the_drivers_land(
    nodes: list[dict[str, float]], workers: int, gpus: float
) -> None:
    try:
        planned = plan_resources(workers, gpus, cluster=nodes)
    except ValueError:
        assert room(nodes, gpus, 1.0) < workers  # not even one trial, drivers or not
        return
    cpus, wanted = planned.cpus_per_worker, planned.concurrent * workers
    driver = DRIVER_CPU * planned.concurrent if workers > 1 else 0
    total = sum(node["CPU"] for node in nodes)
    assert driver + wanted * cpus <= total + 1e-9
    for crowded in range(len(nodes)):
        left = [dict(node) for node in nodes]
        left[crowded]["CPU"] -= driver
        assert room(left, gpus, cpus) >= wanted
    hosts = [node["CPU"] for node in nodes if room([node], gpus, 1.0)]
    if workers == 1 or planned.concurrent < 10 * min(hosts):  # the last core takes ten drivers
        assert room(nodes, gpus, 1.0) < wanted + workers  # no trial more would have fitted


def room(nodes: list[dict[str, float]], gpus: float, cpus: float) -> int:
    """Workers that can be placed one by one, each on the first node with room for it."""
    placed = 0
    for node in nodes:
        free_cpus, free_gpus = node["CPU"], node["GPU"]
        while free_cpus >= cpus - 1e-9 and free_gpus >= gpus - 1e-9:
            free_cpus, free_gpus, placed = free_cpus - cpus, free_gpus - gpus, placed + 1
    return placed


CLUSTER_FILE = {
    "head_node_type": "head",
    "max_workers": 3,
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 8, "GPU": 1, "memory": 1e10}, "max_workers": 4},
    },
}


def test_a_cluster_counts_what_its_autoscaler_may_add() -> None:
    head, gpu = {"CPU": 4.0, "GPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}
    assert _growth(CLUSTER_FILE, [head]) == (gpu,) * 3
    assert _growth(CLUSTER_FILE, [head, gpu]) == (gpu,) * 2
    assert _growth(CLUSTER_FILE, [head] + [gpu] * 3) == ()
    grown = Session("10.0.0.1:6379", False, (head,), (gpu,) * 3)
    assert plan_resources(gpus_per_worker=1, cluster=grown.capacity).concurrent == 3
    assert grown.summary() == (
        "Ray cluster 10.0.0.1:6379: 1 node, 4 CPUs, 0 GPUs, may grow to 4 nodes, 28 CPUs, 3 GPUs"
    )


def test_a_cluster_file_without_sizes_promises_nothing() -> None:
    kinds = {"node": {"resources": {}, "max_workers": 2}}
    file = {"head_node_type": "node", "max_workers": 2, "available_node_types": kinds}
    assert _growth(file, [{"CPU": 1.0, "GPU": 0.0}]) == ()


class Kubernetes:
    """A KubeRay head's view of its API server, which has one RayCluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

        text = (ROOT / "clusters" / "kuberay_cluster.yaml").read_text()
        self.cluster = next(d for d in yaml.safe_load_all(text) if d["kind"] == "RayCluster")
        self.cluster["metadata"]["namespace"] = "ml"
        self.spec = self.cluster["spec"]
        self.status = 200
        self.asked: list[str] = []
        (folder / "namespace").write_text("ml")
        monkeypatch.setattr(session, "KUBERNETES_NAMESPACE", folder / "namespace")
        monkeypatch.setattr(session, "CLUSTER_FILE_ON_HEAD", folder / "none")
        monkeypatch.setenv("RAY_CLUSTER_NAME", self.cluster["metadata"]["name"])
        credentials = ({"Authorization": "Bearer x"}, False, None)
        monkeypatch.setattr(
            KubernetesHttpApiClient, "_get_refreshed_credentials", lambda _: credentials
        )
        monkeypatch.setattr("requests.get", self.get)

    def get(self, url: str, **_: Any) -> requests.Response:
        self.asked.append(url)
        if not self.status:
            raise requests.ConnectionError("refused")
        answer = requests.Response()
        answer.status_code = self.status
        answer._content = json.dumps(self.cluster).encode()
        return answer


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kubernetes:
    return Kubernetes(monkeypatch, tmp_path)


def test_on_kuberay_what_its_autoscaler_may_add_is_counted(ray_session, kubernetes) -> None:
    kubernetes.spec["enableInTreeAutoscaling"] = True
    kubernetes.spec["workerGroupSpecs"][0].update(minReplicas=0, replicas=0, maxReplicas=3)
    with connect() as found:
        assert kubernetes.asked[0].endswith("/apis/ray.io/v1/namespaces/ml/rayclusters/ssdet")
        # 4 CPUs of the file's head are not those of this machine, which is the head here
        gpus = [node for node in found.growth if node["GPU"]]
        assert gpus == [{"CPU": 7.0, "GPU": 1.0}] * 3
        assert plan_resources(gpus_per_worker=1, cluster=found.capacity).concurrent == 3


@pytest.mark.parametrize("status", [200, 403])
def test_without_an_autoscaler_kuberay_promises_nothing(ray_session, kubernetes, status) -> None:
    kubernetes.status = status
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with connect() as found:
            assert kubernetes.asked and not found.growth


@pytest.mark.parametrize("status", [0, 500])
def test_an_api_server_that_fails_is_told_and_stops_nothing(
    ray_session, kubernetes, status
) -> None:
    kubernetes.status = status
    with pytest.warns(UserWarning, match="only running nodes are counted"), connect() as found:
        assert not found.growth


def test_rays_autoscaler_does_not_tell_the_gcs_its_limits(ray_session) -> None:
    """When it does, that is the better source: `ray._private.state.state.get_cluster_config()`."""
    package = Path(ray.__file__).parent
    assert not [
        path
        for folder in ("autoscaler", "_private", "scripts")
        for path in (package / folder).rglob("*.py")
        if "report_cluster_config" in path.read_text()
    ]


def test_planning_needs_no_ray() -> None:
    code = "import sys; import ssdet.execution.session; sys.exit('ray' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
