"""The store: locks, damage, and names that are none."""

import multiprocessing
import os
import signal
import time

import pytest

from ssdet.store.base import Store

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


@pytest.mark.parametrize("uri", ["file://elsewhere/runs", "http:/runs"])
def test_what_is_no_place_is_refused_with_a_way_out(uri) -> None:
    with pytest.raises(ValueError, match="mount|such as s3://"):
        Store.open(uri)


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


def test_a_lock_that_is_held_is_not_waited_for_unless_asked(tmp_path) -> None:
    store = Store.open(tmp_path)
    with store.lock(STAGE), pytest.raises(BlockingIOError), store.lock(STAGE, wait=False):
        pass
    with store.lock(STAGE, wait=False):
        pass


def test_a_stage_is_removed_whole_and_only_at_rest(tmp_path) -> None:
    store = Store.open(tmp_path)
    (store.folder(STAGE) / "checkpoints").mkdir(parents=True)
    store.finish(STAGE, {})
    with store.lock(STAGE), pytest.raises(BlockingIOError):
        store.remove(STAGE)
    assert store.result(STAGE) == {}
    store.remove(STAGE)
    assert not list((tmp_path / "stages").iterdir()) and not list((tmp_path / "trash").iterdir())


def hold_and_remove(root, ready, start, order) -> None:
    """Hold the stage's lock for a moment, noting when, and remove it."""
    store = Store.open(root)
    ready.release()
    start.wait(60)
    for _ in range(20):
        with store.lock(STAGE):
            order.put((time.monotonic(), "in"))
            time.sleep(0.002)
            order.put((time.monotonic(), "out"))
            store.folder(STAGE).with_suffix(".lock").unlink(missing_ok=True)


def test_who_waited_for_a_lock_that_was_removed_takes_the_new_one(tmp_path) -> None:
    Store.open(tmp_path)
    context = multiprocessing.get_context("spawn")
    ready, start, order = context.Semaphore(0), context.Event(), context.Queue()
    arguments = (tmp_path, ready, start, order)
    processes = [context.Process(target=hold_and_remove, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=120)
    start.set()
    events = sorted(order.get(timeout=60) for _ in range(120))
    for process in processes:
        process.join()
    assert [what for _, what in events] == ["in", "out"] * 60


def work(root, ready, start, results) -> None:
    """Run a stage that takes a moment and counts how often it is run."""
    from ssdet.stages import kinds as stages
    from ssdet.studies.graph.identity import EnsembleRecipe, Stage

    def slow(job, report):
        with open(job.folder / "ran", "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return {"by": os.getpid()}

    stages.KINDS["ensemble"] = slow
    job = stages.Job(Stage("ensemble", EnsembleRecipe(), (), "none"), str(root), None)
    ready.release()
    start.wait(60)
    results.put((os.getpid(), stages.run_stage(job), str(job.folder)))


def test_two_processes_run_a_stage_once(tmp_path) -> None:
    Store.open(tmp_path)
    context = multiprocessing.get_context("spawn")
    ready, start, results = context.Semaphore(0), context.Event(), context.Queue()
    processes = [
        context.Process(target=work, args=(tmp_path, ready, start, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=120)
    start.set()
    (one, first, folder), (other, second, _) = results.get(timeout=60), results.get(timeout=60)
    assert one != other and first == second and first["by"] in (one, other)
    with open(f"{folder}/ran") as file:
        assert file.read().split() == [str(first["by"])]


def test_estimates_and_provenance_are_whole_or_refused(tmp_path) -> None:
    store = Store.open(tmp_path)
    assert store.estimate("abc") is None and store.provenance("predict-0123456789abcdef") is None
    store.keep_estimate("abc", {"stages": 3})
    assert store.estimate("abc") == {"stages": 3}
    for damage in ('{"stages":', "[1]"):
        (tmp_path / "estimates" / "abc.json").write_text(damage)
        with pytest.raises(ValueError, match="remove it"):
            store.estimate("abc")
