"""What each kind of stage does, from its parents' folders to its own."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.data.clips import Clips, centre_clip, normalise
from ssdet.data.frames import FrameReader
from ssdet.data.manifest import Manifest
from ssdet.data.video import CorruptVideo
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.evaluation.ensemble import mean_probability
from ssdet.studies.data import Data
from ssdet.studies.plan import FrozenProbe, Stage
from ssdet.studies.provenance import provenance
from ssdet.studies.store import Store, write_json
from ssdet.training import checkpoint
from ssdet.training.context import Context, Report
from ssdet.training.distributed import run_workers
from ssdet.training.inference import Network, PredictRecipe, frame_targets, predict
from ssdet.training.loop import network, train
from ssdet.training.probe import extract, fit
from ssdet.training.recipe import TrainRecipe

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A stage with all that it needs to run anywhere; plain values, so it travels as JSON."""

    stage: Stage
    store: str
    data: Data
    workers: int = 1
    worker_resources: Mapping[str, float] = field(default_factory=dict)
    """What each of several workers asks of Ray."""
    loaders: int = 0
    checkpoint_every: float = 60.0
    threads: int = 1

    @property
    def folder(self) -> Path:
        return Store.open(self.store).folder(self.stage.id)

    def parent(self, index: int = 0) -> Path:
        """Folder of a parent stage."""
        return Store.open(self.store).folder(self.stage.parents[index].id)


def run_stage(job: Job, report: Report = lambda metrics: None) -> Result:
    """Run a stage, or wait for the process that does, and return its result.

    A finished stage is not run again; one that was stopped goes on from its last checkpoint.
    """
    store = Store.open(job.store)
    with store.lock(job.stage.id):
        if (result := store.result(job.stage.id)) is not None:
            return result
        torch.set_num_threads(job.threads)
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / "recipe.json", job.stage.identity)
        started = time.time()
        result = KINDS[job.stage.kind](job, report)
        how = {"workers": job.workers, "threads": job.threads, "loaders": job.loaders}
        gpus = job.workers * job.worker_resources.get("GPU", 0)
        gpu = result.pop("gpu", None)
        write_json(job.folder / "provenance.json", provenance(started, gpu, gpus, how))
        store.finish(job.stage.id, result)
        return result


def logged(path: Path, report: Report) -> Report:
    """A report that also appends a JSON line to a file. A resumed run repeats the steps since its
    checkpoint: the last line of a step counts."""

    def both(metrics: Mapping[str, float]) -> None:
        with open(path, "a") as log:
            log.write(json.dumps(dict(metrics)) + "\n")
        report(metrics)

    return both


def _pretrain(job: Job, report: Report) -> Result:
    return _train(job, report, "upstream", None)


def _finetune(job: Job, report: Report) -> Result:
    initial = None
    if job.stage.parents:
        initial = checkpoint.load_weights(job.parent() / "checkpoints" / "last.pt")
    return _train(job, report, "downstream", initial)


def _train(job: Job, report: Report, role: str, initial: Mapping[str, Tensor] | None) -> Result:
    if job.workers == 1:
        return train_worker(Context(job.folder, report=report), job, role, initial)
    resources = job.worker_resources
    return run_workers(job.workers, resources, job.folder, train_worker, job, role, initial)


def train_worker(
    context: Context, job: Job, role: str, initial: Mapping[str, Tensor] | None
) -> Result:
    """The training loop of a job in this process, alone or as one of several workers."""
    torch.set_num_threads(job.threads)
    if context.rank == 0:
        context.report = logged(job.folder / "metrics.jsonl", context.report)
    recipe: TrainRecipe = job.stage.recipe
    context.loaders, context.checkpoint_every = job.loaders, job.checkpoint_every
    reader = job.data.reader(role)
    clips = Clips(job.data.split(role, "train"), reader, recipe.clip, recipe.seed)
    validation = job.data.split(role, "val")
    validate = None
    if validation.videos:
        judge = clip_accuracy if recipe.task == "pretrain" else frame_map
        validate = judge(recipe, validation, reader, context.device)
    result = train(recipe, clips, context, initial, validate)
    expected = len(clips.manifest.videos) + len(clips.manifest.missing)
    gpu = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None
    return {**result, "gpu": gpu, "videos": len(clips.manifest.videos), "videos_expected": expected}


def clip_accuracy(
    recipe: TrainRecipe, manifest: Manifest, reader: FrameReader, device: torch.device
) -> Callable[[nn.Module], float]:
    """Share of videos whose label is the first choice, by the mean over the clip from the video's
    middle (top-1). A video that cannot be read counts as a miss."""
    shift = recipe.head_classes(manifest.num_classes) - manifest.num_classes

    @torch.inference_mode()
    def judge(model: nn.Module) -> float:
        hits = 0
        for first in range(0, len(manifest.videos), 16):
            read = []
            for video in manifest.videos[first : first + 16]:
                with suppress(CorruptVideo):
                    read.append((video.label, centre_clip(video, reader, recipe.clip)))
            if not read:
                continue
            labels, pictures = zip(*read, strict=True)
            clips = normalise(torch.stack(pictures), recipe.clip, device)
            clip = recipe.readout == "clip"
            logits = model.classify(clips) if clip else model(clips).mean(2)  # type: ignore[operator]
            hits += int((logits[:, shift:].argmax(1).cpu() == torch.tensor(labels)).sum())
        return hits / len(manifest.videos)

    return judge


def frame_map(
    recipe: TrainRecipe, manifest: Manifest, reader: FrameReader, device: torch.device
) -> Callable[[nn.Module], float]:
    """Dense per-frame mAP on a validation split."""
    targets = frame_targets(manifest, reader)

    def judge(model: nn.Module) -> float:
        scores: dict[str, Tensor] = {}
        sink = Memory(scores)
        predict(model, manifest, reader, PredictRecipe(recipe.clip), sink, device)
        return dense_map(scores, targets).value

    return judge


class Memory:
    """Keeps probabilities in memory, in place of a writer."""

    def __init__(self, scores: dict[str, Tensor]) -> None:
        self.scores = scores

    def add(self, video_id: str, probs_TK: Tensor, fps: float) -> None:
        self.scores[video_id] = probs_TK.half()


def _predict(job: Job, report: Report) -> Result:
    context = Context(job.folder)
    parent = job.stage.parents[0]
    model = _trained(job.parent(), parent.recipe, job.data.manifests["downstream"].num_classes)
    model.to(context.device).eval()
    return _score(job, model, job.stage.recipe, context.device)


def _probe(job: Job, report: Report) -> Result:
    recipe: FrozenProbe = job.stage.recipe
    device = Context(job.folder).device
    if job.stage.parents:
        parent = job.stage.parents[0].recipe
        model = _trained(job.parent(), parent, job.data.manifests["upstream"].num_classes)
    else:
        model = network(recipe.fresh, job.data.manifests["downstream"].num_classes)
    model.to(device).eval()
    features: Network = model.features  # type: ignore[assignment]
    reader = job.data.reader("downstream")
    training = job.data.split("downstream", "train")
    inputs, labels, broken = extract(features, training, reader, recipe.probe.predict, device)
    probe = fit(features, inputs, labels, recipe.probe)
    return {**_score(job, probe, recipe.probe.predict, device), "unreadable_train": broken}


def _trained(folder: Path, recipe: TrainRecipe, classes: int) -> nn.Module:
    model = network(recipe, classes)
    model.load_state_dict(checkpoint.load_weights(folder / "checkpoints" / "last.pt"))
    return model


def _score(job: Job, network: Network, recipe: PredictRecipe, device: torch.device) -> Result:
    """Predictions and scores of the validation and test videos."""
    reader = job.data.reader("downstream")
    result: Result = {"scores": {}, "unreadable": {}}
    for name in ("val", "test"):
        manifest = job.data.split("downstream", name)
        if not manifest.videos and not manifest.missing:
            continue
        folder = job.folder / "predictions" / name
        with PredictionWriter(folder, manifest.num_classes) as writer:
            result["unreadable"] |= predict(network, manifest, reader, recipe, writer, device)
        targets = frame_targets(manifest, reader)
        result["scores"][name] = asdict(dense_map(PredictionSet.open(folder), targets))
    return result


def _ensemble(job: Job, report: Report) -> Result:
    reader = job.data.reader("downstream")
    result: Result = {"scores": {}}
    for name in ("val", "test"):
        folders = [job.parent(i) / "predictions" / name for i in range(len(job.stage.parents))]
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
    "probe": _probe,
    "ensemble": _ensemble,
}
