"""Kubernetes manifests, and that no file of a cluster holds a secret.

No package ships KubeRay's resource definitions, so fields are checked against a list made by hand
from its API reference for ray.io/v1 (docs.ray.io, KubeRay 1.6 and 1.7). Pods and the rest are
checked by `kubernetes-validate`, with Kubernetes' own schemas, where that is installed.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "clusters"
MANIFESTS = ("kuberay_cluster", "kuberay_job")
CLUSTER_FILES = [ROOT / "cluster.yaml", *sorted(FOLDER.iterdir())]
KUBERNETES = "1.37"

GROUP = {"rayStartParams": dict, "template": dict, "resources": dict, "labels": dict}
HEAD = {**GROUP, "serviceType": str, "headService": dict, "enableIngress": bool}
WORKERS = {
    **GROUP,
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts"), int),
    "groupName": str,
    "idleTimeoutSeconds": int,
    "suspend": bool,
    "scaleStrategy": dict,
}
CLUSTER = {
    "authOptions": {"mode": str, "secretName": str, "enableK8sTokenAuth": bool},
    "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": HEAD,
    "headServiceAnnotations": dict,
    "managedBy": str,
    "rayVersion": str,
    "suspend": bool,
    "upgradeStrategy": dict,
    "workerGroupSpecs": [WORKERS],
}
JOB = {
    **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"), int),
    **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "managedBy"), str),
    **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), bool),
    **dict.fromkeys(("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"), object),
    **dict.fromkeys(("metadata", "clusterSelector", "submitterConfig"), dict),
    **dict.fromkeys(("submitterPodTemplate", "deletionStrategy"), dict),
    "rayClusterSpec": CLUSTER,
}
RESOURCE = {"apiVersion": str, "kind": str, "metadata": dict}
SPECS = {"RayCluster": {**RESOURCE, "spec": CLUSTER}, "RayJob": {**RESOURCE, "spec": JOB}}
REQUIRED = {"headGroupSpec": ["template"], "workerGroupSpecs": ["groupName", "template"]}
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def ray_of(name: str) -> dict[str, Any]:
    (found,) = (d for d in documents(name) if d["apiVersion"] == "ray.io/v1")
    return found


def cluster_of(name: str) -> dict[str, Any]:
    spec = ray_of(name)["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


def groups(name: str) -> list[dict[str, Any]]:
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def unknown(value: Any, known: Any, where: str) -> list[str]:
    """Where a value has fields that are not known, or of another type."""
    if isinstance(known, type):
        wrong = not isinstance(value, known) or (known is int and isinstance(value, bool))
        return [where] if wrong else []
    if isinstance(known, list):
        return [w for i, v in enumerate(value) for w in unknown(v, known[0], f"{where}[{i}]")]
    return [w for k, v in value.items() for w in unknown(v, known.get(k, tuple), f"{where}.{k}")]


@pytest.mark.parametrize("name", MANIFESTS)
def test_fields_are_those_of_kuberay(name: str) -> None:
    found = ray_of(name)
    assert not unknown(found, SPECS[found["kind"]], found["kind"])
    spec, cluster = found["spec"], cluster_of(name)
    assert all(field in cluster["headGroupSpec"] for field in REQUIRED["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        assert all(field in group for field in REQUIRED["workerGroupSpecs"])
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec.get("submissionMode", "K8sJobMode") in MODES
    for group in groups(name):  # the operator makes command-line options of them
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_a_wrong_field_is_noticed() -> None:
    found = ray_of("kuberay_job")
    found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    found["spec"]["backoffLimit"] = "2"
    wrong = unknown(found, SPECS["RayJob"], "RayJob")
    assert [where.rpartition(".")[2] for where in wrong] == ["backoffLimit", "replica"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_accepts_the_rest(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    templates = [
        {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        for group in groups(name)
    ]
    others = [d for d in documents(name) if d["apiVersion"] != "ray.io/v1"]
    for document in [*templates, *others]:
        validator.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_token_comes_from_a_secret_that_the_file_only_names(name: str) -> None:
    options = cluster_of(name)["authOptions"]
    assert options == {"mode": "token", "secretName": "ssdet-ray-token"}
    text = (FOLDER / "kuberay_cluster.yaml").read_text()
    assert f"create secret generic {options['secretName']} --from-literal=auth_token=" in text
    assert "Secret" not in {d["kind"] for d in documents(name)}
    for group in groups(name):
        for container in group["template"]["spec"]["containers"]:
            assert not [e for e in container["env"] if "AUTH" in e["name"]]


def test_the_dashboard_of_a_cluster_listens_in_its_pod_only() -> None:
    head = cluster_of("kuberay_cluster")["headGroupSpec"]
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert head.get("serviceType", "ClusterIP") == "ClusterIP"


def test_the_dashboard_of_a_job_is_reached_by_the_operator_and_its_own_pods_only() -> None:
    (policy,) = (d["spec"] for d in documents("kuberay_job") if d["kind"] == "NetworkPolicy")
    label = policy["podSelector"]["matchLabels"]
    for group in groups("kuberay_job"):
        assert label.items() <= group["template"]["metadata"]["labels"].items()
    own, operator = policy["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": label}}]
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert policy["policyTypes"] == ["Ingress"]
    assert cluster_of("kuberay_job")["headGroupSpec"]["serviceType"] == "ClusterIP"


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_has_the_image_the_store_and_shared_memory(name: str) -> None:
    (claim,) = (d for d in documents(name) if d["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    images = set()
    for group in groups(name):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        mounts = {m["name"]: Path(m["mountPath"]) for m in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        shared = volumes["ssdet"]["persistentVolumeClaim"]["claimName"]
        assert shared == claim["metadata"]["name"]
        assert (
            mounts["shm"] == Path("/dev/shm") and volumes["shm"]["emptyDir"]["medium"] == "Memory"
        )
        environment = {e["name"]: e["value"] for e in container["env"]}
        for variable in ("SSDET_STORE", "SSDET_CACHE"):
            assert Path(environment[variable]).is_relative_to(mounts["ssdet"])
    assert len(images) == 1


@pytest.mark.parametrize("name", MANIFESTS)
def test_rays_objects_and_the_loaders_batches_fit_into_shared_memory(name: str) -> None:
    for group in groups(name):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        size = int(volumes["shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
        objects = int(group["rayStartParams"]["object-store-memory"])
        assert 1e9 < objects <= size / 2


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_autoscaler_of_ray_understands_the_groups(name: str) -> None:
    document = {"metadata": {"name": "x", "namespace": "x"}, "spec": cluster_of(name)}
    found = _derive_autoscaling_config_from_ray_cr(document)["available_node_types"]
    assert (found["headgroup"]["resources"]["CPU"], found["headgroup"]["max_workers"]) == (4, 0)
    gpu = found["gpu"]
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"], gpu["max_workers"]) == (7, 1, 2)


def test_both_claim_the_same_storage() -> None:
    claims = [
        d for name in MANIFESTS for d in documents(name) if d["kind"] == "PersistentVolumeClaim"
    ]
    assert claims[0] == claims[1]


def test_versions_and_paths_are_those_of_the_project() -> None:
    version = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version is not None
    assert {cluster_of(name)["rayVersion"] for name in MANIFESTS} == {version[1]}
    text = (FOLDER / "kuberay_cluster.yaml").read_text()
    assert f"FROM rayproject/ray:{version[1]}-py311-gpu" in text
    copied = set(re.findall(r"[\w.]+", " ".join(re.findall(r"COPY --chown=ray (.+)", text))))
    needed = {"ssdet", "experiments", "pyproject.toml", "setup.py", "constraints.txt"}
    needed |= {"README.md", "LICENSE"}
    assert needed <= copied and "--constraint /home/ray/project/constraints.txt" in text
    command = ray_of("kuberay_job")["spec"]["entrypoint"].split()
    assert (ROOT / command[1].removeprefix("/home/ray/project/")).is_file()


def test_a_study_asks_for_gpus_that_the_workers_have() -> None:
    for name in MANIFESTS:
        (workers,) = cluster_of(name)["workerGroupSpecs"]
        (container,) = workers["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


SECRETS = {
    "a long hexadecimal or base64 text": r"[0-9a-fA-F]{32,}|[A-Za-z0-9+]{40,}={0,2}",
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|aws_secret_access_key|AWS_SECRET",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KEY",
    "a token or password with its value": r"(?i)(auth_token|password|token)\s*[:=]\s*['\"]?\w{8,}",
    "credentials of Google": r"gcp_credentials|private_key_id",
}


@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("what", SECRETS)
def test_no_secret_is_in_a_file(path: Path, what: str) -> None:
    found = re.search(SECRETS[what], path.read_text())
    assert found is None, f"{path.name} has {what}: {found[0]}"


@pytest.mark.parametrize(
    "text",
    [
        "RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef",
        "- AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        'auth_token: "hunter2hunter2"',
        "gcp_credentials: {type: service_account}",
    ],
)
def test_a_secret_would_be_noticed(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in SECRETS.values())
