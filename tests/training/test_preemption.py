"""A process that is told to go leaves a checkpoint, and what goes on from it is the same."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdet.cli.experiment import Options, resolve
from ssdet.execution.workers import drained
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import Arm, Study, augmented
from ssdet.studies.graph.identity import Stage
from ssdet.training import OptimRecipe, checkpoint
from ssdet.training.context import Context
from ssdet.training.distributed import share_dropout
from ssdet.training.preemption import Preempted, watch_preemption

STEPS = 15
IN_A_THREAD = """
import pickle, sys, threading
from ssdet.stages.kinds import run_stage
from ssdet.training.preemption import Preempted

def work():
    try:
        run_stage(pickle.load(open(sys.argv[1], "rb")))
    except Preempted as error:
        print(error)

thread = threading.Thread(target=work)
thread.start()
while thread.is_alive():
    thread.join(0.1)
"""


@pytest.fixture(scope="module")
def job(shapes) -> Job:
    study = resolve(Study("preempted", (Arm("a", augmented("mixup")),)), Options(preset="smoke"))
    recipe = replace(
        augmented("mixup")(study.base).pretrain,
        optim=OptimRecipe(steps=STEPS, batch=8, lr=0.01, schedule="onecycle", ema=0.9),
        validations=3,
    )
    stage = Stage("pretrain", recipe, (), "test")
    return Job(stage, "", study.data, checkpoint_every=1e9)


@pytest.fixture(scope="module")
def unbroken(job, tmp_path_factory) -> dict:
    whole = replace(job, store=str(tmp_path_factory.mktemp("whole")))
    run_stage(whole)
    return checkpoint.load(whole.folder / "checkpoints" / "last.pt")


def same(folder: Path, unbroken: dict) -> bool:
    state = checkpoint.load(folder / "checkpoints" / "last.pt")
    return state["step"] == STEPS and all(
        torch.equal(value, state[part][key])
        for part in ("model", "averaged")
        for key, value in unbroken[part].items()
    )


def test_a_signal_stops_a_stage_after_the_running_step(job, unbroken, tmp_path: Path) -> None:
    """Validations fall on steps 5 and 10; at the second one the signal loses none."""
    mine, times = replace(job, store=str(tmp_path)), []

    def report(metrics) -> None:
        if "loss" in metrics and metrics["step"] in (4, 10) and metrics["step"] not in times:
            times.append(metrics["step"])
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    for step in (4, 10):
        with pytest.raises(Preempted, match=f"step {step}: SIGTERM"):
            run_stage(mine, report)
        assert checkpoint.load(mine.folder / "checkpoints" / "last.pt")["step"] == step
        assert signal.getsignal(signal.SIGTERM) is before
    run_stage(mine, report)
    assert same(mine.folder, unbroken)
    rows = [json.loads(line) for line in (mine.folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "validation" in row] == [5, 10, 15]


def test_a_signal_at_the_last_step_is_too_late(job, tmp_path: Path) -> None:
    def report(metrics) -> None:
        if "loss" in metrics and metrics["step"] == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_stage(replace(job, store=str(tmp_path)), report)["steps"] == STEPS


def test_another_machine_goes_on_where_the_store_is_far_away(
    job, unbroken, bucket, tmp_path, monkeypatch
) -> None:
    def report(metrics) -> None:
        if "loss" in metrics and metrics["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    mine = replace(job, store=bucket.uri())
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "a"))
    with pytest.raises(Preempted):
        run_stage(mine, report)
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "b"))
    steps: list[int] = []
    run_stage(mine, lambda metrics: steps.append(metrics["step"]))
    assert steps[0] == 5
    assert same(mine.folder, unbroken)


def test_a_process_that_trains_in_a_thread_hears_the_signal(job, unbroken, tmp_path: Path) -> None:
    """As in the processes of Ray Tune and Ray Train."""
    mine = replace(job, store=str(tmp_path / "store"))
    (tmp_path / "job").write_bytes(pickle.dumps(mine))
    command = [sys.executable, "-c", IN_A_THREAD, str(tmp_path / "job")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = mine.folder / "metrics.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    said, _ = process.communicate(timeout=100)
    seen = [json.loads(line)["step"] for line in log.open()]
    assert f"stopped after step {seen[-1]}: SIGTERM" in said
    assert checkpoint.load(mine.folder / "checkpoints" / "last.pt")["step"] == seen[-1] < STEPS
    run_stage(mine)
    assert same(mine.folder, unbroken)


def test_signs_are_told_and_a_broken_one_hides_no_other(monkeypatch, caplog) -> None:
    monkeypatch.setattr("ssdet.training.preemption.CHECK_SECONDS", 0.01)
    shown = threading.Event()

    def broken() -> str:
        raise ConnectionError("the head is away")

    with watch_preemption(broken, lambda: "go" if shown.is_set() else "") as stop_reason:
        assert stop_reason() == ""
        shown.set()
        while not stop_reason():
            time.sleep(0.01)
        assert stop_reason() == "go"
    assert "the head is away" in caplog.text


def test_a_second_signal_does_what_it_did_before() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with watch_preemption() as stop_reason:
            signal.raise_signal(signal.SIGTERM)
            assert stop_reason() == "SIGTERM" and not heard
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_node_that_is_drained_is_a_sign(ray_session, monkeypatch) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    sign, other = drained(), drained("f" * 56)
    assert sign() == other() == ""
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {here: 0})
    assert here in sign() and other() == ""


@pytest.mark.parametrize("turned", [False, True])
def test_dropout_drops_the_same_on_any_number_of_workers(turned: bool) -> None:
    """Clip i of a batch is on worker i mod 4; memory laid out plainly, or as after a transpose."""
    torch.manual_seed(0)
    x_BTC = torch.rand(8, 6, 5) + 1
    x_BTC = x_BTC.transpose(1, 2).contiguous().transpose(1, 2) if turned else x_BTC
    torch.manual_seed(1)
    alone = nn.functional.dropout(x_BTC, 0.4)
    for rank in range(4):
        model = nn.Sequential(nn.Identity(), nn.Dropout(0.4))
        share_dropout(model, Context(Path(), rank=rank, world=4, device=torch.device("cpu")))
        torch.manual_seed(1)
        mine = x_BTC[rank::4].clone(memory_format=torch.preserve_format)
        torch.testing.assert_close(model(mine), alone[rank::4])
        assert model.eval()(mine) is mine
