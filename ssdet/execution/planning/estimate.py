"""Estimated time and disk space of a plan, from a few measured steps."""

import heapq
import json
import os
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ssdet.data.video.reader import CorruptVideo
from ssdet.evaluation.statistics.comparison import detectable_difference, paired_sd
from ssdet.execution.planning.budget import TRAINING
from ssdet.inference.scoring import score_video
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.store.base import Store
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.plan import Plan
from ssdet.studies.network_costs import clip_macs, row_width, with_fine_stream
from ssdet.studies.scoring import Scoring
from ssdet.system.recipe_json import to_json
from ssdet.training.context import default_device
from ssdet.training.heads.feature_heads import build_head
from ssdet.training.loop import network
from ssdet.training.recipe import TrainRecipe

STEPS = 20
MAX_SECONDS = 60.0
"""Seconds of measuring one kind of training, if `STEPS` steps take longer."""
CPU_MACS = 1e10
"""Forward multiply-adds of the largest step that is measured without a GPU."""
SCORED_VIDEOS = 3
"""Videos per split that are scored to measure the time per frame."""


@dataclass(frozen=True)
class Rate:
    """Measured cost of one kind of training on this machine, in one process."""

    label: str
    seconds: float
    """Seconds of one step."""
    steps: int
    """Number of measured steps."""
    checkpoint_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Cost of every stage of a plan, by id, with one worker on `device`."""

    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    rates: tuple[Rate, ...]
    device: str


def estimate(plan: Plan) -> Estimate:
    """Measure some steps of each kind of training and the scoring of a few videos on this machine.

    Kinds differ in network, clips, batch or read-out. A kind is measured with the augmentation of
    one of its arms, if any has one; all are assumed to cost the same.
    """
    torch.set_num_threads(1)
    chosen: dict[str, Stage] = {}
    for stage in plan.stages.values():
        if stage.kind in TRAINING:
            key = _kind_of_work(stage)
            if key not in chosen or chosen[key].recipe.augment == "none":
                chosen[key] = stage
    rates = {key: _measured(stage, plan) for key, stage in chosen.items()}
    frame_seconds, frames = _scoring(plan)
    seconds, sizes = {}, {}
    classes = plan.study.data.manifests["downstream"].num_classes
    scored = frames["val"] + frames["test"]
    for name, stage in plan.stages.items():
        if stage.kind in TRAINING:
            rate = rates[_kind_of_work(stage)]
            seconds[name] = stage.recipe.optim.steps * rate.seconds
            sizes[name] = 2 * rate.checkpoint_bytes  # last and best
        elif stage.kind == "fit_head":
            videos = len(plan.study.data.split("downstream", "train").videos)
            seconds[name], sizes[name] = _of_head(stage, classes, frames["train"] / max(1, videos))
        elif stage.kind == "extract":
            read = scored + frames["train"]
            seconds[name] = read * frame_seconds
            rows = read / stage.recipe.predict.clip.stride
            sizes[name] = int(2 * rows * row_width(stage.parents[0].recipe, stage.recipe))
        else:
            read = scored + (frames["train"] if stage.kind == "probe" else 0)
            cheap = stage.kind == "ensemble" or "fit_head" in {p.kind for p in stage.parents}
            seconds[name] = 0.0 if cheap else read * frame_seconds
            sizes[name] = int(scored * classes * 2)
    return Estimate(seconds, sizes, tuple(rates.values()), default_device().type)


def _of_head(stage: Stage, classes: int, frames: float) -> tuple[float, int]:
    """Seconds and bytes of training a feature head on videos of so many frames."""
    recipe, features = stage.recipe, stage.parents[0]
    width = row_width(features.parents[0].recipe, features.recipe)
    steps = recipe.crop or max(1, round(frames / features.recipe.predict.clip.stride))
    model = build_head(recipe, width, classes).to(default_device())
    inputs = torch.zeros(recipe.optim.batch, width, steps, device=default_device())
    lengths = torch.full((recipe.optim.batch,), steps, device=default_device())
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        model(inputs, lengths).sum().backward()
    size = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    return (time.perf_counter() - started) * recipe.optim.steps, 2 * size


def _kind_of_work(stage: Stage) -> str:
    recipe = to_json(stage.recipe)
    optim = {name: recipe["optim"][name] for name in ("batch", "accumulate", "amp", "optimizer")}
    parts = [stage.kind, recipe["model"], recipe["clip"], recipe["readout"], optim]
    return json.dumps(parts, sort_keys=True)


def _measured(stage: Stage, plan: Plan) -> Rate:
    """Difference of a longer run and a run of one step, after a warm-up run, so that start-up time
    is left out."""
    _short_run(stage, plan, 1)
    first, _ = _short_run(stage, plan, 1)
    steps = max(2, min(STEPS, int(MAX_SECONDS / max(first, 1e-3))))
    longer, size = _short_run(stage, plan, steps + 1)
    readout = " (classification)" if stage.recipe.readout == "clip" else ""
    batch, tried = stage.recipe.optim.batch, affordable(stage.recipe, plan)
    part = f", of which {tried} were tried" if tried < batch else ""
    label = f"{stage.kind}{readout}, {stage.recipe.model.name}, batch {batch}{part}"
    return Rate(label, max(1e-4, (longer - first) / steps) * batch / tried, steps, size)


def affordable(recipe: TrainRecipe, plan: Plan) -> int:
    """Clips of a measured step: the batch, or without a GPU a part that takes seconds; the time is
    scaled to the batch."""
    batch, group = recipe.optim.batch, recipe.model.norm_group
    if default_device().type == "cuda":
        return batch
    role = "upstream" if recipe.task == "pretrain" else "downstream"
    cost = clip_macs(recipe, plan.study.data.manifests[role].num_classes)
    clips = max(1, min(batch, int(CPU_MACS / cost)))
    return clips if clips == batch or clips < group else clips - clips % group


def _short_run(stage: Stage, plan: Plan, steps: int) -> tuple[float, int]:
    """Seconds of a run from fresh weights, and bytes of its checkpoint."""
    optim = replace(stage.recipe.optim, steps=steps, schedule="constant")
    if (tried := affordable(stage.recipe, plan)) < optim.batch:
        optim = replace(optim, batch=tried, accumulate=1)
    recipe = replace(with_fine_stream(stage.recipe), optim=optim, validations=0)
    short = Stage(stage.kind, recipe, (), "calibration")
    with tempfile.TemporaryDirectory() as folder:
        job = Job(short, str(Store.open(Path(folder)).root), plan.study.data)
        started = time.perf_counter()
        run_stage(job)
        seconds = time.perf_counter() - started
        return seconds, (job.folder / "checkpoints" / "last.pt").stat().st_size


def _scoring(plan: Plan) -> tuple[float, dict[str, float]]:
    """Seconds of scoring a frame, and frames of each split, from a few videos of each."""
    data, device = plan.study.data, default_device()
    reader = data.reader("downstream")
    stage = next(s for s in plan.stages.values() if s.kind == "finetune")
    recipe = next(s.recipe for s in plan.stages.values() if s.kind == "predict")
    classes = data.manifests["downstream"].num_classes
    model = network(with_fine_stream(stage.recipe), classes).to(device).eval()
    frames: dict[str, float] = {}
    spent, seen = 0.0, 0
    for split in ("train", "val", "test"):
        videos = data.split("downstream", split).videos
        lengths = []
        for video in videos[:SCORED_VIDEOS]:
            try:
                lengths.append(reader.frames(video))
                started = time.perf_counter()
                score_video(model, video, reader, recipe, device)
            except CorruptVideo:
                continue  # the scoring stage counts it
            spent, seen = spent + time.perf_counter() - started, seen + lengths[-1]
        frames[split] = len(videos) * sum(lengths) / len(lengths) if lengths else 0.0
    return spent / max(1, seen), frames


def makespan(
    stages: Collection[Stage], seconds: Mapping[str, float], slots: int, workers: int = 1
) -> float:
    """Seconds until the last of the stages ends, `slots` at once, each as soon as its parents are
    done, in the given order; `workers` share a training stage evenly, which is the best case."""
    waiting = {stage.id: stage for stage in stages}
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        busy = {name for _, name in running}
        for name, stage in list(waiting.items()):
            if len(running) == slots:
                break
            if not any(p.id in waiting or p.id in busy for p in stage.parents):
                share = workers if stage.kind in TRAINING else 1
                heapq.heappush(running, (now + seconds[name] / share, name))
                busy.add(name)
                del waiting[name]
        now, _ = heapq.heappop(running)
    return now


def detectable(plan: Plan, store: Store, readout: str = "predict") -> tuple[float, int] | None:
    """Smallest difference (fraction of mAP) of an arm from its baseline that the planned seeds
    detect with 80 % power after Holm's correction, given the noise of the finished seeds; and the
    number of pairs that the noise was estimated from. None until two arms have two seeds each, and
    for one seed.

    The noise is the root mean square of the paired differences' standard deviations over arms.
    """
    study = plan.study
    scores: dict[str, dict[int, float]] = {}
    scoring = Scoring.of(store, study.data, study.protocol)
    for run in plan.runs:
        stage = run.predict if readout == "predict" else run.probe
        result = store.result(stage.id) if stage is not None else None
        if stage is not None and result is not None and "test" in result["scores"]:
            scores.setdefault(run.arm, {})[run.seed] = scoring.value(stage.id)
    pairs = [(scores.get(study.baseline_of(arm), {}), by_seed) for arm, by_seed in scores.items()]
    deviations = [
        (sd, len(base.keys() & s.keys())) for base, s in pairs if (sd := paired_sd(base, s))
    ]
    if not deviations or len(study.seeds) < 2:
        return None
    degrees = sum(n - 1 for _, n in deviations)
    noise = (sum(sd * sd * (n - 1) for sd, n in deviations) / degrees) ** 0.5
    others = max(1, len(study.arms) - 1)
    difference = detectable_difference(noise, len(study.seeds), comparisons=others)
    return difference, sum(n for _, n in deviations)


def slots_here(workers: int, concurrent: int | None) -> int:
    """Number of stages that this machine's cores run at once."""
    return concurrent or max(1, len(os.sched_getaffinity(0)) // workers)
