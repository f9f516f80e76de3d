"""Runs whose store is far away: asked for, gone on with and trained from other machines."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssdet.evaluation import PredictionSet
from ssdet.execution.executor import RayExecutor
from ssdet.results.cleaning import remove_stage
from ssdet.results.queries.results import Results
from ssdet.stages import kinds as stages
from ssdet.stages.checkpoint_loader import load_networks
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.store.base import Store
from ssdet.studies import plan
from ssdet.studies.graph.identity import Stage, data_fingerprint
from ssdet.studies.graph.record import write_record
from ssdet.training import checkpoint

pytestmark = pytest.mark.usefixtures("quick")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints" / "last.pt")["model"]


@pytest.fixture(scope="session")
def finished(new_bucket, study, tmp_path_factory):
    """A study that was run, stage by stage, on a machine that is gone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SSDET_CACHE", str(tmp_path_factory.mktemp("gone")))
    bucket, planned = new_bucket(), plan(study)
    store = Store.open(bucket.uri("runs"))
    write_record(store, planned)
    for stage in planned.stages.values():
        run_stage(Job(stage, store.uri, study.data))
    patch.undo()
    return bucket, planned


def test_results_are_asked_from_a_third_machine(finished, on) -> None:
    bucket, planned = finished
    on("third")
    results = Results.open(bucket.uri("runs"))
    assert len(results.stages) == len(planned.stages)
    assert not [*results.store.root.rglob("*.pt"), *results.store.root.rglob("*.f16")]
    run = results.best("dense_map")
    assert isinstance(run.predictions("test"), PredictionSet) and run.load_model()
    assert load_networks(run.id, bucket.uri("runs"))[0].classes
    run.predictions("test").verify()
    assert [path.name for path in results.store.root.rglob("*.pt")] == ["last.pt"]
    table = results.table("afar")
    assert table.rows[0].cells["finetuned"].mean == run.scores["test"]["value"]
    assert not results.faults


def test_children_read_their_parents_from_the_store(finished, on, study, monkeypatch) -> None:
    """The last stage alone, on a machine that has nothing."""
    bucket, planned = finished
    last = planned.runs[0].predict
    remove_stage(Store.open(bucket.uri("runs")), last.id, force=True)
    on("fourth")
    monkeypatch.setitem(stages.KINDS, "pretrain", None)
    result = run_stage(Job(last, bucket.uri("runs"), study.data))
    assert result["scores"]["test"]["videos_scored"] == 8


def test_training_on_videos_from_afar_is_the_same(bucket, shapes, on, study, tmp_path) -> None:
    """Decoded by processes of their own, which read the bucket themselves."""
    for path in (shapes / "upstream").rglob("*.*"):
        key = f"data/{path.relative_to(shapes).as_posix()}"
        bucket.client().upload_file(str(path), bucket.name, key)
    clips = replace(study.base.pretrain, optim=replace(study.base.pretrain.optim, steps=3))
    here = replace(study.data, cache=False)
    place = bucket.uri("data/upstream/annotations.csv"), bucket.uri("data/upstream/videos")
    there = replace(here, upstream=replace(here.upstream, path=place[0], videos=place[1]))
    assert data_fingerprint(there, "pretrain") == data_fingerprint(here, "pretrain")
    stage = Stage("pretrain", clips, (), data_fingerprint(there, "pretrain"))
    jobs = [
        Job(stage, str(tmp_path / name), data, loaders=loaders)
        for name, data, loaders in (("local", here, 0), ("afar", there, 2))
    ]
    for job in jobs:
        run_stage(job)
    ours, theirs = weights(jobs[0].folder), weights(jobs[1].folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


AFAR = """
import os, sys
from ssdet.execution.session import connect
from ssdet.stages.kinds import run_stage
from ssdet.store.base import Store
import pickle
job = pickle.load(open(sys.argv[1], "rb"))
with connect("local"):
    os.environ["SSDET_CACHE"] = sys.argv[2]  # the workers' disk is another
    print(run_stage(job)["steps"])
    print(sorted(os.listdir(job.folder / "checkpoints")), job.folder)
"""


@pytest.mark.slow
def test_workers_on_machines_that_share_no_disk(bucket, on, study, pretraining, tmp_path) -> None:
    import pickle

    resources, recipe = {"CPU": 0.99}, pretraining.recipe
    halves = replace(pretraining, recipe=replace(recipe, optim=replace(recipe.optim, batch=16)))
    job = Job(
        halves,
        bucket.uri(),
        study.data,
        workers=2,
        worker_resources=resources,
        executor=RayExecutor(),
    )
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    command = [sys.executable, "-c", AFAR, str(tmp_path / "job"), str(tmp_path / "driver")]
    environment = {**os.environ, "SSDET_CACHE": str(tmp_path / "workers")}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[0] == "8" and "'last.pt'" in told.stdout
    assert str(tmp_path / "driver") in told.stdout
    assert [*(tmp_path / "workers").glob("stores/*/stages/*/checkpoints/last.pt")]
    on("b")
    assert run_stage(replace(job, workers=1))["steps"] == 8


@pytest.mark.slow
def test_an_experiment_from_the_command_line(bucket, shapes, tmp_path) -> None:
    """All of it on Ray, twice; the second time on another machine, which trains nothing."""
    script = Path(__file__).parents[2] / "experiments" / "ablate_cutmix.py"
    settings = ["--preset", "smoke", "--seeds", "1", "--arms", "window", "--concurrent", "1"]
    tables = []
    for name in ("a", "b"):
        cache = tmp_path / name
        cache.mkdir()
        (cache / shapes.name).symlink_to(shapes)
        told = subprocess.run(
            [sys.executable, str(script), *settings, "--store", bucket.uri("runs")],
            env={**os.environ, "SSDET_CACHE": str(cache)}, capture_output=True, text=True,
            timeout=900,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        tables.append(next(cache.glob("stores/*/tables/*/table.csv")).read_bytes())
        if name == "a":
            done = bucket.objects("runs/done")
            times = bucket.client().list_objects_v2(Bucket=bucket.name, Prefix="runs/done")
    assert tables[0] == tables[1] and bucket.objects("runs/done") == done
    again = bucket.client().list_objects_v2(Bucket=bucket.name, Prefix="runs/done")
    assert [o["ETag"] for o in again["Contents"]] == [o["ETag"] for o in times["Contents"]]
    assert not bucket.objects("runs/leases") and not bucket.objects("runs/resume")
