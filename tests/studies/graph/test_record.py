"""Records of studies: written before anything runs, read without the study's code."""

import json
import sys
import time
from dataclasses import replace

import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.studies import Arm, Store, Study, Table, augmented, classification, plan, run, scratch
from ssdet.studies.graph.identity import stage_id
from ssdet.studies.graph.record import read_record, read_records, record_of, write_record

ARMS = (
    Arm("cls", classification, "classification"),
    Arm("view", augmented("cutmix", window="view")),
    Arm("fresh", scratch),
    Arm("pair", members=("cls", "view")),
    Arm("control", seeds_of="view", size=2),
)
STUDY = Study("kept", ARMS, table=Table("Kept", "cls", {"view": 18.99}, "Table 1."))


@pytest.fixture
def planned(shapes):
    return plan(resolve(STUDY, Options(preset="smoke", seeds=2)))


def test_the_plan_comes_back(planned, tmp_path) -> None:
    path = write_record(Store.open(tmp_path), planned)
    again = read_record(path).plan()
    assert list(again.stages) == list(planned.stages)
    assert {k: stage.recipe for k, stage in again.stages.items()} == {
        k: stage.recipe for k, stage in planned.stages.items()
    }
    assert [(r.arm, r.seed, r.predict.id) for r in again.runs] == [
        (r.arm, r.seed, r.predict.id) for r in planned.runs
    ]
    assert [r.probe and r.probe.id for r in again.runs] == [
        r.probe and r.probe.id for r in planned.runs
    ]
    for name in ("name", "seeds", "protocol", "table", "data", "baseline"):
        assert getattr(again.study, name) == getattr(planned.study, name), name
    for new, old in zip(again.study.arms, planned.study.arms, strict=True):
        assert replace(new, change=old.change, declares=old.declares) == old
        assert new.declared == old.declared


def test_arms_give_their_experiments_again(planned) -> None:
    again = record_of(planned, 0.0).plan()
    for name in ("cls", "view", "fresh"):
        before = planned.study.arm(name).change(planned.study.base).with_seed(0)
        assert again.study.arm(name).change(again.study.base) == before


def test_stages_keep_their_ids_when_the_format_moves_on(planned, tmp_path, monkeypatch) -> None:
    path = write_record(Store.open(tmp_path), planned)
    monkeypatch.setattr(sys.modules["ssdet.studies.graph.identity"], "FORMAT", 999)
    assert list(read_record(path).plan().stages) == list(planned.stages)


def test_one_plan_is_one_file_wherever_its_data_lie(planned, tmp_path) -> None:
    store = Store.open(tmp_path)
    first = write_record(store, planned)
    moved = replace(planned.study.data, cache_folder=str(tmp_path / "elsewhere"))
    second = write_record(store, replace(planned, study=replace(planned.study, data=moved)))
    assert first == second
    assert read_record(second).data["cache_folder"] == str(tmp_path / "elsewhere")


def test_the_last_written_is_current(planned, tmp_path) -> None:
    store = Store.open(tmp_path)
    fewer = plan(replace(planned.study, seeds=(0,), arms=ARMS[:3]))
    for one in (planned, fewer, planned):
        write_record(store, one)
        time.sleep(0.01)
    found, faults = read_records(store)
    assert not faults and len(found) == 2
    assert found[0].digest == record_of(planned, 0).digest


def test_running_a_study_records_it(planned, tmp_path) -> None:
    store = Store.open(tmp_path)
    for name in planned.stages:
        store.folder(name).mkdir()
        store.finish(name, {"scores": {}})
    run(planned.study, store)  # all is done, so that no Ray starts
    assert [one.name for one in read_records(store)[0]] == ["kept"]


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "list": lambda text: b"[]",
    "binary": lambda text: b"\x80\x04\x95",
    "deep": lambda text: b"[" * 100_000,
    "format": lambda text: text.replace(b"ssdet-study/1", b"ssdet-study/9"),
    "recipe": lambda text: text.replace(b'"lr": 0.05', b'"lr": 0.06'),
    "name": lambda text: text.replace(b'"name": "kept"', b'"name": "other"'),
    "stage id": lambda text: text.replace(b'"predict-', b'"../../x-'),
    "arm": lambda text: text.replace(b'"arm": "view"', b'"arm": "gone"'),
    "seed": lambda text: text.replace(b'"seed": 1,', b'"seed": 7,'),
    "field": lambda text: text.replace(b'"runs": [', b'"runs": 5, "x": ['),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_record_is_refused(planned, tmp_path, damage) -> None:
    store = Store.open(tmp_path)
    path = write_record(store, planned)
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{path.name}: not a readable record"):
        read_record(path)
    found, faults = read_records(store)
    assert not found and list(faults) == [path]


def test_a_record_of_unknown_stages_lists_them_but_has_no_plan(planned, tmp_path) -> None:
    record = record_of(planned, 0.0)
    identity = {"kind": "distil", "recipe": {}, "parents": [], "data": "", "format": 9}
    name = stage_id(identity)
    path = tmp_path / "studies" / "kept" / "x.json"
    path.parent.mkdir(parents=True)
    later = replace(record, stages={**record.stages, name: identity})
    path = path.with_name(f"{later.digest}.json")
    path.write_text(json.dumps(later.__dict__ | {"runs": [r.__dict__ for r in later.runs]}))
    assert name in read_record(path).stages
    with pytest.raises(ValueError, match="'distil'.*expected one of"):
        read_record(path).plan()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_is_refused(planned, tmp_path, name) -> None:
    other = replace(planned, study=replace(planned.study, name=name))
    with pytest.raises(ValueError, match="the name is used for a folder"):
        write_record(Store.open(tmp_path), other)
