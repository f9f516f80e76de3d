"""Stages on features: extraction, training of heads, scoring by heads."""

from dataclasses import dataclass
from typing import cast

from torch import nn

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.features.shards import FeatureSet, FeatureWriter
from ssdet.data.loading.frame_readers import FrameReader
from ssdet.evaluation import PredictionWriter
from ssdet.inference.extraction import extractor, write_features
from ssdet.inference.scoring import Sink, frame_targets
from ssdet.stages.job import FEATURES, LAST, Job, Result, logged, with_rungs
from ssdet.stages.scoring import score_splits
from ssdet.stages.validation import followed, validation_truth, whole_videos
from ssdet.store.base import Store
from ssdet.training import checkpoint
from ssdet.training.context import Context, Report
from ssdet.training.heads.feature_heads import FeatureBatches, build_head, fit_head, predict_head
from ssdet.training.loop import network
from ssdet.training.pretrained_weights import starting_weights
from ssdet.training.recipe import ExtractRecipe, HeadRecipe


@dataclass(frozen=True)
class StreamJob(Job):
    """An extraction by Ray Data: tasks on CPUs decode for actors that run the network."""

    actors: int = 1
    decoders: int = 1
    gpus_per_actor: float = 0.0


def extract(job: Job, report: Report) -> Result:
    """Write the features of every untrimmed video of all splits; goes on where it was stopped."""
    recipe: ExtractRecipe = job.stage.recipe
    manifest = job.data.manifests["downstream"]
    with FeatureWriter(job.folder / FEATURES, recipe.dtype) as writer:
        report({"step": len(writer.done), "steps": len(manifest.videos)})

        def progress() -> None:
            report({"step": len(writer.done), "steps": len(manifest.videos)})

        if isinstance(job, StreamJob):
            job.executor.stream_features(job, writer, progress)
        else:
            device = Context(job.folder).device
            model, reader = backbone(job).to(device), job.data.reader("downstream")
            features = extractor(model, recipe.pyramid)
            write_features(
                features, manifest.videos, reader, recipe.predict, writer, device, progress
            )  # fmt: skip
        if len(writer.broken) == len(manifest.videos):
            raise ValueError(
                f"data set {manifest.name!r}: none of its videos can be read: {writer.broken}"
            )
    expected = len(manifest.videos) + len(manifest.missing)
    readable = len(manifest.videos) - len(writer.broken)
    return {"videos": readable, "videos_expected": expected, "unreadable": writer.broken}


def backbone(job: Job) -> nn.Module:
    """The network that features come from, in evaluation mode; its classifier means nothing."""
    recipe: ExtractRecipe = job.stage.recipe
    if recipe.fresh is None:
        weights = checkpoint.load_weights(job.parent(part=LAST) / LAST)
        return network(job.stage.parents[0].recipe, 1, weights).eval()
    return network(recipe.fresh, 1, starting_weights(recipe.fresh, 1)).eval()


def fit(job: Job, report: Report) -> Result:
    """Train a model of features."""
    recipe: HeadRecipe = job.stage.recipe
    report = logged(job.folder / "metrics.jsonl", with_rungs(job, report))
    context = Context(job.folder, report=report)
    context.checkpoint_every = job.checkpoint_every
    features = FeatureSet.open(job.parent(part=FEATURES) / FEATURES)
    training = job.data.split("downstream", "train")
    batches = FeatureBatches(training, features, recipe)
    validation = job.data.split("downstream", recipe.validate_on)
    validate = None
    if followed(recipe.optim, recipe.validate_on, validation):
        targets = frame_targets(validation, cast(FrameReader, features))

        def score(model: nn.Module, sink: Sink) -> None:
            predict_head(model, recipe, validation, features, sink, context.device)

        truth = validation_truth(job, recipe)
        validate = whole_videos(score, targets, recipe.optim, recipe.validate_by, truth)
    result = fit_head(recipe, batches, context, validate)
    absent = [v.id for v in training.videos if v.id not in features]
    return {
        **result,
        "videos": len(batches.videos),
        "videos_expected": len(training.videos) + len(training.missing),
        "unreadable_train": {v: features.broken.get(v, "not among the features") for v in absent},
    }


def predict(job: Job, report: Report) -> Result:
    """Score validation and test videos by a model of features."""
    fitted = job.stage.parents[0]
    recipe: HeadRecipe = fitted.recipe
    store, device = Store.open(job.store), Context(job.folder).device
    features = FeatureSet.open(store.fetch(fitted.parents[0].id, FEATURES) / FEATURES)
    width = features.shapes[recipe.tensor][0]
    model = build_head(recipe, width, job.data.manifests["downstream"].num_classes)
    model.load_state_dict(checkpoint.load_weights(job.parent(part=LAST) / LAST))
    model.to(device).eval()

    def write(manifest: Manifest, writer: PredictionWriter) -> dict[str, str]:
        return predict_head(model, recipe, manifest, features, writer, device)

    return score_splits(job, cast(FrameReader, features), write)
