"""Fixtures that every test may use."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores are shared with Ray workers; one thread a process also keeps sums in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real annotations and videos; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SSDET_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder} (set SSDET_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, np.ndarray]]:
    """Loader of reference outputs: golden("paper_vf") -> arrays by name."""
    return lambda name: np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a very small Moving Shapes, in a cache of its own."""
    from ssdet.data.moving_shapes import prepare
    from ssdet.studies.presets import preset

    cache = tmp_path_factory.mktemp("cache")
    os.environ["SSDET_CACHE"] = str(cache)
    return prepare(preset("smoke").shapes, processes=1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    from ssdet.studies.session import connect

    with connect("local"):
        yield
