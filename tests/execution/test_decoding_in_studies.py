"""Stages whose batches Ray Data decodes: the same weights, and resources that never starve."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdet.cli.experiment import Options, resolve
from ssdet.execution.executor import RayExecutor
from ssdet.execution.session import plan_resources
from ssdet.execution.workers import WorkerGroup, size_now
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import Arm, Store, Study, augmented, plan, run
from ssdet.training import checkpoint
from ssdet.training.preemption import Preempted


@pytest.fixture(scope="module")
def study(shapes: Path) -> Study:
    """Pretraining and fine-tuning on videos that are decoded clip by clip."""
    arms = (Arm("mixup", augmented("mixup")),)
    study = resolve(Study("decoded", arms), Options(preset="smoke", seeds=1))
    base = replace(study.base, probe=None)
    return replace(study, base=base, data=replace(study.data, cache=False))


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory) -> Store:
    """The study's trainings, each in this process, which decodes."""
    store = Store.open(tmp_path_factory.mktemp("alone"))
    for stage in trainings(study):
        run_stage(Job(stage, store.uri, study.data))
    return store


def trainings(study: Study) -> list[Any]:
    return [s for s in plan(study).stages.values() if s.kind in ("pretrain", "finetune")]


def weights(store: Store, stage: Any) -> dict[str, torch.Tensor]:
    path = store.folder(stage.id) / "checkpoints" / "last.pt"
    return checkpoint.load(path)["model"]


def assert_same(stage: Any, *stores: Store) -> None:
    ours, theirs = (weights(store, stage) for store in stores)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.timeout(900)
def test_a_study_has_the_same_weights(study, alone, ray_session, tmp_path) -> None:
    store = Store.open(tmp_path)
    run(study, store, decoders=1)
    for stage in trainings(study):
        assert_same(stage, store, alone)
        how = json.loads((store.folder(stage.id) / "provenance.json").read_text())
        assert (how["decoders"], how["loaders"]) == (1, 0)


@pytest.mark.timeout(900)
def test_a_team_leaves_room_for_its_decoders_and_goes_on_where_it_was(
    study, alone, ray_session, tmp_path
) -> None:
    """On two cores one worker with its decoder; stopped after two steps, without a team before."""
    stage, store = trainings(study)[0], Store.open(tmp_path)
    told: list[float] = []

    def stop(metrics: dict[str, float]) -> None:
        told.append(metrics["step"])
        if told[-1] == 2:
            raise Preempted("stopped")

    job = Job(
        stage, store.uri, study.data, executor=RayExecutor(), decoders=1, checkpoint_every=0.0
    )
    with pytest.raises(Preempted):
        run_stage(job, stop)
    team = replace(job, sizes=(1, 2), worker_resources={"CPU": 0.99})
    run_stage(team)
    assert_same(stage, store, alone)
    how = json.loads((job.folder / "provenance.json").read_text())
    assert how["teams"] == [1]
    steps = [json.loads(line)["step"] for line in (job.folder / "metrics.jsonl").open()]
    assert steps.count(1) == 1 and steps.count(4) >= 1


def test_a_team_counts_its_decoders(ray_session) -> None:
    assert size_now(WorkerGroup((1, 2), {"CPU": 0.99}, decoders=1)) == 1


def test_what_cannot_help_is_refused_at_once(study, tmp_path) -> None:
    with pytest.raises(ValueError, match="loaders=2 and decoders=1.*set one of the two"):
        run(study, tmp_path, loaders=2, decoders=1)
    kept = replace(study, data=replace(study.data, cache=True))
    with pytest.raises(ValueError, match="decoders=1.*are cached"):
        run(kept, tmp_path, decoders=1)


GPU = {"CPU": 8, "GPU": 2}


@pytest.mark.parametrize(
    ("asked", "nodes", "workers", "at_once"),
    [
        ({"decoders": 1}, {"CPU": 2}, 1, 1),
        ({"decoders": 3}, [{"CPU": 6}, {"CPU": 6}], 1, 3),
        ({"decoders": 3, "gpus_per_worker": 1}, [GPU, {"CPU": 7}], 1, 2),
        ({"decoders": 3, "gpus_per_worker": 1}, [GPU, GPU, {"CPU": 6}, {"CPU": 1}], 1, 2),
        ({"decoders": 2, "workers": 2}, [{"CPU": 3}] * 4, 2, 2),
        ({"decoders": 1, "workers": "1:8"}, [{"CPU": 5}, {"CPU": 0}], 2, 1),
        ({"decoders": 1, "workers": "1:8", "concurrent": 2}, {"CPU": 9}, 2, 2),
    ],
)
def test_decoders_have_cores_beside_the_workers(asked, nodes, workers, at_once) -> None:
    planned = plan_resources(cluster=nodes, **asked)
    assert (planned.workers, planned.concurrent) == (workers, at_once)
    assert planned.decoders == asked["decoders"]


@pytest.mark.parametrize(
    ("asked", "nodes", "parts"),
    [
        ({"decoders": 2}, {"CPU": 2}, ["2 decoders with 1 CPU:", "fewer workers or decoders"]),
        ({"decoders": 1, "gpus_per_worker": 1}, GPU, ["1 decoder with 1 CPU on nodes without"]),
        ({"decoders": -1}, GPU, ["decoders=-1"]),
    ],
)
def test_too_few_cores_are_an_error(asked, nodes, parts) -> None:
    with pytest.raises(ValueError) as error:
        plan_resources(cluster=nodes, **asked)
    assert all(part in str(error.value) for part in parts), str(error.value)
