"""What a plan would cost, from a few steps of the real thing on this machine."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ssdet.studies.plan import Plan, Stage
from ssdet.studies.stages import Job, run_stage
from ssdet.studies.store import Store

STEPS = 6
SCORED_SHARE = 0.15
"""Assumed time of predicting and probing as a share of fine-tuning, until it has been seen."""


def seconds_per_step(plan: Plan) -> dict[str, float]:
    """Seconds of one training step in this process, by kind of training stage.

    A run of one step is compared with one of `STEPS` + 1, after another that warms up, so that
    start-up does not count.
    """
    torch.set_num_threads(1)
    found = {}
    for kind in ("pretrain", "finetune"):
        stages = [stage for stage in plan.stages.values() if stage.kind == kind]
        if not stages:
            continue
        stage = max(stages, key=lambda s: s.recipe.optim.steps)
        times = [_run_seconds(stage, plan, steps) for steps in (1, 1, STEPS + 1)]
        found[kind] = max(1e-4, (times[2] - times[1]) / STEPS)
    return found


def _run_seconds(stage: Stage, plan: Plan, steps: int) -> float:
    optim = replace(stage.recipe.optim, steps=steps)
    short = Stage(stage.kind, replace(stage.recipe, optim=optim, validations=0), (), "calibration")
    with tempfile.TemporaryDirectory() as folder:
        job = Job(short, str(Store.open(Path(folder)).root), plan.study.data)
        started = time.perf_counter()
        run_stage(job)
        return time.perf_counter() - started


def stage_seconds(stage: Stage, rates: Mapping[str, float]) -> float:
    """Estimated seconds of one stage by one worker."""
    if stage.kind in rates:
        return stage.recipe.optim.steps * rates[stage.kind]
    tuned = next((p for p in stage.parents if p.kind == "finetune"), None)
    steps = tuned.recipe.optim.steps if tuned is not None else 100
    return SCORED_SHARE * steps * rates.get("finetune", 0.0)
