"""Two Ray Train workers and one process see the same loss curve."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssdet.cli.experiment import Options, resolve
from ssdet.execution.executor import RayExecutor
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import Arm, Study, augmented
from ssdet.studies.graph.identity import Stage
from ssdet.training import ModelRecipe, OptimRecipe, checkpoint


@pytest.mark.timeout(900)
@pytest.mark.parametrize("depth", ["input", "random"])
def test_two_workers_are_one(shapes, ray_session, tmp_path: Path, depth) -> None:
    study = resolve(Study("workers", (Arm("a", augmented("mixup")),)), Options(preset="smoke"))
    recipe = replace(
        augmented("mixup")(study.base).pretrain,
        model=ModelRecipe("x3d_tiny", {"dropout": 0.0}),
        # Sums in another order differ in the last bit, and large steps make that grow.
        optim=OptimRecipe(steps=20, batch=16, lr=0.002, schedule="onecycle"),
        validations=1,
        mix_depth=depth,
    )
    stage = Stage("pretrain", recipe, (), "test")
    curves, results, states = {}, {}, {}
    for workers in (1, 2):
        job = Job(stage, str(tmp_path / str(workers)), study.data, workers=workers,
                  worker_resources={"CPU": 0.99}, executor=RayExecutor())  # fmt: skip
        results[workers] = run_stage(job)
        rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").open()]
        curves[workers] = [row["loss"] for row in rows if "loss" in row]
        states[workers] = checkpoint.load(job.folder / "checkpoints" / "last.pt")["model"]
    assert len(curves[1]) == 20
    assert curves[2] == pytest.approx(curves[1], abs=1e-4)
    assert results[2]["best_validation"] == pytest.approx(results[1]["best_validation"], abs=0.05)
    assert states[1].keys() == states[2].keys()
    for key, value in states[1].items():
        torch.testing.assert_close(states[2][key], value, rtol=1e-2, atol=1e-3, msg=key)
