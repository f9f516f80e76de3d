"""cluster.yaml: Ray's own check of it, and what Ray cannot know that ours must hold."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(yaml.safe_load(TEXT))
    return prepared


@pytest.fixture(scope="module")
def login(cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables that a login shell of the head exports, by running the commands that write them."""
    home = tmp_path_factory.mktemp("home")
    writers = [c for c in cluster["head_setup_commands"] if "ssdet_env" in c]
    script = "\n".join([*writers, *writers, ". ~/.bashrc", "env"])  # `ray up` may run again
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (home / ".bashrc").read_text().count("ssdet_env") == 1
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    assert cluster["provider"]["type"] == "aws"


def test_workers_come_and_go_up_to_a_bound(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    workers = [kind for name, kind in kinds.items() if name != cluster["head_node_type"]]
    assert workers and all(kind["min_workers"] == 0 for kind in workers)
    assert 0 < cluster["max_workers"] <= sum(kind["max_workers"] for kind in workers)


def test_every_mounted_path_exists(cluster: dict[str, Any]) -> None:
    missing = [path for path in cluster["file_mounts"].values() if not (ROOT / path).exists()]
    assert not missing, f"cluster.yaml mounts what the project does not have: {missing}"


def test_what_is_installed_was_mounted(cluster: dict[str, Any]) -> None:
    install = next(c for c in cluster["setup_commands"] if "--editable" in c)
    words = shlex.split(install)
    constraints = words[words.index("--constraint") + 1]
    project = words[words.index("--editable") + 1]
    mounts = cluster["file_mounts"]
    assert mounts[constraints] == "constraints.txt"
    needed = ("pyproject.toml", "README.md", "LICENSE", "ssdet", "experiments")
    assert [mounts[f"{project}/{name}"] for name in needed] == list(needed)


def test_token_authentication_is_on_everywhere(
    cluster: dict[str, Any], login: dict[str, str]
) -> None:
    assert login["RAY_AUTH_MODE"] == "token"
    assert any("RAY_AUTH_MODE=token" in command for command in cluster["worker_setup_commands"])
    assert "RAY_AUTH_MODE=disabled" not in TEXT


def test_the_token_is_made_on_the_head_and_is_in_no_file_of_ours(cluster: dict[str, Any]) -> None:
    made = [command for command in cluster["head_setup_commands"] if "get-auth-token" in command]
    assert len(made) == 1 and made[0].endswith("--generate > /dev/null") and "077" in made[0]
    assert not any("get-auth-token" in command for command in cluster["worker_setup_commands"])
    assert cluster["cluster_synced_files"] == ["~/.ray/auth_token"]
    assert "RAY_AUTH_TOKEN" not in TEXT and not re.search(r"\b[0-9a-f]{32,}\b", TEXT)


@pytest.mark.parametrize("variable", ["SSDET_STORE", "SSDET_CACHE"])
def test_stages_and_decoded_videos_lie_on_the_storage_that_every_node_mounts(
    cluster: dict[str, Any], login: dict[str, str], variable: str
) -> None:
    mount = next(c for c in cluster["initialization_commands"] if " mount " in c)
    assert Path(login[variable]).is_relative_to(shlex.split(mount)[-1])
    assert any(f"{variable}=" in command for command in cluster["worker_setup_commands"])


def test_only_the_head_points_at_the_cluster(
    cluster: dict[str, Any], login: dict[str, str]
) -> None:
    assert login["RAY_ADDRESS"] == "auto"
    assert not any("RAY_ADDRESS" in command for command in cluster["worker_setup_commands"])


def test_the_dashboard_is_not_open_to_the_network(cluster: dict[str, Any]) -> None:
    start = next(c for c in cluster["head_start_ray_commands"] if "--head" in c)
    assert "--dashboard-host=127.0.0.1" in start
