"""Work of each kind of stage, from its parents' folders to its own."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.features.shards import FeatureSet
from ssdet.data.loading.clips import Clips
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.evaluation.ensembling.combination import mean_probability
from ssdet.inference.fine_features import FineFeatureReader
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import Network, frame_targets, predict
from ssdet.stages import features
from ssdet.stages.job import FEATURES, LAST, Job, Result, logged, with_rungs
from ssdet.stages.provenance import Attempt, provenance
from ssdet.stages.scoring import score_splits
from ssdet.stages.validation import validation_of, validation_truth
from ssdet.store.base import Store
from ssdet.studies.graph.identity import FrozenProbe
from ssdet.studies.scoring import Scoring
from ssdet.system.safe_files import write_json
from ssdet.training import checkpoint
from ssdet.training.context import WORKERS_RESULT, Context, Report
from ssdet.training.heads.probe import extract, fit
from ssdet.training.loop import network, train
from ssdet.training.preemption import Preempted, watch_preemption
from ssdet.training.pretrained_weights import starting_weights
from ssdet.training.recipe import TrainRecipe


def run_stage(job: Job, report: Report = lambda metrics: None, wait: bool = True) -> Result:
    """Run a stage, or wait for the process that does, and return its result.

    A finished stage is not run again; one that was stopped goes on from its last checkpoint.
    Scores of the job's protocol are kept beside the result, of which they are no part. Without
    `wait`, BlockingIOError where another process runs it. Preempted where training was asked to
    stop: its checkpoint is there, the same call goes on.
    """
    store = Store.open(job.store)
    with store.lock(job.stage.id, wait):
        for finished in (store.result, store.retry_finish):
            if (result := finished(job.stage.id)) is not None:
                return result
        torch.set_num_threads(job.threads)
        store.begin(job.stage.id)
        write_json(job.folder / "recipe.json", job.stage.identity)
        attempt = begin_attempt(job.folder)
        try:
            with store.keep_progress_published(job.stage.id) if job.alone else nullcontext():
                result = KINDS[job.stage.kind](job, report)
        except Preempted:
            if job.alone:  # a team has published its own, and this machine may have an older one
                store.publish_progress(job.stage.id)
            raise
        teams = result.pop("teams", [job.workers])
        how = {"workers": teams[-1], "threads": job.threads}
        how |= {"loaders": job.loaders, "decoders": job.decoders}
        if job.sizes:
            how["teams"] = teams
        gpus = teams[-1] * job.worker_resources.get("GPU", 0)
        gpu = result.pop("gpu", None)
        write_json(job.folder / "provenance.json", provenance(attempt, gpu, gpus, how))
        result = store.finish(job.stage.id, result)
    if scored := result.get("scores"):
        split = "test" if "test" in scored else "val"
        Scoring.of(store, job.data, job.protocol).reading(job.stage.id, split)
    return result


def begin_attempt(folder: Path) -> Attempt:
    """Note that work on a stage begins; what earlier attempts took is kept, until their last sign
    of life."""
    path, now, before, number = folder / "attempt.json", time.time(), 0.0, 1
    if path.is_file():
        last = json.loads(path.read_text())
        newest = max(file.stat().st_mtime for file in folder.rglob("*") if file.is_file())
        before = last["before"] + max(0.0, newest - last["started"])
        number = last["number"] + 1
    attempt = Attempt(number, now, before, platform.node())
    write_json(path, asdict(attempt))
    return attempt


def _pretrain(job: Job, report: Report) -> Result:
    return _train(job, report, "upstream")


def _finetune(job: Job, report: Report) -> Result:
    return _train(job, report, "downstream")


def _train(job: Job, report: Report, role: str) -> Result:
    classes = job.data.manifests[role].classes
    # For whoever runs the network on other videos; no part of what names the stage.
    rate = job.data.fps if role == "downstream" else 0.0
    seen = {"classes": classes, "decode_size": job.data.decode_size, "fps": rate}
    write_json(job.folder / "data.json", seen)
    recipe: TrainRecipe = job.stage.recipe
    initial: dict[str, Tensor] | None
    if job.stage.parents and job.stage.parents[0].kind != "extract":
        initial = checkpoint.load_weights(job.parent(part=LAST) / LAST)
    else:
        initial = starting_weights(recipe, recipe.head_classes(len(classes)))
    if recipe.fine_steps:
        initial = {**(initial or {}), **_fine_weights(job)}
    if job.alone:
        with watch_preemption(*job.executor.preemption_signs()) as stop_reason:
            context = Context(job.folder, report=report, stop_reason=stop_reason)
            return train_worker(context, job, role, initial)
    store = Store.open(job.store)
    store.publish_progress(job.stage.id)
    download = partial(store.fetch_progress, job.stage.id, exactly=True)
    return job.executor.run_workers(job, train_team, job, role, initial, download_results=download)


def _fine_weights(job: Job) -> dict[str, Tensor]:
    """The fine stream's weights by their names in a network of two streams, which may keep its last
    layers."""
    maps = next(parent for parent in job.stage.parents if parent.kind == "extract")
    folder = Store.open(job.store).fetch(maps.parents[0].id, LAST)
    return {f"fine.{name}": value for name, value in checkpoint.load_weights(folder / LAST).items()}


def train_team(
    context: Context, job: Job, role: str, initial: Mapping[str, Tensor] | None
) -> Result:
    """`train_worker` as one of several, which may be on machines that share no disk: all start from
    the checkpoint that the store has, and the first one's files go back there. `preempted` says
    why where they were asked to stop."""
    store = Store.open(job.store)
    context.folder = job.folder
    store.fetch_progress(job.stage.id, exactly=True)
    with nullcontext() if context.rank else store.keep_progress_published(job.stage.id):
        try:
            result = train_worker(context, job, role, initial)
        except Preempted as error:
            result = {"preempted": str(error)}
    if context.rank:
        return result
    (context.folder / WORKERS_RESULT).write_text(json.dumps(result))
    store.publish_progress(job.stage.id)
    return result


def train_worker(
    context: Context, job: Job, role: str, initial: Mapping[str, Tensor] | None
) -> Result:
    """The training loop of a job in this process, alone or as one of several workers."""
    torch.set_num_threads(job.threads)
    recipe: TrainRecipe = job.stage.recipe
    context.report = with_rungs(job, context.report)
    if context.rank == 0:
        context.report = logged(job.folder / "metrics.jsonl", context.report)
    context.loaders, context.decode = job.loaders, job.executor.decoder(job.decoders)
    context.checkpoint_every = job.checkpoint_every
    reader = job.data.reader(role)
    clips = Clips(job.data.split(role, "train"), reader, recipe.clip, recipe.seed)
    validation, fine_reader = job.data.split(role, recipe.validate_on), fine_reader_of(job, recipe)
    truth = validation_truth(job, recipe)
    validate = validation_of(recipe, validation, reader, context.device, fine_reader, truth)
    result = train(recipe, clips, context, initial, validate, fine_reader)
    expected = len(clips.manifest.videos) + len(clips.manifest.missing)
    gpu = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None
    return {**result, "gpu": gpu, "videos": len(clips.manifest.videos), "videos_expected": expected}


def fine_reader_of(job: Job, recipe: TrainRecipe) -> FineFeatureReader | None:
    """The fine stream's features that a stage's network reads beside its clips."""
    if not recipe.fine_steps:
        return None
    place = [parent.kind for parent in job.stage.parents].index("extract")
    features = FeatureSet.open(job.parent(place, FEATURES) / FEATURES)
    return FineFeatureReader(features, recipe.fine_steps)


def _predict(job: Job, report: Report) -> Result:
    context = Context(job.folder)
    parent = job.stage.parents[0]
    if parent.kind == "fit_head":
        return features.predict(job, report)
    model = _trained(job, parent.recipe, job.data.manifests["downstream"].num_classes)
    model.to(context.device).eval()
    return _score(job, model, job.stage.recipe, context.device, fine_reader_of(job, parent.recipe))


def _probe(job: Job, report: Report) -> Result:
    recipe: FrozenProbe = job.stage.recipe
    device = Context(job.folder).device
    if job.stage.parents:
        parent = job.stage.parents[0].recipe
        model = _trained(job, parent, job.data.manifests["upstream"].num_classes)
    else:
        assert recipe.fresh is not None
        classes = job.data.manifests["downstream"].num_classes
        model = network(recipe.fresh, classes, starting_weights(recipe.fresh, classes))
    model.to(device).eval()
    backbone: Network = model.features  # type: ignore[assignment]
    reader = job.data.reader("downstream")
    training = job.data.split("downstream", "train")
    inputs, labels, broken = extract(backbone, training, reader, recipe.probe.predict, device)
    probe = fit(backbone, inputs, labels, recipe.probe)
    return {**_score(job, probe, recipe.probe.predict, device), "unreadable_train": broken}


def _trained(job: Job, recipe: TrainRecipe, classes: int) -> nn.Module:
    model = network(recipe, classes)
    model.load_state_dict(checkpoint.load_weights(job.parent(part=LAST) / LAST))
    return model


def _score(
    job: Job,
    network: Network,
    recipe: PredictRecipe,
    device: torch.device,
    fine_reader: FineFeatureReader | None = None,
) -> Result:
    reader = job.data.reader("downstream")

    def write(manifest: Manifest, writer: PredictionWriter) -> dict[str, str]:
        return predict(network, manifest, reader, recipe, writer, device, fine_reader)

    return score_splits(job, reader, write)


def _ensemble(job: Job, report: Report) -> Result:
    reader = job.data.reader("downstream")
    result: Result = {"scores": {}}
    for name in ("val", "test"):
        part, parents = f"predictions/{name}", range(len(job.stage.parents))
        folders = [job.parent(i, part) / part for i in parents]
        if not folders[0].is_dir():
            continue
        members = [PredictionSet.open(folder) for folder in folders]
        mean = mean_probability(members, job.folder / "predictions" / name)
        targets = frame_targets(job.data.split("downstream", name), reader)
        result["scores"][name] = asdict(dense_map(mean, targets))
    return result


KINDS: dict[str, Callable[[Job, Report], Result]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "predict": _predict,
    "validate": _predict,
    "probe": _probe,
    "ensemble": _ensemble,
    "extract": features.extract,
    "fit_head": features.fit,
}
