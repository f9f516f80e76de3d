"""Networks of detections: training on graphs of whole videos, and their scores for every frame."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.features.detections import SEGMENTS, Detections, DetectionSet
from ssdet.data.loading.frame_readers import FrameReader, dense_targets
from ssdet.data.loading.sampling import generator_for, sample_at
from ssdet.inference.scoring import Sink
from ssdet.models import create
from ssdet.models.layers.resampling import interpolate
from ssdet.training.context import Context
from ssdet.training.loop import autocast, descend
from ssdet.training.losses import head_loss
from ssdet.training.recipe import ModelRecipe, OptimRecipe
from ssdet.training.state import State, Validate


@dataclass(frozen=True)
class GraphRecipe:
    """A network of detections and how it is trained."""

    model: ModelRecipe = ModelRecipe("vs_st_mpnn")
    """A registered network that takes detections; its widths come from the files. `in_features`
    may be given as 0, where the network does without boxes."""
    segments: tuple[Literal["rgb", "flow", "scene"], ...] = ()
    """Vectors of the whole picture that it reads as well."""
    optim: OptimRecipe = field(
        default_factory=lambda: OptimRecipe(
            steps=2000, batch=16, lr=1e-3, optimizer="adamw", weight_decay=1e-4, schedule="cosine",
            clip_grad=1.0,
        )
    )  # fmt: skip
    validations: int = 10
    validate_on: Literal["val", "test"] = "val"
    """As in `TrainRecipe`."""
    seed: int = 0


class GraphBatch(NamedTuple):
    """B videos, padded to the longest."""

    detections: Detections
    targets_BKT: Tensor
    """float32 0/1, 0 in the padding."""

    def to(self, device: torch.device) -> "GraphBatch":
        """The same on a device."""
        return GraphBatch(self.detections.to(device), self.targets_BKT.to(device))


class Graphs:
    """Batches of the videos of a split that have detections, by step alone: shuffled epochs.

    Raises ValueError where none has.
    """

    def __init__(self, manifest: Manifest, detections: DetectionSet, recipe: GraphRecipe) -> None:
        self.manifest, self.detections, self.recipe = manifest, detections, recipe
        self.videos = [video for video in manifest.videos if video.id in detections]
        if not self.videos:
            raise ValueError(
                f"data set {manifest.name!r}: no video of it has detections in {detections.folder}"
            )

    def batch(self, step: int) -> GraphBatch:
        """The batch of a step (from 0)."""
        size, count = self.recipe.optim.batch, len(self.videos)
        places = [sample_at(self.recipe.seed, step * size + i, count)[1] for i in range(size)]
        return self.gathered([self.videos[place] for place in places])

    def gathered(self, videos: Sequence[Video]) -> GraphBatch:
        """These videos as a batch. Raises BrokenDetections."""
        names = [video.id for video in videos]
        detections = self.detections.batch(names, self.recipe.segments)
        steps = detections.kinds_BTN.shape[1]
        targets_BKT = torch.zeros(len(videos), self.manifest.num_classes, steps)
        for place, video in enumerate(videos):
            target_KT = self.targets(video)
            targets_BKT[place, :, : target_KT.shape[1]] = torch.from_numpy(target_KT)
        return GraphBatch(detections, targets_BKT)

    def targets(self, video: Video) -> np.ndarray:
        """Labels bool [K, T] of the steps of a video."""
        dense_KF = dense_targets(self.manifest, video, cast(FrameReader, self.detections))
        return dense_KF[:, :: self.detections.entries[video.id].stride]


def graph_network(recipe: GraphRecipe, detections: DetectionSet, classes: int) -> nn.Module:
    """The recipe's network with fresh weights by its seed, as wide as the detections.

    Raises ValueError for other `in_features` and for segments that the files do not have.
    """
    found = detections.widths
    if absent := [name for name in recipe.segments if name not in found]:
        raise ValueError(
            f"{detections.folder}: no {', '.join(absent)} in these files: they have "
            f"{', '.join(name for name in found if name in SEGMENTS) or 'no segments'}"
        )
    widths: dict[str, int] = {name: found[name] for name in recipe.segments}
    own: dict[str, Any] = {"in_features": found["features"], **widths}
    options = {**own, **recipe.model.options}
    if options["in_features"] not in (0, found["features"]):
        raise ValueError(
            f"model {recipe.model.name!r}: in_features={options['in_features']}, the detections "
            f"have {found['features']} channels: leave the option out"
        )
    generator = generator_for(recipe.seed, "weights", "graph")
    return create(recipe.model.name, classes, generator=generator, **options)


def fit_graph(
    recipe: GraphRecipe, graphs: Graphs, context: Context, validate: Validate | None = None
) -> dict[str, Any]:
    """Train a network of detections; goes on, and ends, as `ssdet.training.train` does.

    A network with a label graph gets the co-occurrence of the labels of all these videos.
    """
    optim, device = recipe.optim, context.device
    model = graph_network(recipe, graphs.detections, graphs.manifest.num_classes)
    if take := getattr(model, "set_cooccurrence", None):
        take(graphs.targets(video) for video in graphs.videos)
    state = State(recipe, model.to(device), context)
    state.restore()

    def backward(step: int) -> tuple[float, int]:
        batch = graphs.batch(step).to(device)
        with autocast(device, optim.amp):
            loss = graph_loss(model, batch)
        state.scaler.scale(loss).backward()
        return loss.item(), len(batch.targets_BKT)

    return descend(state, recipe.seed, backward, validate, recipe.validations)


def graph_loss(model: nn.Module, batch: GraphBatch) -> Tensor:
    """BCE summed over classes, mean over the steps that exist (`head_loss`) and over the logits
    that the network wants trained: its `stages`, where it has them, or its last ones."""
    stages = getattr(model, "stages", lambda detections: [model(detections)])
    mask_BT = batch.detections.mask_BT
    losses = [
        head_loss(logits_BKT, batch.targets_BKT, mask_BT, "masked")
        for logits_BKT in stages(batch.detections)
    ]
    return torch.stack(losses).mean()


@torch.inference_mode()
def predict_graph(
    model: nn.Module,
    recipe: GraphRecipe,
    manifest: Manifest,
    detections: DetectionSet,
    sink: Sink,
    device: torch.device,
) -> dict[str, str]:
    """Write the probabilities of every frame of every video that has detections; returns the
    others, and why they have none. Raises BrokenDetections."""
    videos = [video for video in manifest.videos if video.id in detections]
    for video in videos:
        entry = detections.entries[video.id]
        logits_BKT = model(detections.batch([video.id], recipe.segments).to(device))
        logits_BKF = interpolate(logits_BKT, entry.steps * entry.stride)
        sink.add(video.id, logits_BKF[0, :, : entry.frames].T.sigmoid().cpu(), entry.fps)
    absent = {video.id for video in manifest.videos} - {video.id for video in videos}
    return dict.fromkeys(sorted(absent), f"no detections in {detections.folder}")
