"""Stages on features: extracting them, training heads on them, scoring with those."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from ssdet.data.features import FeatureSet, FeatureWriter
from ssdet.data.frames import FrameReader
from ssdet.data.manifest import Manifest
from ssdet.evaluation import PredictionWriter
from ssdet.studies.data import Data
from ssdet.studies.plan import Stage
from ssdet.studies.record import recipe_of
from ssdet.studies.stages import FEATURES, LAST, Job, Result, logged, score_splits
from ssdet.studies.store import Store
from ssdet.studies.validation import followed, whole_videos
from ssdet.training import checkpoint
from ssdet.training.context import Context, Report
from ssdet.training.extraction import ExtractRecipe, extractor, write_features
from ssdet.training.heads import HeadRecipe, Stretches, fit_head, head, predict_head
from ssdet.training.inference import PredictRecipe, Sink, frame_targets
from ssdet.training.loop import network
from ssdet.training.origin import starting_weights

Find = Callable[[str, str], Path]
"""Folder of a stage by its id, with a file or folder of it; `Store.local` is one."""


@dataclass(frozen=True)
class StreamJob(Job):
    """An extraction by Ray Data: tasks on CPUs decode for actors that run the network."""

    actors: int = 1
    decoders: int = 1
    gpus_per_actor: float = 0.0


def extract_stage(recipe: ExtractRecipe, data: Data, trained: Stage | None = None) -> Stage:
    """Features of all untrimmed videos, from the network of a training stage or `recipe.fresh`."""
    if (trained is None) == (recipe.fresh is None):
        raise ValueError("features come from a trained stage or from recipe.fresh: give one")
    parents = () if trained is None else (trained,)
    return Stage("extract", recipe, parents, data.fingerprint("probe"))


def head_stage(recipe: HeadRecipe, data: Data, features: Stage) -> Stage:
    """A model of features, trained on the training videos of an extraction."""
    return Stage("fit_head", recipe, (features,), data.fingerprint("probe"))


def scoring_stage(data: Data, head: Stage) -> Stage:
    """The scores of validation and test videos by a model of features."""
    recipe: PredictRecipe = head.parents[0].recipe.predict
    return Stage("predict", recipe, (head,), data.fingerprint("predict"))


def stored_stage(find: Find, name: str) -> Stage:
    """A stage that is kept somewhere with all before it, as its `recipe.json` says.

    FileNotFoundError for one that is not there, ValueError for recipes that this version does not
    know.
    """
    identity = json.loads((find(name, "recipe.json") / "recipe.json").read_text())
    parents = tuple(stored_stage(find, parent) for parent in identity["parents"])
    recipe = recipe_of(identity["kind"], identity["recipe"])
    stage = Stage(identity["kind"], recipe, parents, identity["data"])
    stage.__dict__["id"] = name  # as it was named, whatever this version would name it
    return stage


def extract(job: Job, report: Report) -> Result:
    """Write the features of every untrimmed video of all splits; goes on where it was stopped."""
    recipe: ExtractRecipe = job.stage.recipe
    manifest = job.data.manifests["downstream"]
    with FeatureWriter(job.folder / FEATURES, recipe.dtype) as writer:
        report({"step": len(writer.done), "steps": len(manifest.videos)})

        def tell() -> None:
            report({"step": len(writer.done), "steps": len(manifest.videos)})

        if isinstance(job, StreamJob):
            from ssdet.studies.feature_stream import stream_features

            stream_features(job, writer, tell)
        else:
            device = Context(job.folder).device
            model, reader = backbone(job).to(device), job.data.reader("downstream")
            features = extractor(model, recipe)
            write_features(
                features, manifest.videos, reader, recipe.predict, writer, device, tell
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
    context = Context(job.folder, report=logged(job.folder / "metrics.jsonl", report))
    context.checkpoint_every = job.checkpoint_every
    features = FeatureSet.open(job.parent(part=FEATURES) / FEATURES)
    training = job.data.split("downstream", "train")
    stretches = Stretches(training, features, recipe)
    judged = job.data.split("downstream", recipe.validate_on)
    validate = None
    if followed(recipe.optim, recipe.validate_on, judged):
        targets = frame_targets(judged, cast(FrameReader, features))

        def score(model: nn.Module, sink: Sink) -> None:
            predict_head(model, recipe, judged, features, sink, context.device)

        validate = whole_videos(score, targets, recipe.optim)
    result = fit_head(recipe, stretches, context, validate)
    absent = [v.id for v in training.videos if v.id not in features]
    return {
        **result,
        "videos": len(stretches.videos),
        "videos_expected": len(training.videos) + len(training.missing),
        "unreadable_train": {v: features.broken.get(v, "not among the features") for v in absent},
    }


def predict(job: Job, report: Report) -> Result:
    """Score validation and test videos by a model of features."""
    fitted = job.stage.parents[0]
    recipe: HeadRecipe = fitted.recipe
    store, device = Store.open(job.store), Context(job.folder).device
    features = FeatureSet.open(store.local(fitted.parents[0].id, FEATURES) / FEATURES)
    width = features.shapes[recipe.tensor][0]
    model = head(recipe, width, job.data.manifests["downstream"].num_classes)
    model.load_state_dict(checkpoint.load_weights(job.parent(part=LAST) / LAST))
    model.to(device).eval()

    def write(manifest: Manifest, writer: PredictionWriter) -> dict[str, str]:
        return predict_head(model, recipe, manifest, features, writer, device)

    return score_splits(job, cast(FrameReader, features), write)
