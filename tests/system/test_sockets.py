"""Folders for sockets where TMPDIR is too long, as on clusters that set it for every job."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import ssdet.cli.extract  # noqa: F401
from ssdet.cli.__main__ import main
from ssdet.execution.doctor.findings import WAYS_OUT
from ssdet.execution.doctor.node import attempt
from ssdet.execution.doctor.node import sockets as doctor_sockets
from ssdet.execution.session import folder_for_ray
from ssdet.system import sockets

ROOT = Path(__file__).resolve().parents[2]


def folder_of(length: int, root: Path) -> Path:
    """A folder whose path has so many bytes."""
    path = root / ("x" * (length - len(os.fsencode(root)) - 1))
    path.mkdir()
    assert len(os.fsencode(path)) == length
    return path


@pytest.fixture
def short():
    """A folder of few bytes, where pytest's own may be long."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        yield Path(folder)


def binds(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(path)
        except OSError:
            return False
    return True


def test_the_limit_is_the_systems(short) -> None:
    assert binds(str(short / "a").ljust(sockets.MAX_PATH_BYTES, "b"))
    assert not binds(str(short / "a").ljust(sockets.MAX_PATH_BYTES + 1, "b"))


def test_a_short_folder_is_left_to_ray(short, monkeypatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder_of(sockets.MAX_PATH_BYTES - sockets.RAY_BYTES, short)))
    assert sockets.ray_folder() is None
    monkeypatch.delenv("TMPDIR")
    assert sockets.ray_folder() is None


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_is_replaced_by_a_private_one(short, monkeypatch, name) -> None:
    monkeypatch.setattr(sockets, "SHORT", short)
    monkeypatch.setenv(name, "/" + "ä" * 30)
    folder = sockets.ray_folder()
    assert folder is not None and folder == sockets.ray_folder()
    assert folder.parent.parent == short and folder.parent.stat().st_mode & 0o777 == 0o700
    assert str(folder) in doctor_sockets()
    folder.parent.chmod(0o777)
    with pytest.raises(ValueError, match=rf"^{name}=/ä+ is too long .* set RAY_TMPDIR to .* 32 by"):
        sockets.ray_folder()
    assert (
        "set RAY_TMPDIR" in attempt(doctor_sockets)["error"] and "RAY_TMPDIR" in WAYS_OUT["sockets"]
    )


def test_a_link_in_its_place_is_refused(short, monkeypatch) -> None:
    monkeypatch.setattr(sockets, "SHORT", short)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 90)
    (short / "elsewhere").mkdir(mode=0o700)
    (short / f"ssdet-{os.getuid()}").symlink_to(short / "elsewhere")
    with pytest.raises(ValueError, match="not a folder of this user alone"):
        sockets.ray_folder()


@pytest.mark.parametrize("words", [
    ["run", "experiments/ablate_cutmix.py"],
    ["search", "tune", "experiments/ablate_cutmix.py"],
    ["run", "experiments/ablate_cutmix.py", "--address", "local"],
    ["extract", "a.json", "--videos", "v", "--format", "segments", "--checkpoint", "x.pt", "--ray"],
])  # fmt: skip
def test_commands_say_so_before_they_spend_time(
    words, short, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sockets, "SHORT", short / "absent")
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 90)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for module in ("experiment", "extract"):
        monkeypatch.setattr(sys.modules[f"ssdet.cli.{module}"], "data_of", pytest.fail)
    with pytest.raises(SystemExit) as end:
        sys.exit(main([*words, "--store", str(tmp_path)]))
    assert end.value.code == 2 and "set RAY_TMPDIR" in capsys.readouterr().err


def test_a_cluster_that_is_joined_needs_no_folder(monkeypatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 90)
    monkeypatch.setattr(sockets, "SHORT", Path("/absent"))
    assert folder_for_ray("10.0.0.1:6379") is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert folder_for_ray() is None


LOADED = """
import tempfile, torch
from ssdet.data.loading import batches as loading
class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, place): return torch.full((3,), place)
loading.collate = torch.stack
batches = list(loading.load(Numbers(), [[0, 1], [2, 3]], 1))
print(torch.cat(batches)[:, 0].tolist(), tempfile.gettempdir())
"""
OWN_RAY = """
import os, ray
from ssdet.execution.session import connect
before = os.environ["TMPDIR"]
with connect() as session:
    print(session.folder, ray.get(ray.remote(lambda: 6 * 7).remote()))
assert os.environ["TMPDIR"] == before
"""


def run(code: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    call = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "length", [sockets.MAX_PATH_BYTES - sockets.MULTIPROCESSING_BYTES, 76, 150]
)
def test_workers_send_tensors_whatever_the_folder(short, length) -> None:
    folder = folder_of(length, short)
    assert run(LOADED, folder) == f"[0, 1, 2, 3] {folder}"
    assert not list(folder.iterdir())  # and leave nothing


@pytest.mark.parametrize("length", [sockets.MAX_PATH_BYTES - sockets.RAY_BYTES, 150])
def test_ray_starts_whatever_the_folder(short, length) -> None:
    folder = folder_of(length, short)
    used = "None" if length < 100 else f"/tmp/ssdet-{os.getuid()}/ray"
    assert run(OWN_RAY, folder) == f"{used} 42"
