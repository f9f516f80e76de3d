"""What tests of searches share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssdet.studies import Store, preset
from ssdet.studies.data import moving_shapes
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
