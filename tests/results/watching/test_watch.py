"""What a store tells of a study that is under way, has failed, or is damaged."""

import json
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from ssdet.results.watching import stage_status
from ssdet.results.watching.watch import StageNow, StudyNow, Watcher
from ssdet.stages.job import Job
from ssdet.stages.kinds import begin_attempt, run_stage
from ssdet.studies import Arm, Store, Study, classification, plan, preset
from ssdet.studies.data import moving_shapes
from ssdet.studies.graph.record import write_record

STEP = {"step": 1, "steps": 4, "loss": 0.5, "lr": 0.1, "clips_per_second": 88.0}


def look(finished) -> StudyNow:
    return Watcher(finished.store.root).look()


def of(now: StudyNow, stage: str) -> StageNow:
    return next(found for found in now.stages if found.id == stage)


def tuned(finished, arm: str, seed: int):
    """The fine-tuning of a run, taken back: with it everything that came of it."""
    run = next(run for run in finished.plan.runs if (run.arm, run.seed) == (arm, seed))
    (stage,) = run.predict.parents
    take_back(finished, stage.id)
    return stage.id


def take_back(finished, stage: str) -> None:
    children = [s for s in finished.plan.stages.values() if stage in {p.id for p in s.parents}]
    for child in children:
        take_back(finished, child.id)
    folder = finished.store.folder(stage)
    for name in ("DONE", "provenance.json"):
        (folder / name).unlink(missing_ok=True)


def begin(finished, stage: str, *lines: dict) -> Path:
    folder = finished.store.folder(stage)
    folder.mkdir(exist_ok=True)
    begin_attempt(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def fail(folder: Path) -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("no such size\nsecond line\n  third") from error
    except ValueError:
        (folder / "error.txt").write_text(traceback.format_exc())


def test_a_finished_study_has_its_scores(made) -> None:
    now = look(made)
    assert now.over and now.left is None and now.retries == 0 and not now.problems
    assert now.counts == {**dict.fromkeys(now.counts, 0), "done": len(made.plan.stages)}
    assert [arm.title for arm in now.arms] == ["classification", "view", "fresh", "pair"]
    for arm in now.arms:
        paths = [made.store.folder(made.id(arm.name, seed)) / "DONE" for seed in (0, 1, 2)]
        values = [json.loads(path.read_text())["scores"]["test"]["value"] for path in paths]
        assert arm.mean == pytest.approx(sum(values) / 3) and arm.seeds == (0, 1, 2)


def test_a_stage_is_seen_while_it_runs_when_it_died_and_when_it_goes_on(shapes, tmp_path) -> None:
    chosen = preset("smoke")
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    arms = (Arm("cls", classification, "Class"),)
    study = Study("live", arms, (0,), base=chosen.experiment, data=data)
    planned, store = plan(study), Store.open(tmp_path)
    write_record(store, planned)
    stage = next(iter(planned.stages.values()))
    job = Job(stage, store.uri, planned.study.data, checkpoint_every=0)
    watcher, seen = Watcher(tmp_path), []

    def killed(metrics) -> None:
        seen.append((dict(metrics), of(watcher.look(), stage.id)))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(job, killed)
    told, now = seen[-1]
    assert now.state == "running" and now.attempts == 1 and now.arms == ("Class",)
    assert now.figures["step"] == told["step"] and now.figures["loss"] == told["loss"]
    assert abs(now.seen - time.time()) < 60 and now.worked < 60
    assert of(watcher.look(), stage.id).state == "gone"
    states = []
    run_stage(job, lambda metrics: states.append(of(watcher.look(), stage.id)))
    assert {(one.state, one.attempts) for one in states} == {("running", 2)}
    after = watcher.look()
    assert of(after, stage.id).state == "done" and after.retries == 1


def test_validation_scores_of_what_runs_stand_by_their_arm(finished) -> None:
    stage = tuned(finished, "view", 2)
    begin(finished, stage, STEP, {"step": 2, "validation": 0.25}, {**STEP, "step": 3})
    with finished.store.lock(stage):
        now = look(finished)
    (running,) = now.of("running")
    assert running.id == stage and running.figures == {
        "step": 3, "steps": 4, "loss": 0.5, "clips_per_second": 88, "validation": 0.25
    }  # fmt: skip
    arms = {arm.name: arm for arm in now.arms}
    assert arms["view"].validation == {2: 0.25} and set(arms["view"].scores) == {0, 1}
    assert not arms["cls"].validation and set(arms["cls"].scores) == {0, 1, 2}


def test_figures_of_an_earlier_attempt_are_not_this_ones(finished) -> None:
    stage = tuned(finished, "view", 2)
    folder = begin(finished, stage, STEP)
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    with finished.store.lock(stage):
        assert not of(look(finished), stage).figures


def test_the_host_is_what_the_attempt_says(finished) -> None:
    stage = tuned(finished, "view", 2)
    path = begin(finished, stage) / "attempt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "node-7"}))
    assert of(look(finished), stage).host == "node-7"
    assert of(look(finished), finished.id("view", 1)).host == "alices-laptop"


def test_time_left_follows_from_stages_of_the_same_kind(finished) -> None:
    """Every finished stage took 2 s. Each fine-tuning at step 1 of 4 has 1.5 s left, its
    predictions 2 s, and the ensemble of both 2 s more."""
    first, second = tuned(finished, "view", 2), tuned(finished, "cls", 2)
    begin(finished, first, STEP)
    begin(finished, second, STEP)
    with finished.store.lock(first):
        assert look(finished).left == pytest.approx(2 * 1.5 + 3 * 2)  # one after the other
        with finished.store.lock(second):
            assert look(finished).left == pytest.approx(1.5 + 2 + 2)  # the longest way
    assert look(finished).left is None  # nothing runs


def test_kinds_of_which_none_is_done_are_not_counted(finished) -> None:
    for stage in finished.plan.stages.values():
        if stage.kind == "ensemble":
            take_back(finished, stage.id)
    stage = tuned(finished, "view", 2)
    begin(finished, stage, STEP)
    with finished.store.lock(stage):
        now = look(finished)
    assert now.uncounted == ("ensemble",) and now.left == pytest.approx(1.5 + 2)


def test_a_failed_stage_tells_why_and_blocks_what_needs_it(finished) -> None:
    stage = tuned(finished, "view", 2)
    fail(begin(finished, stage, STEP))
    watcher = Watcher(finished.store.root)
    now = watcher.look()
    assert of(now, stage).error == "ValueError: no such size" and now.over
    assert now.counts["failed"] == 1 and now.counts["blocked"] == 2  # predictions, the ensemble
    other = tuned(finished, "fresh", 1)
    assert not watcher.look().over and of(watcher.look(), other).state == "waiting"
    write_record(finished.store, finished.plan)  # the command is started again: all is tried again
    again = watcher.look()
    assert again.counts["failed"] == again.counts["blocked"] == 0


def test_nothing_is_changed_and_nothing_large_is_read(finished) -> None:
    running, dead = tuned(finished, "view", 2), tuned(finished, "cls", 2)
    for stage in (running, dead):
        folder = begin(finished, stage, STEP)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.pt").write_bytes(b"weights")
        folder.with_suffix(".lock").touch()
    with finished.store.lock(running):
        before, opened = listing(finished.store.root), []
        HEARD.append(opened)
        now = look(finished)
        HEARD.clear()
        assert listing(finished.store.root) == before
        assert not [path for path in opened if "checkpoints" in path or "predictions" in path]
        assert str(finished.store.folder(running) / "metrics.jsonl") in opened
    assert (of(now, running).state, of(now, dead).state) == ("running", "gone")


HEARD: list[list[str]] = []
sys.addaudithook(
    lambda event, given: event == "open" and [to.append(str(given[0])) for to in HEARD]
)


def listing(root: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.stat() for path in root.rglob("*")}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def test_a_dead_attempt_is_asked_about_once(finished, monkeypatch) -> None:
    stage = tuned(finished, "view", 2)
    begin(finished, stage)
    asked, held = [], stage_status.held
    monkeypatch.setattr(stage_status, "held", lambda lock: asked.append(lock) or held(lock))
    watcher = Watcher(finished.store.root)
    for _ in range(3):
        assert of(watcher.look(), stage).state == "gone"
    assert len(asked) == 1
    with finished.store.lock(stage):
        os.utime(begin(finished, stage) / "attempt.json")
        assert of(watcher.look(), stage).state == "running"


@pytest.mark.parametrize("text", [b"", b'{"number": 1, "sta', b"\xff\xfe", b"[]", b"[" * 200_000])
@pytest.mark.parametrize("name", ["DONE", "provenance.json", "attempt.json", "metrics.jsonl"])
def test_damaged_files_are_told_of(finished, name, text) -> None:
    if name in ("DONE", "provenance.json"):
        stage = finished.id("view", 2)
        (finished.store.folder(stage) / name).write_bytes(text)
    else:
        stage = tuned(finished, "view", 2)
        (begin(finished, stage) / name).write_bytes(text + b"\n" * (name == "metrics.jsonl"))
    now = look(finished)
    told = [*now.problems, *(one.error for one in now.of("failed"))]
    empty_log = name == "metrics.jsonl" and not text  # begun, and nothing told yet
    assert empty_log or any(f"{stage}/{name} is damaged" in line for line in told), told
    assert (of(now, stage).state == "failed") == (name == "DONE")


@pytest.mark.parametrize("value", [None, "4", [4], {"a": 1}, True, float("nan"), float("inf"),
                                   10**400])  # fmt: skip
def test_figures_that_are_no_numbers_are_left_out(finished, value) -> None:
    stage = tuned(finished, "view", 2)
    folder = begin(finished, stage, dict.fromkeys(STEP, value))
    (folder / "attempt.json").write_text(json.dumps(dict.fromkeys(("number", "started"), value)))
    os.utime(folder / "metrics.jsonl")
    done = finished.store.folder(finished.id("view", 1)) / "DONE"
    done.write_text(json.dumps({"scores": {"test": {"value": value}}}))
    with finished.store.lock(stage):
        now = look(finished)
    assert of(now, stage).figures == {} and of(now, stage).state == "running"
    assert set(next(arm for arm in now.arms if arm.name == "view").scores) == {0}
    json.dumps(now.to_json(), allow_nan=False)


def test_a_half_written_line_and_what_is_not_there_are_no_damage(finished) -> None:
    stage = tuned(finished, "view", 2)
    folder = begin(finished, stage, STEP)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"step": 2, "los')
    now = look(finished)
    assert of(now, stage).figures["step"] == 1 and not now.problems


def test_of_a_long_log_the_end_is_read(finished) -> None:
    stage = tuned(finished, "view", 2)
    folder = begin(finished, stage, *({**STEP, "step": step} for step in range(5000)))
    assert (folder / "metrics.jsonl").stat().st_size > 2 * stage_status.TAIL
    assert of(look(finished), stage).figures["step"] == 4999


def test_odd_things_in_the_place_of_files_do_not_end_it(finished) -> None:
    first, second = tuned(finished, "view", 2), finished.id("view", 1)
    (begin(finished, first) / "metrics.jsonl").unlink()
    (finished.store.folder(first) / "metrics.jsonl").mkdir()
    (finished.store.folder(second) / "DONE").unlink()
    (finished.store.folder(second) / "DONE").mkdir()
    now = look(finished)
    assert any(first in line and "cannot be read" in line for line in now.problems)
    assert of(now, second).state == "failed"


def test_damaged_records_are_told_of_and_unknown_studies_named(finished) -> None:
    (path,) = finished.store.studies.glob("*/*.json")
    (path.parent / "torn.json").write_bytes(path.read_bytes()[:200])
    now = look(finished)
    assert now.over and any("torn.json" in line for line in now.problems)
    with pytest.raises(ValueError, match=r"no record of study 'cut'.*of: ablate_cutmix"):
        Watcher(finished.store.root, "cut")
    path.unlink()
    with pytest.raises(ValueError, match=r"torn\.json"):
        Watcher(finished.store.root)
    with pytest.raises(FileNotFoundError, match="no store"):
        Watcher(finished.store.root / "absent")


def test_the_study_that_was_started_last_is_watched(finished) -> None:
    write_record(
        finished.store, replace(finished.plan, study=replace(finished.plan.study, name="b"))
    )
    assert Watcher(finished.store.root).look().study == "b"
    assert Watcher(finished.store.root, "ablate_cutmix").look().study == "ablate_cutmix"


def test_texts_of_users_cannot_steer_a_terminal(finished, odd) -> None:
    evil = "\x1b[2J\x1b]0;title\x07\r"
    arms = tuple(replace(arm, title=f"{arm.name}{evil}") for arm in odd.study.arms)
    write_record(finished.store, replace(odd, study=replace(odd.study, arms=arms)))
    stage = tuned(finished, "view", 2)
    folder = begin(finished, stage)
    (folder / "error.txt").write_text(f"ValueError: {evil}")
    os.utime(folder / "error.txt", (time.time() + 5,) * 2)
    told = repr(look(finished))
    assert "view" in told and "\\x1b" not in told and "\\x07" not in told


@pytest.fixture
def afar(finished, bucket, tmp_path, monkeypatch):
    """The study in a bucket, two of its runs finished, a fine-tuning yet to come: (bucket, that
    stage, what goes to another machine)."""
    stage = tuned(finished, "view", 2)

    def machine(name: str) -> Store:
        monkeypatch.setenv("SSDET_CACHE", str(tmp_path / name))
        return Store.open(bucket.uri("runs"))

    store = machine("a")
    write_record(store, finished.plan)
    for name in (finished.id("cls", 0), finished.id("view", 0)):
        store.folder(name).mkdir()
        how = (finished.store.folder(name) / "provenance.json").read_bytes()
        (store.folder(name) / "provenance.json").write_bytes(how)
        store.finish(name, finished.store.result(name))
    return bucket, stage, machine


def test_a_stage_of_another_machine_is_as_its_last_upload(afar, finished) -> None:
    bucket, stage, machine = afar
    store = machine("a")
    folder = store.folder(stage)
    with store.lock(stage):
        (folder / "checkpoints").mkdir(parents=True)
        begin_attempt(folder)
        (folder / "metrics.jsonl").write_text(json.dumps(STEP) + "\n")
        own = Watcher(bucket.uri("runs")).look()
        machine("b")
        watcher = Watcher(bucket.uri("runs"))
        early = watcher.look()
        machine("a")
        (folder / "checkpoints" / "last.pt").write_bytes(b"weights" * 1000)
        store.offer(stage)
        bucket.proxy.seen.clear()
        later = watcher.look()
    seen = [path for method, path, _ in bucket.proxy.seen]
    assert not [path for path in seen if "last.pt" in path] and len(seen) < 20
    assert of(own, stage).figures["step"] == 1 and of(own, stage).host == os.uname().nodename
    assert of(early, stage).state == of(later, stage).state == "running"
    assert not of(early, stage).figures and "nothing of it was uploaded" in of(early, stage).note
    assert of(later, stage).figures["step"] == 1 and "as uploaded" in of(later, stage).note
    assert of(later, stage).host == os.uname().nodename and later.counts["done"] == 2
    scored = {arm.name: set(arm.scores) for arm in later.arms if arm.scores}
    assert scored == {"cls": {0}, "view": {0}}
    assert of(later, finished.id("view", 0)).host == "alices-laptop"
    assert of(watcher.look(), stage).state == "gone"  # the lease was given back
    (folder / "error.txt").write_text("ValueError: here\n")
    machine("b")
    assert of(Watcher(bucket.uri("runs")).look(), stage).state == "gone"
    machine("a")
    assert of(Watcher(bucket.uri("runs")).look(), stage).error == "ValueError: here"


def test_a_machine_that_vanished_is_not_at_work(afar, monkeypatch) -> None:
    bucket, stage, machine = afar
    store = machine("a")
    store._lease(stage)._write()
    assert of(Watcher(bucket.uri("runs")).look(), stage).state == "gone"  # no process here has it
    machine("b")
    watcher = Watcher(bucket.uri("runs"))
    assert of(watcher.look(), stage).state == "running"
    monkeypatch.setattr(stage_status, "STALE", -60.0)
    assert of(watcher.look(), stage).state == "gone"


def test_damaged_pointers_are_told_of(afar) -> None:
    bucket, stage, machine = afar
    store = machine("b")
    store.remote.write(f"resume/{stage}.json", b'{"format": "ssd')
    now = Watcher(bucket.uri("runs")).look()
    assert of(now, stage).state == "gone" and "is damaged" in of(now, stage).note
    store.remote.write(f"done/{stage}.json", b"[]")
    assert "is damaged" in of(Watcher(bucket.uri("runs")).look(), stage).error
