"""Searches as they run: trials on Ray, stages that are stopped, drivers that are killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import ray
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial

from ssdet.execution.search_driver import run_search
from ssdet.search.space import chain
from ssdet.search.trials import DATABASE, SearchResult, Trial, load_study, result, result_of
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.store.base import Store
from ssdet.studies.changes import scratch

optuna.logging.set_verbosity(optuna.logging.ERROR)
ROOT = Path(__file__).resolve().parents[2]
LR = {"finetune_lr": FloatDistribution(1e-4, 1.0, log=True)}


def test_on_ray_trials_are_real_and_shared(smoke, store, ray_session) -> None:
    search = smoke(
        {"pretrain.augment": ["mixup"], "finetune_lr": [0.01, 0.02, 1e30]},
        name="real", trials=3, objectives=("map", "macs"),
        first=tuple({"pretrain.augment": "mixup", "finetune_lr": lr} for lr in (0.01, 0.02, 1e30)),
    )  # fmt: skip
    found = run_search(search, store)
    assert found.counts() == {"complete": 2, "diverged": 1}
    assert "learning rate" in found.trials[2].error and found.trials[2].values["map"] == 0
    done = sorted(path.parent.name.split("-")[0] for path in store.root.glob("stages/*/DONE"))
    assert done == ["finetune"] * 2 + ["pretrain"] + ["validate"] * 2
    for trial in found.ranked():
        stage = store.result(trial.stages["validate"])
        assert stage is not None and list(stage["scores"]) == ["val"]
        assert trial.values["map"] == stage["scores"]["val"]["value"]
        folder = store.folder(trial.stages["validate"])
        assert [path.name for path in (folder / "predictions").iterdir()] == ["val"]
        assert list(trial.rungs) == [1, 2] and trial.values["macs"] > 1e5
        assert trial.ray_trial and trial.seconds > 0
    assert not list((found.folder / "drivers").iterdir())


def test_a_stage_that_is_stopped_is_not_done_and_ends_as_if_it_never_was(smoke, store) -> None:
    def report(metrics):
        if "rung" in metrics:
            rungs.append((metrics["rung"], metrics["rungs"], metrics["map"]))
            if stops:
                raise SystemExit  # as Tune ends the thread of a stopped trial

    search = smoke(LR)
    experiment = scratch(search.experiment(FixedTrial({"finetune_lr": 0.1})))
    stage = chain(experiment, search.data).stages[0]
    job = Job(stage, str(store.root), search.data, checkpoint_every=0, ranked=True)
    rungs, stops = [], True
    with pytest.raises(SystemExit):
        run_stage(job, report)
    assert store.result(stage.id) is None and [rung[:2] for rung in rungs] == [(1, 2)]
    stops = False
    ended = run_stage(job, report)
    assert store.result(stage.id) == ended and [rung[0] for rung in rungs][-1] == 2
    other = Store.open(store.root / "other")
    whole = run_stage(replace(job, store=str(other.root)))
    assert whole == ended and rungs[-1][2] == whole["validation"]


def by_its_rate(chain, report):
    rate = next(stage for stage in chain.stages if stage.kind == "finetune").recipe.optim.lr
    for rung in (1, 2):
        report({"rung": rung, "rungs": 2, "map": rate})
    if rate == 0.5:
        raise RuntimeError("a fault of its own")
    return {"map": float("nan") if rate == 0.75 else rate}


def test_on_ray_faults_and_stops_are_told_apart(smoke, store, ray_session) -> None:
    rates = [1.0, 0.5, 0.75, 0.25, 2.0]
    first = tuple({"finetune_lr": rate} for rate in rates)
    search = smoke({"finetune_lr": rates}, name="ends", trials=5, first=first, scheduler="asha")
    found = run_search(search, store, concurrent=1, evaluate=by_its_rate)
    ends = {trial.params["finetune_lr"]: trial.state for trial in found.trials}
    assert ends == {1.0: "complete", 0.5: "pruned", 0.75: "pruned", 0.25: "pruned", 2.0: "complete"}
    loose = replace(search, name="loose", scheduler=None)
    found = run_search(loose, store, concurrent=1, evaluate=by_its_rate)
    ends = {trial.params["finetune_lr"]: trial.state for trial in found.trials}
    assert ends == {
        1.0: "complete",
        0.5: "failed",
        0.75: "failed",
        0.25: "complete",
        2.0: "complete",
    }
    assert any("a fault of its own" in trial.error for trial in found.trials)


SCRIPT = """
import sys, time
from optuna.distributions import FloatDistribution
from ssdet.studies import preset
from ssdet.studies.data import moving_shapes
from ssdet.search.space import Search
from ssdet.execution.search_driver import run_search

def slow(chain, report):
    time.sleep(0.5)
    rate = next(stage for stage in chain.stages if stage.kind == "finetune").recipe.optim.lr
    report({"rung": 1, "rungs": 2, "map": rate / 2})
    time.sleep(0.5)
    return {"map": rate}

if __name__ == "__main__":
    chosen = preset("smoke")
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    space = {"finetune_lr": FloatDistribution(0.01, 1)}
    search = Search("killed", space, trials=6, base=chosen.experiment, data=data)
    run_search(search, sys.argv[1], sys.argv[2], concurrent=1, evaluate=slow)
"""


@pytest.fixture
def driver(shapes, tmp_path, ray_session):
    """Starts a driver of the search `killed` in a folder, on this Ray: driver("a")."""
    address = ray.get_runtime_context().gcs_address
    script, started = tmp_path / "script.py", []
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, str(script), str(tmp_path / name), address]
        with open(tmp_path / f"{len(started)}.log", "w") as log:
            started.append(subprocess.Popen(command, env=environment, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(store: Store, process: subprocess.Popen, *states: str) -> SearchResult:
    """The search `killed` as soon as it has trials in these states."""
    folder, study = store.root / "searches" / "killed", None
    while process.poll() is None:
        time.sleep(0.1)
        if study is None and (folder / DATABASE).is_file():
            study = load_study(folder)
        found = result_of(study, folder) if study else SearchResult("killed", folder, (), ())
        if all(found.counts().get(state, 0) >= states.count(state) for state in states):
            return found
    raise AssertionError(f"it ended before it had trials in {states}")


def drawn(trials: tuple[Trial, ...]) -> list[tuple]:
    """What does not depend on when trials ran, and where."""
    return [(t.number, t.state, t.params, t.stages, t.values, t.rungs) for t in trials]


def test_kill_9_in_the_middle_and_the_same_command_again(driver, tmp_path) -> None:
    store = Store.open(tmp_path / "store")
    first = driver("store")
    before = wait_for(store, first, "complete", "running")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert driver("store").wait() == 0
    after = result(store, "killed")
    assert driver("whole").wait() == 0
    whole = result(Store.open(tmp_path / "whole"), "killed")
    assert drawn(after.trials) == drawn(whole.trials)
    assert [trial.state for trial in after.trials] == ["complete"] * 6
    assert before.trials[0] == after.trials[0]


def test_two_drivers_share_a_search_and_one_takes_over_from_the_other(driver, tmp_path) -> None:
    store = Store.open(tmp_path / "store")
    first, second = driver("store"), driver("store")
    wait_for(store, first, "running", "running")
    study = load_study(store.root / "searches" / "killed")
    by = {trial.user_attrs.get("driver") for trial in study.trials}
    assert len(by) == 2
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait() == 0
    trials = result(store, "killed").trials
    assert [(t.number, t.state) for t in trials] == [(n, "complete") for n in range(6)]
    assert len({t.params["finetune_lr"] for t in trials}) == 6
    assert all(t.values["map"] == t.params["finetune_lr"] for t in trials)


def test_a_finished_training_is_judged_as_one_that_runs(smoke, store, ray_session) -> None:
    search = smoke(
        {"finetune_lr": [0.01, 1e-9]}, name="first", trials=2, change=scratch, scheduler="asha",
        first=({"finetune_lr": 0.01}, {"finetune_lr": 1e-9}),
    )  # fmt: skip
    whole = run_search(replace(search, name="whole", scheduler=None), store, concurrent=1)
    found = run_search(search, store, concurrent=1)
    for ours, theirs in zip(found.trials, whole.trials, strict=True):
        assert ours.stages == theirs.stages and ours.rungs.items() <= theirs.rungs.items()
    assert found.trials[0].rungs == whole.trials[0].rungs
    lags = whole.trials[1].rungs[1] < whole.trials[0].rungs[1]
    assert found.trials[1].state == ("pruned" if lags else "complete")
