"""Stores behind a real S3 API: several machines, and what breaks between them.

A machine is a cache folder of its own: what another has, it sees in the bucket only."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from ssdet.data.storage import filesystem as remote
from ssdet.data.storage.filesystem import Remote, RemoteError
from ssdet.results.cleaning import collect, remove_stage, remove_study
from ssdet.results.queries.results import Results
from ssdet.stages import kinds as stages
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.store import leases as lease
from ssdet.store import remote as remote_store
from ssdet.store import uploads as pointer
from ssdet.store.base import Store
from ssdet.studies import plan
from ssdet.studies.graph.record import read_records, write_record
from ssdet.training import checkpoint

STAGE = "pretrain-0123456789abcdef"

pytestmark = pytest.mark.usefixtures("quick")


def forbid(monkeypatch) -> None:
    """From here on no stage does any work."""

    def refuse(job, report):
        raise AssertionError(f"{job.stage.id} is run again")

    for kind in stages.KINDS:
        monkeypatch.setitem(stages.KINDS, kind, refuse)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints" / "last.pt")["model"]


def stage_of(store: Store, steps: int = 3) -> Path:
    """A stage's folder made by hand."""
    folder = store.folder(STAGE)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"kind": "pretrain", "parents": []}))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n' * steps)
    (folder / "checkpoints" / "last.pt").write_bytes(os.urandom(200_000))
    return folder


def test_a_finished_stage_is_seen_whole_from_another_machine(bucket, on) -> None:
    store = Store.open(bucket.uri("runs"))
    assert store.result(STAGE) is None and not store.exists()
    folder = stage_of(store)
    (folder / "work.partial").write_text("no")
    assert store.finish(STAGE, {"loss": 0.5}) == {"loss": 0.5}
    assert not [key for key in bucket.objects() if "partial" in key]
    on("b")
    there = Store.open(bucket.uri("runs/"))
    assert there.root != store.root and there.exists()
    assert there.result(STAGE) == {"loss": 0.5}
    there.refresh()
    files = {p.name for p in there.folder(STAGE).rglob("*") if p.is_file()}
    assert files == {"DONE", "recipe.json", "metrics.jsonl"}  # the large one when it is read
    assert there.has_file(STAGE, "checkpoints/last.pt") and not there.has_file(STAGE, "x")
    here = there.fetch(STAGE, "checkpoints/last.pt") / "checkpoints" / "last.pt"
    assert here.read_bytes() == (folder / "checkpoints" / "last.pt").read_bytes()
    asked = len(bucket.proxy.seen)
    there.fetch(STAGE)
    there.result(STAGE)
    assert len(bucket.proxy.seen) == asked  # nothing is asked twice


@pytest.mark.parametrize(
    "what, how", [("last.pt", "cut"), ("last.pt", "shut"), ("done/", "error"), ("done/", "cut")]
)
def test_an_upload_that_dies_is_made_up_for_without_training(
    bucket, on, study, pretraining, monkeypatch, what, how
) -> None:
    job = Job(pretraining, bucket.uri(), study.data, checkpoint_every=1e9)
    monkeypatch.setitem(stages.KINDS, "pretrain", by_hand)
    with bucket.proxy.failing("PUT", what, how), pytest.raises(RemoteError, match="cannot write"):
        run_stage(job)
    assert not bucket.objects("done") and Store.open(job.store).result(pretraining.id) is None
    forbid(monkeypatch)
    assert run_stage(job) == {"by": "hand"}
    on("b")
    assert run_stage(job) == {"by": "hand"}


def by_hand(job, report) -> dict:
    """A stage without training."""
    (job.folder / "checkpoints").mkdir(exist_ok=True)
    (job.folder / "checkpoints" / "last.pt").write_bytes(b"weights" * 1000)
    return {"by": "hand"}


class Vanished(BaseException):
    """What ends a machine in the middle of a stage."""


def test_another_machine_goes_on_from_the_last_checkpoint(
    bucket, on, study, pretraining, tmp_path
) -> None:
    whole = Job(pretraining, str(tmp_path / "whole"), study.data)
    expected = run_stage(whole)
    job = Job(pretraining, bucket.uri(), study.data, checkpoint_every=0)

    def vanish(metrics) -> None:
        if metrics["step"] == 4:
            wait_for(lambda: bucket.objects("resume"))
            raise Vanished

    with pytest.raises(Vanished):
        run_stage(job, vanish)
    on("b")
    steps: list[int] = []
    result = run_stage(job, lambda metrics: steps.append(metrics["step"]))
    assert steps and min(steps) > 1  # not from the beginning
    assert without_times(result) == without_times(expected)
    ours, theirs = weights(job.folder), weights(whole.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not bucket.objects("resume") and not bucket.objects("leases")
    assert json.loads((job.folder / "attempt.json").read_text())["number"] == 2
    named = Store.open(job.store)._known(pretraining.id).keys
    assert set(bucket.objects("stages")) == named  # no checkpoint is left over
    on("a")
    assert run_stage(job) == result
    last = "checkpoints/last.pt"  # of another result than what this machine had begun
    Store.open(job.store).fetch(pretraining.id, last)
    assert all(torch.equal(weights(job.folder)[name], theirs[name]) for name in theirs)


def without_times(result: dict) -> dict:
    return {name: value for name, value in result.items() if "second" not in name}


def wait_for(ready) -> None:
    for _ in range(600):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_checkpoint_is_the_old_or_the_new_one(bucket, on, monkeypatch) -> None:
    store = Store.open(bucket.uri())
    folder = stage_of(store)
    (folder / "checkpoints" / "best.pt").write_bytes(b"best of old")
    store.publish_progress(STAGE)
    old = (folder / "checkpoints" / "last.pt").read_bytes()
    (folder / "checkpoints" / "last.pt").write_bytes(os.urandom(200_000))
    new = (folder / "checkpoints" / "last.pt").read_bytes()
    with bucket.proxy.failing("PUT", "last.pt", "cut"), pytest.raises(RemoteError):
        store.publish_progress(STAGE)  # torn on the way
    on("b")
    there = Store.open(bucket.uri())
    there.fetch_progress(STAGE)
    assert (there.folder(STAGE) / "checkpoints" / "last.pt").read_bytes() == old
    on("c")
    there = Store.open(bucket.uri())
    download = remote_store.download

    def replaced_meanwhile(*arguments) -> None:
        monkeypatch.setattr(remote_store, "download", download)
        store.publish_progress(STAGE)
        download(*arguments)

    monkeypatch.setattr(remote_store, "download", replaced_meanwhile)
    there.fetch_progress(STAGE)
    assert (there.folder(STAGE) / "checkpoints" / "last.pt").read_bytes() == new
    assert len([key for key in bucket.objects("stages") if "last.pt" in key]) == 1


def test_a_machine_that_is_ahead_keeps_its_own_checkpoint(bucket, on) -> None:
    store = Store.open(bucket.uri())
    folder = stage_of(store)
    store.publish_progress(STAGE)
    (folder / "checkpoints" / "last.pt").write_bytes(b"further")
    store.fetch_progress(STAGE)
    assert (folder / "checkpoints" / "last.pt").read_bytes() == b"further"
    store.fetch_progress(STAGE, exactly=True)  # several workers go on from what all can see
    assert (folder / "checkpoints" / "last.pt").read_bytes() != b"further"


def test_a_training_outlives_a_store_that_is_away(bucket, on, study, pretraining, caplog) -> None:
    """Checkpoints that cannot be shown are told of; the result is shown when it can be."""
    job = Job(pretraining, bucket.uri(), study.data, checkpoint_every=0)
    with bucket.proxy.failing("PUT", "resume/", "error") as fault:
        result = run_stage(job, lambda now: now["step"] > 4 and wait_for(lambda: fault.met))
    assert result["steps"] == 8 and "checkpoint not uploaded" in caplog.text
    assert bucket.objects("done")


def test_one_machine_at_a_time(bucket, on) -> None:
    a = Store.open(bucket.uri())
    on("b")
    b = Store.open(bucket.uri())
    with a.lock(STAGE):
        assert b.busy(STAGE) and a.busy(STAGE)
        with pytest.raises(BlockingIOError, match="at work"), b.lock(STAGE, wait=False):
            pass
        entered, left = threading.Event(), threading.Event()

        def enter() -> None:
            with b.lock(STAGE):
                entered.set()
                left.wait(30)

        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
    assert entered.wait(20) and a.busy(STAGE)
    left.set()
    waiting.join(20)
    assert not a.busy(STAGE)


def test_of_two_that_ask_at_once_the_later_writer_goes_on(bucket, on, monkeypatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 0.3)
    monkeypatch.setattr(remote, "DELAYS", (0.05,) * 5)  # the test's server has hiccups itself
    entered = []

    def enter(machine: str) -> None:
        one = lease.Lease(Remote(bucket.uri()), "leases/x.json", machine)
        with one.held():
            entered.append(("in", machine))
            time.sleep(0.2)
            entered.append(("out", machine))

    threads = [threading.Thread(target=enter, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [what for what, _ in entered] == ["in", "out"] * 2
    assert {machine for _, machine in entered} == {"a", "b"}


def test_a_dead_machine_is_waited_for_not_for_ever(bucket, on, monkeypatch, caplog) -> None:
    a = Store.open(bucket.uri())
    held = a._lease(STAGE)
    held._write()  # and then nothing more
    on("b")
    b = Store.open(bucket.uri())
    assert b.busy(STAGE)
    on("a")
    with a.lock(STAGE, wait=False):  # a process of this machine is known to be dead by its lock
        pass
    held._write()
    monkeypatch.setattr(lease, "STALE", -5.0)
    with b.lock(STAGE, wait=False):
        pass
    assert "not renewed it" in caplog.text


def test_a_lease_is_renewed_while_it_is_held(bucket, on, monkeypatch) -> None:
    monkeypatch.setattr(lease, "RENEW", 0.05)
    store = Store.open(bucket.uri())
    with store.lock(STAGE):
        key = f"/leases/{STAGE}.json"
        wait_for(lambda: sum(s[:1] == ("PUT",) and key in s[1] for s in bucket.proxy.seen) > 3)
    assert not bucket.objects("leases")


def test_of_two_that_ran_the_same_the_first_counts_for_both(bucket, on) -> None:
    a = Store.open(bucket.uri())
    stage_of(a)
    on("b")
    b = Store.open(bucket.uri())
    stage_of(b, steps=9)
    assert a.finish(STAGE, {"by": "a"}) == {"by": "a"}
    assert b.finish(STAGE, {"by": "b"}) == {"by": "a"}
    for file in ("metrics.jsonl", "checkpoints/last.pt"):
        assert (b.fetch(STAGE) / file).read_bytes() == (a.fetch(STAGE) / file).read_bytes()
    assert b.result(STAGE) == {"by": "a"}


def test_damage_is_said_with_a_way_out(bucket, on) -> None:
    store = Store.open(bucket.uri())
    stage_of(store)
    store.finish(STAGE, {})
    blob = next(key for key in bucket.objects("stages"))
    bucket.client().put_object(Bucket=bucket.name, Key=blob, Body=b"x" * 200_000)
    on("b")
    there = Store.open(bucket.uri())
    with pytest.raises(RemoteError, match="checksum"):
        there.fetch(STAGE)
    assert not (there.folder(STAGE) / "checkpoints" / "last.pt").exists()
    bucket.client().delete_object(Bucket=bucket.name, Key=blob)
    with pytest.raises(RemoteError, match="not there any more: restore"):
        there.fetch(STAGE)
    Remote(bucket.uri()).write(f"done/{STAGE}.json", b'{"format": "ssdet-rem')
    on("c")
    with pytest.raises(ValueError, match=r"is damaged.*ssdet results rm"):
        Store.open(bucket.uri()).result(STAGE)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_pointer_does_not_lead_out_of_the_folder(name) -> None:
    data = pointer.Pointer({name: pointer.RemoteFile(1, "0", "k")}, {}).to_bytes()
    with pytest.raises(ValueError, match="leads out"):
        pointer.Pointer.parse(data, "p")


def test_a_bucket_that_is_not_there_is_said_at_once(bucket, on) -> None:
    uri = bucket.uri().replace(bucket.name, "nobodys-bucket")
    with pytest.raises(RemoteError, match="no such bucket"):
        Store.open(uri).refresh()
    with pytest.raises(FileNotFoundError, match="no store in s3://"):
        Results.open(bucket.uri("nothing"))


def test_records_tables_and_scores_are_shared(bucket, on, study) -> None:
    store = Store.open(bucket.uri())
    write_record(store, plan(study))
    store.keep_estimate("abc", {"stages": 3})
    (store.table_folder("afar") / "table.csv").write_text("1")
    store.publish_files(store.table_folder("afar"))
    stage_of(store)
    store.finish(STAGE, {})
    (store.folder(STAGE) / "scores").mkdir()
    (store.folder(STAGE) / "scores" / "wap.json").write_text("{}")
    store.publish_files(store.folder(STAGE) / "scores" / "wap.json")
    on("b")
    there = Store.open(bucket.uri())
    there.refresh()
    assert [record.name for record in read_records(there)[0]] == ["afar"]
    assert there.estimate("abc") == {"stages": 3}
    assert (there.root / "tables" / "afar" / "table.csv").read_text() == "1"
    assert (there.folder(STAGE) / "scores" / "wap.json").read_text() == "{}"
    (there.root / "tables" / "afar" / "table.csv").write_text("22")
    there.publish_files(there.root / "tables" / "afar")
    remove_study(there, "afar")
    assert not bucket.objects("studies") and not bucket.objects("tables")
    on("a")
    store.refresh()
    assert (
        not read_records(store)[0] and not (store.root / "tables" / "afar" / "table.csv").exists()
    )


def test_removal_is_guarded_and_done_comes_first(bucket, on, study) -> None:
    store = Store.open(bucket.uri())
    stage_of(store)
    store.finish(STAGE, {})
    on("b")
    there = Store.open(bucket.uri())
    there.refresh()
    with store.lock(STAGE), pytest.raises(BlockingIOError):
        remove_stage(there, STAGE)
    assert bucket.objects("done")
    bucket.proxy.seen.clear()
    assert remove_stage(there, STAGE).bytes > 200_000
    seen = [(how, path) for how, path, _ in bucket.proxy.seen]
    gone = [path for how, path in seen if how in ("DELETE", "POST") and "leases" not in path]
    assert f"/done/{STAGE}" in gone[0] and len(gone) > 1
    assert not bucket.objects("stages")
    on("a")
    store.refresh()
    assert store.result(STAGE) is None and not store.folder(STAGE).exists()


def test_gc_removes_what_no_pointer_names_and_no_study_needs(bucket, on, monkeypatch) -> None:
    store = Store.open(bucket.uri())
    stage_of(store)
    store.finish(STAGE, {})
    half, other = "pretrain-1111111111111111", f"stages/{STAGE}/x.bin.0123"
    (store.folder(half) / "checkpoints").mkdir(parents=True)
    (store.folder(half) / "checkpoints" / "last.pt").write_bytes(b"1")
    store.publish_progress(half)
    Remote(bucket.uri()).write(other, b"of an upload that was interrupted")
    monkeypatch.setattr("ssdet.results.cleaning.STALE", -5.0)
    monkeypatch.setattr("ssdet.results.cleaning._reached", lambda store: {STAGE, half})
    on("b")
    there = Store.open(bucket.uri())
    assert [*collect(there, dry_run=True).sizes] == [other] and other in bucket.objects()
    assert [*collect(there).sizes] == [other] and other not in bucket.objects()
    assert bucket.objects("resume") and there.fetch(STAGE).is_dir()
    monkeypatch.setattr("ssdet.results.cleaning._reached", lambda store: {STAGE})
    assert f"stages/{half}" in collect(there).sizes
    assert not bucket.objects("resume") and not bucket.objects(f"stages/{half}")
    assert bucket.objects("done")
