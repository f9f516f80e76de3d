"""`ssdet ensemble` on a store of the real layout."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssdet import results
from ssdet.cli.ensemble import command
from ssdet.evaluation import PredictionSet
from ssdet.results.queries.ensembles import Query


def test_the_command(finished, capsys):
    """On a store of the real layout: table, JSON, and exit statuses."""
    store = ["--store", str(finished.store.root), "--resamples", "20"]
    study = finished.plan.study.name
    assert command([*store, "--where", f"studies={study}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {m["run"] for m in told["ensembles"][1]["members"]} == {
        finished.id(arm.name, 1) for arm in finished.plan.study.arms if not arm.members
    }
    sets = [PredictionSet.open(finished.store.folder(m["run"]) / "predictions" / "test")
            for m in told["ensembles"][1]["members"]]  # fmt: skip
    truth = np.concatenate([finished.targets["test"][video] for video in sets[0]])
    mean = np.mean([np.concatenate(list(s.values())).astype(float) for s in sets], axis=0)
    seen = truth.any(axis=0)
    expected = average_precision_score(truth[:, seen], mean[:, seen], average="macro")
    assert told["ensembles"][1]["score"]["value"] == pytest.approx(expected, abs=5e-3)
    assert command([*store, "--method", "rank_mean", "--fit", "greedy"]) == 0
    shown = capsys.readouterr().out
    for part in ("seed 2:", "rank_mean, greedy fitted on val", "best single: ", "dense_map/v1",
                 "correlation", finished.id("cls", 2)):  # fmt: skip
        assert part in shown
    assert results.open(finished.store.root).ensemble(Query({"seed": 1})).query.where == {"seed": 1}


def test_the_command_says_what_is_wrong(finished, tmp_path, capsys):
    store = ["--store", str(finished.store.root)]
    assert command([*store, "--where", "augment"]) == 2
    assert command([*store, "--method", "weighted"]) == 2
    assert command([*store, "--where", "nothing=1"]) == 1
    assert command([*store, "--split", "val", "--fit", "weights"]) == 1
    assert command(["--store", str(tmp_path / "none")]) == 1
    told = capsys.readouterr().err
    for part in ("expected NAME=VALUE", "nothing says which weights", "no column nothing",
                 "report another", "no store in"):  # fmt: skip
        assert part in told
    with pytest.raises(SystemExit) as stop:
        command(["--method", "median"])
    assert stop.value.code == 2
