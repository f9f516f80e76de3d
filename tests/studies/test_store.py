"""The store: locks, damage, and names that are none."""

import multiprocessing
import os
import signal
import time

import pytest

from ssdet.studies.store import Store

STAGE = "pretrain-0123456789abcdef"


def test_result_appears_with_finish(tmp_path) -> None:
    store = Store.open(tmp_path)
    assert store.result(STAGE) is None
    store.folder(STAGE).mkdir()
    assert store.result(STAGE) is None
    store.finish(STAGE, {"loss": 0.5})
    assert Store.open(f"file://{tmp_path}").result(STAGE) == {"loss": 0.5}


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_damaged_result_is_an_error_with_a_way_out(tmp_path, content) -> None:
    store = Store.open(tmp_path)
    store.folder(STAGE).mkdir()
    (store.folder(STAGE) / "DONE").write_text(content)
    with pytest.raises(ValueError, match="remove the folder"):
        store.result(STAGE)


@pytest.mark.parametrize("name", ["../../etc", "pretrain-xyz", "", "pretrain-0123456789abcdef/.."])
def test_only_stage_ids_are_folders(tmp_path, name) -> None:
    with pytest.raises(ValueError, match="no stage id"):
        Store.open(tmp_path).folder(name)


def test_a_bucket_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match="mount"):
        Store.open("s3://bucket/runs")


def hold(root, ready) -> None:
    with Store.open(root).lock(STAGE):
        ready.set()
        time.sleep(60)


def test_a_dead_process_holds_no_lock(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Store.open(tmp_path).lock(STAGE):
        pass
