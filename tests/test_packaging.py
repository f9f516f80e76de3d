"""The wheel: what it contains, and that its experiments run by name outside of a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import ssdet

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("ssdet", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
COMMANDS = """
from ssdet.cli.__main__ import main
main(["run"])
main(["run", "ablate_cutmix", "--dry-run", "--preset", "smoke", "--arms", "view", "--seeds", "1"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the wheel of this checkout is unpacked into; built from a copy, in place."""
    copy, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    command = [sys.executable, "-c", BUILD]
    subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def files(folder: Path) -> set[str]:
    """Paths of the files in a folder that belong to the package, relative to it."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_the_package_and_the_experiments(installed) -> None:
    experiments = {f"experiments/{name}" for name in files(ROOT / "experiments")}
    assert files(installed / "ssdet") == files(ROOT / "ssdet") | experiments
    data = {"py.typed", *(f"results/report/{n}" for n in ("page.html.j2", "page.css", "viewer.js"))}
    assert data <= files(installed / "ssdet")
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"ssdet"}


def test_the_wheel_names_its_version_licence_and_command(installed) -> None:
    (info,) = installed.glob("*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    assert metadata["Version"] == ssdet.__version__ and metadata["License-Expression"] == "MIT"
    assert "ssdet = ssdet.cli.__main__:entry" in (info / "entry_points.txt").read_text()
    assert (info / "licenses" / "LICENSE").is_file()


def test_an_experiment_is_listed_and_planned_outside_of_a_checkout(
    installed, shapes, tmp_path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"experiments in {installed / 'ssdet' / 'experiments'}:" in done.stdout
    assert "real_videos" in done.stdout and "ablate_cutmix: 2 arms × 1 seeds" in done.stdout
    assert "MB of disk" in done.stdout
