"""Trainings that have as many workers as there is room for, and go on when that changes."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from ssdet.cli.experiment import Options, resolve
from ssdet.execution.executor import RayExecutor
from ssdet.execution.runner import worker_options
from ssdet.execution.session import Workers, plan_resources
from ssdet.execution.tuner import PreemptionRetries
from ssdet.execution.workers import MAX_PREEMPTION_RESTARTS, WorkerGroup, run_workers, size_now
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import Arm, Study, augmented
from ssdet.studies.graph.identity import Stage
from ssdet.training import ModelRecipe, OptimRecipe, TrainRecipe, checkpoint
from ssdet.training.loop import worker_counts

STEPS = 60


@pytest.mark.parametrize(
    ("given", "low", "high"), [(1, 1, 1), ("4", 4, 4), ("2:8", 2, 8), ("3:3", 3, 3)]
)
def test_workers_are_a_number_or_a_range(given, low, high) -> None:
    found = Workers.of(given)
    assert (found.low, found.high, found.elastic) == (low, high, low < high)


@pytest.mark.parametrize("given", [0, "0:2", "8:2", "2:", ":8", "2-8", "two", "1.5", -1, "2:4:8"])
def test_anything_else_is_refused(given) -> None:
    with pytest.raises(ValueError, match=f"workers={given}: expected"):
        Workers.of(given)


@pytest.mark.parametrize(
    ("batch", "accumulate", "group", "low", "high", "expected"),
    [
        (64, 1, 8, 2, 8, [2, 4, 8]),
        (64, 1, 8, 1, 64, [1, 2, 4, 8]),
        (64, 2, 8, 1, 8, [1, 2, 4]),
        (48, 1, 8, 2, 6, [2, 3, 6]),
        (16, 1, 16, 1, 4, [1]),
        (24, 1, 4, 3, 5, [3]),
    ],
)
def test_only_whole_groups_go_to_workers(batch, accumulate, group, low, high, expected) -> None:
    recipe = TrainRecipe(
        "pretrain",
        model=ModelRecipe(norm_group=group),
        optim=OptimRecipe(batch=batch, accumulate=accumulate),
    )
    assert worker_counts(recipe, low, high) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"optim": OptimRecipe(batch=16)}, "16 clips a pass over 4 workers"),
        ({"model": ModelRecipe(norm_start="pooled"), "optim": OptimRecipe(batch=64)}, "pooled"),
    ],
)
def test_no_possible_number_is_an_error(fields, reason) -> None:
    with pytest.raises(ValueError, match=f"none of 3 to 4 workers.*{reason}"):
        worker_counts(TrainRecipe("pretrain", **fields), 3, 4)


@pytest.mark.parametrize(
    ("nodes", "concurrent", "workers", "at_once"),
    [
        ([{"CPU": 2}], None, 2, 1),
        ([{"CPU": 4}] * 2, None, 8, 1),
        ([{"CPU": 16}] * 2, None, 8, 4),
        ([{"CPU": 5}], None, 5, 1),
        ([{"CPU": 8}], 2, 4, 2),
    ],
)
def test_planned_is_the_largest_team_that_fits(nodes, concurrent, workers, at_once) -> None:
    planned = plan_resources("2:8", 0, concurrent, cluster=nodes)
    assert (planned.workers, planned.concurrent) == (workers, at_once)
    assert planned.trial["CPU"] < 0.01  # it drives, whatever the number
    assert planned.elastic == Workers(2, 8)


def test_a_cluster_below_the_lower_number_is_refused() -> None:
    with pytest.raises(ValueError, match="each of 2 workers.*1 CPU"):
        plan_resources("2:8", cluster={"CPU": 1})
    with pytest.raises(ValueError, match="concurrent=4 or less"):
        plan_resources("2:8", 0, 5, cluster={"CPU": 8})


def test_a_range_is_of_trainings_alone() -> None:
    recipe = TrainRecipe("pretrain", optim=OptimRecipe(batch=32))
    planned = plan_resources("1:3", cluster={"CPU": 8})
    training, scoring = Stage("pretrain", recipe, (), "a"), Stage("predict", recipe, (), "a")
    job = Job(training, "", None, **worker_options(training, planned))
    assert job.sizes == (1, 2) and not job.alone
    assert Job(scoring, "", None, **worker_options(scoring, planned)).alone
    assert job.stage.id == training.id


def test_moves_are_no_failures_but_finite() -> None:
    told: list[str] = []
    trial = SimpleNamespace(trial_id="a", config={"stage": "pretrain-0"}, max_failures=3)
    moves = PreemptionRetries(told.append)
    for step in range(MAX_PREEMPTION_RESTARTS + 5):
        moves.on_trial_result(step, [], trial, {"loss": 1.0})
        moves.on_trial_result(step, [], trial, {"preempted": "SIGTERM"})
    assert trial.max_failures == 3 + MAX_PREEMPTION_RESTARTS
    assert told == ["pretrain-0: SIGTERM"] * (MAX_PREEMPTION_RESTARTS + 5)


@contextmanager
def taken(cpus: float) -> Iterator[None]:
    """Some of Ray's CPUs, in use by another."""
    from ray.util import placement_group, remove_placement_group

    place = placement_group([{"CPU": cpus}])
    assert place.wait(30)
    yield
    remove_placement_group(place)


def test_a_team_is_as_large_as_there_is_room(ray_session) -> None:
    with taken(1.0):
        assert size_now(WorkerGroup((1, 2), {"CPU": 0.99})) == 1
    assert size_now(WorkerGroup((1, 2), {"CPU": 0.99})) == 2
    assert size_now(WorkerGroup((1, 2, 4, 8), {"CPU": 0.99})) == 2


def until(found: Callable[[], bool], running: threading.Thread) -> None:
    while not found():
        assert running.is_alive()
        time.sleep(0.3)


@pytest.mark.timeout(900)
def test_a_team_grows_and_survives_and_the_numbers_are_the_same(
    shapes, ray_session, tmp_path: Path
) -> None:
    """One worker for want of room; two once there is; one of them killed, the other told to go.
    Dropout included, which draws for each clip."""
    study = resolve(Study("elastic", (Arm("a", augmented("mixup")),)), Options(preset="smoke"))
    recipe = replace(
        augmented("mixup")(study.base).pretrain,
        model=ModelRecipe("x3d_tiny", {"dropout": 0.5}),
        # Sums in another order differ in the last bit, and large steps make that grow.
        optim=OptimRecipe(steps=STEPS, batch=16, lr=0.0003, schedule="onecycle"),
        validations=1,
    )
    stage = Stage("pretrain", recipe, (), "test")
    alone = Job(stage, str(tmp_path / "alone"), study.data)
    run_stage(alone)
    job = replace(alone, store=str(tmp_path / "elastic"), sizes=(1, 2), settle=0.0,
                  worker_resources={"CPU": 0.99}, checkpoint_every=1.0,
                  executor=RayExecutor())  # fmt: skip
    log = job.folder / "metrics.jsonl"

    def steps() -> int:
        return len(log.read_text().splitlines()) if log.is_file() else 0

    training = threading.Thread(target=run_stage, args=(job,), daemon=True)
    with taken(1.0):
        training.start()
        until(lambda: steps() >= 5, training)
    until(lambda: len(workers()) == 2 and steps() >= 12, training)
    seen = steps()
    os.kill(workers()[0], signal.SIGKILL)
    until(lambda: len(workers()) == 2 and steps() >= seen + 5, training)
    os.kill(workers()[1], signal.SIGTERM)
    training.join()
    how = json.loads((job.folder / "provenance.json").read_text())
    assert how["teams"] == [1, 2, 2, 2] and how["workers"] == 2
    curves = [curve(which.folder) for which in (alone, job)]
    assert sorted(curves[1]) == list(range(1, STEPS + 1))
    assert list(curves[1].values()) == pytest.approx(list(curves[0].values()), abs=1e-4)
    states = [checkpoint.load(w.folder / "checkpoints/last.pt")["model"] for w in (alone, job)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=1e-3, msg=key)


def curve(folder: Path) -> dict[int, float]:
    """Loss by step; the last line of a step counts."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {row["step"]: row["loss"] for row in sorted(rows, key=lambda r: r["step"])
            if "loss" in row}  # fmt: skip


def workers() -> list[int]:
    """Processes of this test's Ray that train in a team now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return sorted(found)


def test_ray_train_looks_at_its_workers_often(ray_session, tmp_path) -> None:
    """A worker that reports waits for the next look; Ray's own two seconds each would add up."""

    def work(context: Any) -> dict[str, Any]:
        context.report({"step": 1})
        return {"interval": os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]}

    found = run_workers(WorkerGroup((1,), {"CPU": 0.99}), tmp_path, work)
    assert found == {"interval": "0.1", "teams": [1]}
