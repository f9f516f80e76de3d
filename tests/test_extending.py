"""docs/extending.md: its files, installed as they stand, keep their contracts and make a study."""

import csv
import importlib.util
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import ssdet.augment.registry
import ssdet.evaluation.protocols.registry  # parts whose names are forgotten afterwards
from ssdet import plugins
from ssdet.data import load_manifest
from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation import Material, PredictionSet, score_all
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.models import create
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import Data, Source, Store, plan, preset

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = {m[1]: m[2] for m in re.finditer(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL)}
PROJECT = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
TESTS = re.findall(r"^def (test_\w+)", FILES["tests/test_acme.py"], re.MULTILINE)


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Iterator[Path]:
    """Folder of the page's files, its project installed, with videos for its data set."""
    folder = tmp_path_factory.mktemp("acme")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    name, version = PROJECT["project"]["name"], PROJECT["project"]["version"]
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in PROJECT["project"]["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    record(load_manifest("moving_shapes", shapes, split="downstream"), folder / "tests")
    with pytest.MonkeyPatch.context() as patch, plugins.restored():
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder


def record(manifest: Manifest, folder: Path) -> None:
    """Write the videos and actions of a data set as the page's format has them."""
    (folder / "videos").mkdir()
    with open(folder / "clock.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "split", "duration", "class", "start", "end"])
        for video in manifest.videos:
            shutil.copy(video.path, folder / "videos" / f"{video.id}{Path(video.path).suffix}")
            for action in video.segments:
                kind = ("tick", "tock")[action.label % 2]
                row = (video.id, video.split, video.duration, kind, action.start, action.end)
                writer.writerow(row)


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_a_file_of_each_kind() -> None:
    listed = PROJECT["project"]["entry-points"][plugins.GROUP]
    modules = {name.removesuffix(".py").replace("/", ".") for name in FILES if "acme/" in name}
    assert modules == {*listed.values()} and len(modules) == len(TESTS) == 4


@pytest.mark.parametrize("name", TESTS)
def test_its_tests_pass(acme: Path, name: str) -> None:
    getattr(loaded(acme / "tests" / "test_acme.py"), name)()


def test_its_study_runs_from_pretraining_to_the_protocol(acme: Path, shapes: Path) -> None:
    """With every part of it: network and augmentation train, data set and protocol score."""
    module, chosen = loaded(acme / "ablate_switch.py"), preset("smoke")
    upstream = Source("kinetics", str(shapes / "upstream" / "annotations.csv"),
                      str(shapes / "upstream" / "videos"))  # fmt: skip
    source = Source("clock_csv", str(acme / "tests" / "clock.csv"), str(acme / "tests" / "videos"))
    data = Data(upstream, source, chosen.decode_size, cache=False, limit=4)
    study = replace(module.STUDY, seeds=(0,), base=chosen.experiment, data=data)
    planned, store = plan(study), Store.open(acme / "runs")
    for stage in planned.stages.values():
        run_stage(Job(stage, os.fspath(acme / "runs"), data))
    (run,) = planned.of("switch")
    predictions = PredictionSet.open(store.folder(run.predict.id) / "predictions" / "test")
    expected = data.split("downstream", "test")
    readings, refused = score_all(
        Material(frame_labels(expected, predictions), predictions, expected), ["frame_top1"]
    )
    assert not refused and readings[0].videos_expected == len(expected.videos) == 4
    assert 0 <= (readings[0].value or 0) <= 1 and readings[0].frames > 0
    assert plugins.versions() == {"acme": "0.1.0"}


def test_a_version_among_the_options_names_another_stage(acme: Path, shapes: Path) -> None:
    module, chosen = loaded(acme / "ablate_switch.py"), preset("smoke")
    source = Source("moving_shapes", str(shapes))
    study = replace(module.STUDY, seeds=(0,), base=chosen.experiment, data=Data(source, source))
    now = {*plan(study).stages}
    assert {*plan(study).stages} == now
    module.MODEL = replace(module.MODEL, options={**module.MODEL.options, "version": 3})
    assert now.isdisjoint(plan(study).stages)
    with pytest.raises(ValueError, match="version 1, this is 2"):
        create("frame_net", 5, version=1)
    with pytest.raises(TypeError, match="version"):
        create("frame_net", 5)


def test_what_it_says_of_the_four_modules_holds() -> None:
    for name in re.findall(r"`(ssdet\.\w+\.registry)\.register`", PAGE):
        module = importlib.import_module(name)
        assert module.register and module.available("*")
    assert ssdet.augment.registry.available() and ssdet.evaluation.protocols.registry.available()
