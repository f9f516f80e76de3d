"""What tests of searches and of stores far away share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.data import remote
from ssdet.studies import Arm, Store, Study, classification, lease, pointer, preset
from ssdet.studies.data import moving_shapes
from ssdet.studies.identity import Stage
from ssdet.studies.search import Search


@pytest.fixture(scope="session")
def smoke(shapes: Path) -> Callable[..., Search]:
    """Searches over the base and data of the preset `smoke`."""
    chosen = preset("smoke")
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)

    def search(space: Any, **fields: Any) -> Search:
        name = fields.pop("name", "test")
        return Search(name, space, base=chosen.experiment, data=data, **fields)

    return search


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr(remote, "DELAYS", ())
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    monkeypatch.setattr(lease, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(pointer.Pusher, "LOOK", 0.02)


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Go to another machine: on("b")."""

    def move(name: str) -> None:
        monkeypatch.setenv("SSDET_CACHE", str(tmp_path / name))

    move("a")
    return move


@pytest.fixture(scope="session")
def study(shapes) -> Study:
    study = resolve(Study("afar", (Arm("cls", classification),)), Options(preset="smoke", seeds=1))
    return replace(study, data=replace(study.data, cache_folder=str(shapes.parent)))


@pytest.fixture(scope="session")
def pretraining(study) -> Stage:
    recipe = study.base.pretrain
    return Stage("pretrain", replace(recipe, optim=replace(recipe.optim, steps=8)), (), "test")
