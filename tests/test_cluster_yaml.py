"""Files for `ray up`: Ray's own check of them, and what Ray cannot know that ours must hold."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
FILES = {"aws": "cluster.yaml", "gcp": "clusters/gcp.yaml", "local": "clusters/on_prem.yaml"}
AWS = (ROOT / "cluster.yaml").read_text()

Config = dict[str, Any]


@pytest.fixture(scope="module", params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def text(kind: str) -> str:
    return (ROOT / FILES[kind]).read_text()


@pytest.fixture(scope="module")
def cluster(text: str) -> Config:
    return prepared(text)


def prepared(text: str) -> Config:
    found: Config = prepare_config(yaml.safe_load(text))
    return found


@pytest.fixture(scope="module")
def login(cluster: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return login_of(cluster, tmp_path_factory.mktemp("home"))


def login_of(cluster: Config, home: Path) -> dict[str, str]:
    """Variables that a login shell of the head exports, by running the commands that write them."""
    writers = [c for c in cluster["head_setup_commands"] if "ssdet_env" in c]
    script = "\n".join([*writers, *writers, ". ~/.bashrc", "env"])  # `ray up` may run again
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (home / ".bashrc").read_text().count("ssdet_env") == 1
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_ray_accepts_it(cluster: Config, kind: str) -> None:
    validate_config(cluster)
    assert cluster["provider"]["type"] == kind


def test_all_machines_that_one_has_are_used() -> None:
    cluster = yaml.safe_load((ROOT / FILES["local"]).read_text())
    count = len(cluster["provider"]["worker_ips"])
    assert cluster["max_workers"] == cluster["min_workers"] == count


def test_workers_come_and_go_up_to_a_bound(cluster: Config, kind: str) -> None:
    if kind == "local":
        return
    kinds = cluster["available_node_types"]
    workers = [kind for name, kind in kinds.items() if name != cluster["head_node_type"]]
    assert workers and all(kind["min_workers"] == 0 for kind in workers)
    assert 0 < cluster["max_workers"] <= sum(kind["max_workers"] for kind in workers)
    assert cluster["idle_timeout_minutes"] > 0 and cluster["upscaling_speed"] > 0


def test_workers_may_vanish_and_the_head_may_not(cluster: Config, kind: str) -> None:
    if kind == "local":
        return
    kinds = {name: spec["node_config"] for name, spec in cluster["available_node_types"].items()}
    head = kinds.pop(cluster["head_node_type"])
    spot = ("InstanceMarketOptions", "scheduling")
    assert not any(option in head for option in spot)
    for worker in kinds.values():
        (option,) = (worker[name] for name in spot if name in worker)
        assert "spot" in str(option).lower()


def test_every_mounted_path_exists(cluster: Config) -> None:
    missing = [path for path in cluster["file_mounts"].values() if not (ROOT / path).exists()]
    assert not missing, f"mounts what the project does not have: {missing}"


def test_what_is_installed_was_mounted(cluster: Config) -> None:
    install = next(c for c in cluster["setup_commands"] if "--editable" in c)
    words = shlex.split(install)
    constraints = words[words.index("--constraint") + 1]
    project = words[words.index("--editable") + 1]
    mounts = cluster["file_mounts"]
    assert mounts[constraints] == "constraints.txt"
    needed = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ssdet", "experiments")
    assert [mounts[f"{project}/{name}"] for name in needed] == list(needed)


def test_token_authentication_is_on_everywhere(
    cluster: Config, login: dict[str, str], text: str
) -> None:
    assert login["RAY_AUTH_MODE"] == "token"
    assert any("RAY_AUTH_MODE=token" in command for command in cluster["worker_setup_commands"])
    assert "RAY_AUTH_MODE=disabled" not in text


def test_the_token_is_made_on_the_head_and_is_in_no_file_of_ours(
    cluster: Config, text: str
) -> None:
    made = [command for command in cluster["head_setup_commands"] if "get-auth-token" in command]
    assert len(made) == 1 and made[0].endswith("--generate > /dev/null") and "077" in made[0]
    assert not any("get-auth-token" in command for command in cluster["worker_setup_commands"])
    assert cluster["cluster_synced_files"] == ["~/.ray/auth_token"]
    assert "RAY_AUTH_TOKEN" not in text and not re.search(r"\b[0-9a-f]{32,}\b", text)


def mount_point(cluster: Config) -> str:
    """The shared folder, which is found mounted, or is mounted, before anything else is done."""
    command = next(c for c in cluster["initialization_commands"] if "mountpoint" in c)
    words = shlex.split(command)
    place = words[words.index("-q") + 1]
    assert words[-1] == place
    return place


@pytest.mark.parametrize("variable", ["SSDET_STORE", "SSDET_CACHE"])
def test_stages_and_decoded_videos_lie_on_the_storage_that_every_node_mounts(
    cluster: Config, login: dict[str, str], variable: str
) -> None:
    assert Path(login[variable]).is_relative_to(mount_point(cluster))
    assert any(f"{variable}=" in command for command in cluster["worker_setup_commands"])


def test_folders_of_results_and_data_are_made_there(cluster: Config, login: dict[str, str]) -> None:
    make = next(c for c in cluster["initialization_commands"] if "install -d" in c)
    wanted = {login["SSDET_STORE"], login["SSDET_CACHE"], f"{mount_point(cluster)}/data"}
    assert wanted <= set(shlex.split(make))


def test_only_the_head_points_at_the_cluster(cluster: Config, login: dict[str, str]) -> None:
    assert login["RAY_ADDRESS"] == "auto"
    assert not any("RAY_ADDRESS" in command for command in cluster["worker_setup_commands"])


def test_the_dashboard_is_not_open_to_the_network(cluster: Config) -> None:
    start = next(c for c in cluster["head_start_ray_commands"] if "--head" in c)
    assert "--dashboard-host=127.0.0.1" in start


def instead(first: str) -> str:
    """cluster.yaml with the way that it names in comments beginning with a line like this."""
    lines = AWS.splitlines()
    at = next(i for i, line in enumerate(lines) if line.lstrip().startswith(f"# {first}"))
    while at < len(lines) and lines[at].lstrip().startswith("# "):
        lines[at] = lines[at].replace("# ", "", 1)
        at += 1
    return "\n".join(lines)


def test_gpu_machines_of_google_have_a_disk_that_they_take_in_the_zone() -> None:
    cluster = prepared((ROOT / FILES["gcp"]).read_text())
    (disk,) = cluster["available_node_types"]["gpu"]["node_config"]["disks"]
    zone = cluster["provider"]["availability_zone"]
    assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"


def test_with_an_image_setup_runs_in_it_and_sees_the_mount() -> None:
    cluster = prepared(instead("docker:"))
    validate_config(cluster)
    place = mount_point(cluster)
    assert f"--volume {place}:{place}" in cluster["docker"]["run_options"]
    version = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version is not None and version[1] in cluster["docker"]["image"]


def test_with_the_store_on_s3_nothing_is_mounted_and_workers_have_a_role(tmp_path: Path) -> None:
    config = yaml.safe_load(instead("- printf"))
    cut = next(i for i, c in enumerate(config["initialization_commands"]) if "mkdir" in c)
    config["initialization_commands"] = config["initialization_commands"][:cut]
    cluster: Config = prepare_config(config)
    validate_config(cluster)
    assert "/mnt/ssdet" not in str(cluster["initialization_commands"])
    found = login_of(cluster, tmp_path)
    assert found["SSDET_STORE"].startswith("s3://") and "?region=" in found["SSDET_STORE"]
    assert found["SSDET_CACHE"] == str(tmp_path / "cache")
    assert found["RAY_AUTH_MODE"] == "token" and found["RAY_ADDRESS"] == "auto"
    role = prepared(instead("IamInstanceProfile:"))
    validate_config(role)
    assert role["available_node_types"]["gpu"]["node_config"]["IamInstanceProfile"]["Name"]
