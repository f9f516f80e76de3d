"""Fixtures of all tests; those of one kind are in `fixtures`."""

import importlib.util
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest_plugins = ["fixtures.finished_study", "fixtures.studies", "fixtures.videos"]

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


S3_KEYS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing") | {
    "AWS_EC2_METADATA_DISABLED": "true"
}
"""What the server of these tests is asked with."""


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a very small Moving Shapes, in a cache of its own."""
    from ssdet.data.datasets.moving_shapes import prepare
    from ssdet.studies.presets import preset

    cache = tmp_path_factory.mktemp("cache")
    os.environ["SSDET_CACHE"] = str(cache)
    return prepare(preset("smoke").shapes, processes=1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    from ssdet.execution.session import connect

    os.environ |= S3_KEYS  # its processes inherit them, whether a server was there before or not
    with connect("local"):
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of a server with S3's API, for all tests that need one."""
    from moto.server import ThreadedMotoServer

    os.environ |= S3_KEYS
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def new_bucket(s3_server: tuple[str, int]) -> Iterator[Callable[[], Any]]:
    """Makes empty buckets, each behind a proxy that breaks what it is told to (tests/s3.py)."""
    spec = importlib.util.spec_from_file_location("s3", Path(__file__).parent / "s3.py")
    assert spec is not None and spec.loader is not None
    s3 = sys.modules["s3"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(s3)
    made: list[Any] = []

    def new() -> Any:
        made.append(s3.Bucket(f"bucket-{uuid.uuid4().hex[:12]}", s3_server))
        made[-1].client().create_bucket(Bucket=made[-1].name)
        return made[-1]

    yield new
    for bucket in made:
        bucket.close()


@pytest.fixture
def bucket(new_bucket: Callable[[], Any]) -> Any:
    """An empty bucket."""
    return new_bucket()
