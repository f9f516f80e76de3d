"""Searches as they run: trials on Ray, stages that are stopped, drivers that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, TrialState

from ssdet.execution.search_driver import run_search
from ssdet.search.space import chain
from ssdet.search.trials import read
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
        assert list(trial.rungs) == ["1", "2"] and trial.values["macs"] > 1e5
        assert trial.ray_trial and trial.seconds > 0
    assert not (found.folder / "ray").exists()


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
    return {"map": 0.5}

if __name__ == "__main__":
    chosen = preset("smoke")
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    space = {"finetune_lr": FloatDistribution(0.01, 1)}
    search = Search("killed", space, trials=8, base=chosen.experiment, data=data)
    found = run_search(search, sys.argv[1], concurrent=2, evaluate=slow)
    print(len(found.trials))
"""


def test_kill_9_in_the_middle_and_the_same_command_again(shapes, tmp_path) -> None:
    script, store = tmp_path / "script.py", tmp_path / "store"
    script.write_text(SCRIPT)
    log = store / "searches" / "killed" / "trials.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(store)]
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while driver.poll() is None:
        ends = [trial.state for trial in read(log).values()]
        if "complete" in ends and "running" in ends:
            break
        time.sleep(0.05)
    assert driver.poll() is None, "it ended before it could be killed"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = read(log)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = read(log)
    counts = [trial.state for trial in after.values()]
    assert counts.count("complete") == 8 and counts.count("running") == 0
    zombies = {n for n, trial in after.items() if trial.state == "interrupted"}
    # Another one may have been asked for and not yet written down.
    assert {n for n, trial in before.items() if trial.state == "running"} <= zombies != set()
    # One that was killed before its values were drawn has nothing to be tried again with.
    drawn = {n for n in zombies if after[n].params}
    assert {t.again for t in after.values()} - {None} == drawn
    study = optuna.load_study(
        study_name="killed", storage=f"sqlite:///{store}/searches/killed/optuna.db"
    )
    for trial in study.trials:
        failed = trial.number in zombies
        assert trial.state == (TrialState.FAIL if failed else TrialState.COMPLETE)
        # A zombie may have been killed between its proposal and the note of its stages.
        stages = trial.user_attrs.get("stages", {}) if failed else trial.user_attrs["stages"]
        assert stages == after[trial.number].stages
    declared = json.loads((store / "searches" / "killed" / "search.json").read_text())
    assert declared["objectives"] == ["map"]
