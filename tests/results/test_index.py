"""The index: always what the folders hold, whatever happens to its file."""

import errno
import json
import os
import threading

import pytest

from ssdet.results import index
from ssdet.results.index import NAME, load


def number(root) -> int:
    return len(load(root).entries)


def test_it_holds_what_finished_stages_hold(made, finished) -> None:
    found = load(finished.store.root)
    assert not found.faults and found.entries.keys() == made.plan.stages.keys()
    stage = made.plan.of("view")[1].predict
    entry = found.entries[stage.id]
    assert entry.identity == json.loads(json.dumps(stage.identity))
    score = finished.store.result(stage.id)["scores"]["test"]
    assert entry.scores["test"]["value"] == score["value"]
    assert entry.scores["test"]["videos_expected"] == 8
    assert entry.provenance["host"] == "alices-laptop"
    assert entry.finished == entry.provenance["started"] + 2


def test_nothing_is_read_twice(finished, monkeypatch) -> None:
    first = load(finished.store.root)
    stamp = (finished.store.root / NAME).stat().st_mtime_ns
    monkeypatch.setattr(index, "_entry", lambda *_: pytest.fail("read a folder again"))
    assert load(finished.store.root) == first
    assert (finished.store.root / NAME).stat().st_mtime_ns == stamp


def test_it_follows_the_folders(finished) -> None:
    store, name = finished.store, finished.id("view")
    every = number(store.root)
    result = store.result(name)
    result["scores"]["test"]["value"] = 0.5
    store.finish(name, result)
    assert load(store.root).entries[name].scores["test"]["value"] == 0.5
    store.remove(name)
    assert number(store.root) == every - 1
    (store.folder(finished.id("cls")) / "DONE").unlink()
    assert number(store.root) == every - 2


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "bits": lambda data: data.replace(b'"value": 0.', b'"value": 1.', 1),
    "other version": lambda data: data.replace(b"ssdet-index/1", b"ssdet-index/0"),
    "binary": lambda data: bytes(range(256)),
    "fields": lambda data: b"ssdet-index/1\n00000000 {}\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_rebuilt(finished, damage) -> None:
    path = finished.store.root / NAME
    before = load(finished.store.root)
    path.write_bytes(damage(path.read_bytes()))
    assert load(finished.store.root) == before
    assert index._read(path) == before.entries


def test_a_damaged_stage_is_named_and_the_others_stay(finished) -> None:
    store = finished.store
    every = number(store.root)
    bad = [finished.id("cls"), finished.id("view"), finished.id("fresh")]
    (store.folder(bad[0]) / "DONE").write_text("{")
    (store.folder(bad[1]) / "recipe.json").unlink()
    (store.folder(bad[1]) / "DONE").write_text('{"scores": {}}')
    (store.folder(bad[2]) / "DONE").write_text('{"scores": 3}')
    found = load(store.root)
    assert found.faults.keys() == {*bad} and len(found.entries) == every - 3
    assert all("remove the folder" in why for why in found.faults.values())


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_store_that_cannot_be_written_is_read(finished, monkeypatch, code) -> None:
    def refused(*_):
        raise OSError(code, os.strerror(code))

    (finished.store.root / NAME).unlink(missing_ok=True)
    monkeypatch.setattr(os, "replace", refused)
    assert number(finished.store.root) == len(finished.plan.stages)
    assert not list(finished.store.root.glob(f"{NAME}*"))


def test_readers_and_writers_do_not_meet_half_a_file(finished) -> None:
    store = finished.store
    names = sorted(finished.plan.stages)[:6]
    stop, errors = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found = load(store.root)
            if found.faults or len(found.entries) != len(finished.plan.stages):
                errors.append(found.faults or len(found.entries))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for round_ in range(10):
        for name in names:
            store.finish(name, {**store.result(name), "round": round_})
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert load(store.root).entries.keys() == finished.plan.stages.keys()
