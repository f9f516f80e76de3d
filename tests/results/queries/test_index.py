"""The index: always what the folders hold, whatever happens to its file."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from ssdet import results
from ssdet.results.cleaning import collect
from ssdet.results.queries import index, index_file
from ssdet.results.queries.index import load
from ssdet.results.queries.index_file import PATTERN
from ssdet.results.queries.stage_files import TICK
from ssdet.studies import Table, plan
from ssdet.studies.graph.record import write_record
from ssdet.system.safe_files import write_json

ROOT = Path(__file__).resolve().parents[3]


def number(root) -> int:
    return len(load(root).finished)


def files(root) -> list:
    return sorted(root.glob(PATTERN))


def view(found) -> tuple:
    """Rows of runs, ids of finished stages, faults and records."""
    records = [(path, record._replace(stamp=None)) for path, record in found.records.items()]
    return found.runs.to_pylist(), found.finished, found.faults, records


def from_nothing(root) -> tuple:
    """The same of an index that is made without the file of an earlier one."""
    for path in files(root):
        path.unlink()
    return view(load(root))


def settled(root) -> None:
    """Wait until no file is so young that it is read again, and read them."""
    time.sleep(2 * TICK / 1e9)
    load(root)


def reads_nothing(monkeypatch) -> None:
    def nothing(folder, stamps):
        assert not stamps
        return {}, {}

    monkeypatch.setattr(index, "read_stages", nothing)
    monkeypatch.setattr(index, "read_plans", nothing)


def test_it_holds_what_finished_stages_hold(made, finished) -> None:
    found = load(finished.store.root)
    assert not found.faults and {*found.finished} == made.plan.stages.keys()
    stage = made.plan.of("view")[1].predict
    summary = found.lineage.summaries[stage.id]
    score = finished.store.result(stage.id)["scores"]["test"]
    assert summary.scores["test"]["value"] == score["value"]
    assert summary.scores["test"]["videos_expected"] == 8
    assert summary.host == "alices-laptop" and summary.seconds == 2.0
    before = found.lineage.summaries[summary.parents[0]]
    assert before.training["seed"] == stage.parents[0].recipe.seed
    assert found.chain(stage.id) == (stage.id, stage.parents[0].id, stage.parents[0].parents[0].id)
    record = next(iter(found.records.values()))
    assert record.name == "ablate_cutmix"


def test_nothing_is_read_twice(finished, monkeypatch) -> None:
    root = finished.store.root
    settled(root)
    first, written = load(root), files(root)
    reads_nothing(monkeypatch)
    assert view(load(root)) == view(first)
    assert files(root) == written and len(written) == 1


def test_what_was_just_written_is_read_again(finished) -> None:
    """Two writes within one tick of the clock may leave the same times and size."""
    root, name = finished.store.root, finished.id("view")
    done = finished.store.folder(name) / "DONE"
    text = done.read_text()
    for digit in range(10):
        result = json.loads(text)
        result["scores"]["test"]["value"] = 0.5 + digit / 16
        done.write_text(f"{json.dumps(result):<20000}")
        row = load(root).lineage.summaries[name]
        assert row.scores["test"]["value"] == 0.5 + digit / 16


def test_it_follows_the_folders(finished) -> None:
    store, name = finished.store, finished.id("view")
    every = number(store.root)
    result = store.result(name)
    result["scores"]["test"]["value"] = 0.5
    write_json(store.folder(name) / "DONE", result)
    opened = results.open(store.root)
    assert opened.run(name).row["dense_map"] == 0.5
    store.remove(name)
    assert number(store.root) == every - 1
    with pytest.raises(ValueError, match="no finished run"):
        results.open(store.root).run(name)
    (store.folder(finished.id("cls")) / "DONE").unlink()
    assert number(store.root) == every - 2
    assert results.open(store.root).run(finished.id("cls", 1)).row["dense_map"] is not None


def test_a_store_may_be_emptied_and_filled(finished) -> None:
    store = finished.store
    full = view(load(store.root))
    shutil.copytree(store.root, store.root.parent / "copy")
    for folder in ("stages", "studies"):
        shutil.rmtree(store.root / folder)
        (store.root / folder).mkdir()
    for _ in range(2):
        opened = results.open(store.root)
        assert opened.runs.empty and not opened.rows and not opened.stages and not opened.records
    for folder in ("stages", "studies"):
        shutil.rmtree(store.root / folder)
        shutil.copytree(store.root.parent / "copy" / folder, store.root / folder)
    assert view(load(store.root)) == full


def test_an_edit_that_keeps_size_and_time_is_noticed(finished) -> None:
    root, name = finished.store.root, finished.id("view")
    done = finished.store.folder(name) / "DONE"
    settled(root)
    before, times = done.read_text(), done.stat()
    changed = before.replace('"value": 0.', '"value": 1.', 1)
    assert len(changed) == len(before) and changed != before
    done.write_text(changed)
    os.utime(done, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = load(root).lineage.summaries[name].scores
    assert found["val"]["value"] == json.loads(changed)["scores"]["val"]["value"] > 1


def test_a_run_is_described_while_a_folder_or_record_has_its_pretraining(finished) -> None:
    store, name = finished.store, finished.id("view")
    stage = finished.plan.of("view")[0].predict
    start = stage.parents[0].parents[0]
    whole = results.open(store.root).run(name).row
    store.remove(start.id)
    row = results.open(store.root).run(name).row
    assert row == {**whole, "seconds": 4.0}  # of finetune and predict
    for path in store.studies.glob("*/*.json"):
        path.unlink()
    row = results.open(store.root).run(name).row
    assert row["augment"] is None and row["pretrain_steps"] == 0 and row["studies"] == ()
    assert row["finetune_steps"] == whole["finetune_steps"]
    write_record(store, finished.plan)
    assert results.open(store.root).run(name).row == {**whole, "seconds": 4.0}


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a bit": lambda data: data[:700] + bytes([data[700] ^ 4]) + data[701:],
    "a bit at the end": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "binary": lambda data: bytes(range(256)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_rebuilt_and_named(finished, damage) -> None:
    root = finished.store.root
    settled(root)
    before = view(load(root))
    (path,) = files(root)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"{path.name} is damaged.*made again"):
        assert len(results.open(root).runs) == 21
    found = load(root)
    assert view(found) == before and not found.note


def test_a_file_of_another_version_is_replaced(finished, monkeypatch) -> None:
    root = finished.store.root
    with monkeypatch.context() as patched:
        patched.setattr(index_file, "FORMAT", "ssdet-index/1")
        before = view(load(root))
    old = files(root)
    found = load(root)
    assert view(found) == before and not found.note
    assert files(root) != old and len(files(root)) == 1


def test_a_damaged_stage_is_named_and_the_others_stay(finished) -> None:
    store = finished.store
    every = number(store.root)
    bad = [finished.id(*run) for run in (("cls",), ("view",), ("fresh",), ("cls", 1), ("view", 1))]
    (store.folder(bad[0]) / "DONE").write_text("{")
    recipe = store.folder(bad[1]) / "recipe.json"
    recipe.rename(recipe.with_name("away"))
    (store.folder(bad[1]) / "DONE").write_text('{"scores": {}}')
    (store.folder(bad[2]) / "DONE").write_text('{"scores": 3}')
    (store.folder(bad[3]) / "DONE").write_text('{"scores": {"test": {"value": "high"}}}')
    (store.folder(bad[4]) / "DONE").write_text('{"scores": {"test": {"protocol": "\\ud800"}}}')
    for _ in range(2):
        found = load(store.root)
        assert found.faults.keys() == {*bad} and len(found.finished) == every - 5
        assert all("remove the folder" in why for why in found.faults.values())
    recipe.with_name("away").rename(recipe)  # its DONE stays as it is
    assert load(store.root).faults.keys() == {*bad} - {bad[1]}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_store_that_cannot_be_written_is_read(finished, monkeypatch, code) -> None:
    def refused(*_):
        raise OSError(code, os.strerror(code))

    for path in files(finished.store.root):
        path.unlink()
    monkeypatch.setattr(os, "replace", refused)
    for _ in range(2):
        assert number(finished.store.root) == len(finished.plan.stages)
    assert not list(finished.store.root.glob("index*"))


def test_what_a_killed_writer_leaves_is_no_index(finished, monkeypatch) -> None:
    root = finished.store.root
    before = view(load(root))
    (finished.store.folder(finished.id("cls")) / "DONE").unlink()

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # a kill leaves no time to clean up
        with pytest.raises(SystemExit):
            load(root)
    assert len(list(root.glob("index*.partial"))) == 1
    found = view(load(root))
    assert found != before and found == from_nothing(root)
    monkeypatch.setattr("ssdet.results.cleaning.STALE", -1.0)
    collect(finished.store)
    assert not list(root.glob("*.partial")) and len(files(root)) == 1


def test_readers_and_writers_do_not_meet_half_a_file(finished) -> None:
    store = finished.store
    names = sorted(finished.plan.stages)[:6]
    stop, errors = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found = load(store.root)
            if found.faults or found.note or len(found.finished) != len(finished.plan.stages):
                errors.append((found.faults, found.note, len(found.finished)))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for round_ in range(10):
        for name in names:
            write_json(store.folder(name) / "DONE", {**store.result(name), "round": round_})
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert view(load(store.root)) == from_nothing(store.root)


UPDATER = """
import sys
from pathlib import Path
from ssdet.results.queries.index import load
for _ in range(30):
    load(Path(sys.argv[1]))
"""


def test_processes_that_update_at_once_lose_nothing(finished) -> None:
    store, name = finished.store, finished.id("view")
    command = [sys.executable, "-c", UPDATER, store.root]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    result = store.result(name)
    for value in range(40):
        result["scores"]["test"]["value"] = value / 64
        write_json(store.folder(name) / "DONE", result)
        assert load(store.root).lineage.summaries[name].scores["test"]["value"] == value / 64
    assert [writer.wait() for writer in writers] == [0, 0]
    assert view(load(store.root)) == from_nothing(store.root)


def changes(made, finished, draws):
    """Ways to change a store, each of a stage or record that is drawn."""
    store = finished.store
    names = sorted(made.plan.stages)

    def remove():
        shutil.rmtree(store.folder(draws.choice(names)), ignore_errors=True)

    def restore():
        name = draws.choice(names)
        shutil.copytree(made.store.folder(name), store.folder(name), dirs_exist_ok=True)

    def another_score():
        path = store.folder(draws.choice(names)) / "DONE"
        if path.is_file() and "scores" in (result := json.loads(path.read_text())):
            for score in result["scores"].values():
                score["value"] = draws.random()
            path.write_text(json.dumps(result))

    def unfinished():
        (store.folder(draws.choice(names)) / "DONE").unlink(missing_ok=True)

    def damage():
        if store.folder(name := draws.choice(names)).is_dir():
            (store.folder(name) / "DONE").write_text("{")

    def forget_study():
        if paths := sorted(store.studies.glob("*/*.json")):
            draws.choice(paths).unlink()

    def record_study():
        arms = tuple(draws.sample(made.plan.study.arms[:3], draws.randint(1, 3)))
        study = replace(made.plan.study, name=draws.choice("abc"), arms=arms, table=Table())
        write_record(store, plan(study))

    def record_all():
        write_record(store, made.plan)

    return [
        remove, restore, restore, another_score, unfinished, damage, forget_study, record_study,
        record_all,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_an_update_gives_what_an_index_from_nothing_gives(made, finished, seed) -> None:
    draws, root = random.Random(seed), finished.store.root
    ways = changes(made, finished, draws)
    for _ in range(25):
        done = [draws.choice(ways) for _ in range(draws.randint(1, 3))]
        for change in done:
            change()
        updated = view(load(root))
        kept = files(root)
        copies = {path: path.read_bytes() for path in kept}
        assert updated == from_nothing(root), [change.__name__ for change in done]
        for path in files(root):
            path.unlink()
        for path, data in copies.items():
            path.write_bytes(data)


def test_rows_are_the_same_from_file_and_from_memory(finished) -> None:
    root = finished.store.root
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = results.open(root)
        stored = results.open(root)
    assert fresh.rows == stored.rows
    assert fresh.runs.equals(stored.runs)
    assert [fresh.run(name).row for name in fresh.rows] == list(fresh.rows.values())
