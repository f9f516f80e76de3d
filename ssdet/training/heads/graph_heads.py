"""Graph networks on detections: batches, training and per-frame scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.features.detections import SEGMENTS, Detections, DetectionSet
from ssdet.data.loading.frame_readers import FrameReader, dense_targets
from ssdet.data.loading.sampling import generator_for
from ssdet.inference.scoring import Sink
from ssdet.models import create
from ssdet.models.layers.resampling import interpolate
from ssdet.training.context import Context
from ssdet.training.heads.feature_heads import drawn_videos
from ssdet.training.loop import fit
from ssdet.training.losses import head_loss
from ssdet.training.recipe import ModelRecipe, OptimRecipe
from ssdet.training.state import Validate


@dataclass(frozen=True)
class GraphRecipe:
    """A graph network on detections and its training."""

    model: ModelRecipe = ModelRecipe("vs_st_mpnn")
    """A registered network of detections, whose widths come from the files; `in_features=0` for a
    network without boxes."""
    segments: tuple[Literal["rgb", "flow", "scene"], ...] = ()
    """Whole-frame feature vectors that it reads as well."""
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


class GraphBatches:
    """Batches, by step, of shuffled epochs over the videos of a split that have detections.

    Raises ValueError if none has.
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
        batch = self.recipe.optim.batch
        return self.collate(drawn_videos(self.videos, self.recipe.seed, batch, step))

    def collate(self, videos: Sequence[Video]) -> GraphBatch:
        """These videos as a batch. Raises BrokenDetections."""
        names = [video.id for video in videos]
        detections = self.detections.batch(names, self.recipe.segments)
        steps = detections.kinds_BTN.shape[1]
        targets_BKT = torch.zeros(len(videos), self.manifest.num_classes, steps)
        for row_KT, video in zip(targets_BKT, videos, strict=True):
            target_KT = self.targets(video)
            row_KT[:, : target_KT.shape[1]] = torch.from_numpy(target_KT)
        return GraphBatch(detections, targets_BKT)

    def targets(self, video: Video) -> np.ndarray:
        """Labels bool [K, T] of the steps of a video."""
        dense_KF = dense_targets(self.manifest, video, cast(FrameReader, self.detections))
        return dense_KF[:, :: self.detections.entries[video.id].stride]


def graph_network(recipe: GraphRecipe, detections: DetectionSet, classes: int) -> nn.Module:
    """The recipe's network with fresh weights by its seed and the widths of the detections.

    Raises ValueError for other `in_features` and for segments that the files lack.
    """
    widths = detections.widths
    if absent := [name for name in recipe.segments if name not in widths]:
        raise ValueError(
            f"{detections.folder}: no {', '.join(absent)} in these files: they have "
            f"{', '.join(name for name in widths if name in SEGMENTS) or 'no segments'}"
        )
    options: dict[str, Any] = {"in_features": widths["features"]}
    options |= {name: widths[name] for name in recipe.segments} | dict(recipe.model.options)
    if options["in_features"] not in (0, widths["features"]):
        raise ValueError(
            f"model {recipe.model.name!r}: in_features={options['in_features']}, the detections "
            f"have {widths['features']} channels: leave the option out"
        )
    generator = generator_for(recipe.seed, "weights", "graph")
    return create(recipe.model.name, classes, generator=generator, **options)


def fit_graph(
    recipe: GraphRecipe, graphs: GraphBatches, context: Context, validate: Validate | None = None
) -> dict[str, Any]:
    """Train a graph network; resumes and ends as `ssdet.training.train`.

    A network with a label graph gets the co-occurrence of the labels of all these videos.
    """
    model = graph_network(recipe, graphs.detections, graphs.manifest.num_classes)
    if set_cooccurrence := getattr(model, "set_cooccurrence", None):
        set_cooccurrence(graphs.targets(video) for video in graphs.videos)

    def loss_of(batch: GraphBatch) -> Tensor:
        return graph_loss(model, batch)

    return fit(recipe, model, graphs.batch, loss_of, context, validate)


def graph_loss(model: nn.Module, batch: GraphBatch) -> Tensor:
    """BCE summed over classes, mean over existing steps (`head_loss`) and over the logits of the
    model's `stages`, or its only ones."""
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
    """Write the probabilities of every frame of every video with detections; return the reasons
    of the other videos by id. Raises BrokenDetections."""
    absent = []
    for video in manifest.videos:
        if video.id not in detections:
            absent.append(video.id)
            continue
        entry = detections.entries[video.id]
        logits_BKT = model(detections.batch([video.id], recipe.segments).to(device))
        logits_BKF = interpolate(logits_BKT, entry.steps * entry.stride)
        sink.add(video.id, logits_BKF[0, :, : entry.frames].T.sigmoid().cpu(), entry.fps)
    return dict.fromkeys(sorted(absent), f"no detections in {detections.folder}")
