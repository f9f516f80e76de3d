"""Models of features: training on files of features, and their scores for every frame."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssdet.data.features import FeatureSet
from ssdet.data.frames import FrameReader, dense_targets
from ssdet.data.manifest import Manifest, Video
from ssdet.data.sampling import generator_for, sample_at
from ssdet.models import create
from ssdet.training.context import Context
from ssdet.training.extraction import FEATURES
from ssdet.training.inference import Sink
from ssdet.training.loop import autocast, descend
from ssdet.training.losses import head_loss, interpolate
from ssdet.training.recipe import ModelRecipe, OptimRecipe
from ssdet.training.state import State, Validate


@dataclass(frozen=True)
class HeadRecipe:
    """A model of features and how it is trained; the defaults are Super-Events' (MODELS.md 7)."""

    model: ModelRecipe = ModelRecipe("linear")
    """A registered model `(features_BDT, lengths_B) -> logits_BKT`; `in_features` comes from the
    features."""
    optim: OptimRecipe = field(
        default_factory=lambda: OptimRecipe(
            steps=2000, batch=16, lr=1e-3, optimizer="adamw", weight_decay=0.0, schedule="plateau",
            patience=3,
        )
    )  # fmt: skip
    tensor: str = FEATURES
    """Which of the named tensors it reads."""
    padding: Literal["masked", "counted"] = "masked"
    """Whether steps that only fill up a batch add to the loss, as they do in the published code."""
    validations: int = 40
    validate_on: Literal["val", "test"] = "val"
    """As in `TrainRecipe`."""
    seed: int = 0


class HeadBatch(NamedTuple):
    """B videos, padded with zeros to the longest."""

    features_BDT: Tensor
    lengths_B: Tensor
    targets_BKT: Tensor
    """float32 0/1, 0 in the padding."""

    @property
    def mask_BT(self) -> Tensor:
        """bool: which steps exist."""
        steps_T = torch.arange(self.features_BDT.shape[2], device=self.lengths_B.device)
        return steps_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> "HeadBatch":
        """The same on a device."""
        return HeadBatch(*(part.to(device) for part in self))


class Stretches:
    """Batches of the videos of a split that have features, by step alone: shuffled epochs.

    Raises ValueError where none has, or for a tensor that is not one vector a step.
    """

    def __init__(self, manifest: Manifest, features: FeatureSet, recipe: HeadRecipe) -> None:
        self.features, self.manifest, self.recipe = features, manifest, recipe
        self.videos = [video for video in manifest.videos if video.id in features]
        if not self.videos:
            raise ValueError(
                f"data set {manifest.name!r}: none of its videos has features in {features.folder}"
            )
        self.width = width_of(features, recipe.tensor)

    def batch(self, step: int) -> HeadBatch:
        """The batch of a step (from 0)."""
        size, count = self.recipe.optim.batch, len(self.videos)
        places = [sample_at(self.recipe.seed, step * size + i, count)[1] for i in range(size)]
        return self.gathered([self.videos[place] for place in places])

    def gathered(self, videos: Sequence[Video]) -> HeadBatch:
        """These videos as a batch."""
        rows = [self.features[video.id][self.recipe.tensor] for video in videos]
        lengths_B = torch.tensor([len(row) for row in rows])
        features_BDT = torch.zeros(len(rows), self.width, int(lengths_B.max()))
        targets_BKT = torch.zeros(len(rows), self.manifest.num_classes, int(lengths_B.max()))
        for place, (video, row) in enumerate(zip(videos, rows, strict=True)):
            features_BDT[place, :, : len(row)] = torch.from_numpy(row.astype(np.float32)).T
            dense_KF = dense_targets(self.manifest, video, cast(FrameReader, self.features))
            steps_KT = dense_KF[:, :: self.features.entries[video.id].stride]
            targets_BKT[place, :, : len(row)] = torch.from_numpy(steps_KT)
        return HeadBatch(features_BDT, lengths_B, targets_BKT)


def width_of(features: FeatureSet, tensor: str) -> int:
    """Channels of a tensor that is one vector a step; ValueError for others and unknown ones."""
    shape = features.shapes.get(tensor)
    if shape is None or len(shape) != 1:
        raise ValueError(
            f"{features.folder}: tensor {tensor!r} of shape {shape}: heads read one vector a step, "
            f"there are {features.shapes}"
        )
    return shape[0]


def head(recipe: HeadRecipe, width: int, classes: int) -> nn.Module:
    """The recipe's model with fresh weights by its seed. ValueError for another `in_features`."""
    options = {"in_features": width, **recipe.model.options}
    if options["in_features"] != width:
        raise ValueError(
            f"model {recipe.model.name!r}: in_features={options['in_features']}, the features have "
            f"{width} channels: leave the option out"
        )
    generator = generator_for(recipe.seed, "weights", "head")
    return create(recipe.model.name, classes, generator=generator, **options)


def fit_head(
    recipe: HeadRecipe, stretches: Stretches, context: Context, validate: Validate | None = None
) -> dict[str, Any]:
    """Train a model of features; goes on, and ends, as `ssdet.training.train` does."""
    optim, device = recipe.optim, context.device
    model = head(recipe, stretches.width, stretches.manifest.num_classes).to(device)
    state = State(recipe, model, context)
    state.restore()

    def backward(step: int) -> tuple[float, int]:
        batch = stretches.batch(step).to(device)
        with autocast(device, optim.amp):
            logits = model(batch.features_BDT, batch.lengths_B)
            loss = head_loss(logits, batch.targets_BKT, batch.mask_BT, recipe.padding)
        state.scaler.scale(loss).backward()
        return loss.item(), len(batch.lengths_B)

    return descend(state, recipe.seed, backward, validate, recipe.validations)


@torch.inference_mode()
def predict_head(
    model: nn.Module,
    recipe: HeadRecipe,
    manifest: Manifest,
    features: FeatureSet,
    sink: Sink,
    device: torch.device,
) -> dict[str, str]:
    """Write the probabilities of every frame of every video that has features; returns the others,
    and why they have none."""
    for video in manifest.videos:
        if video.id in features:
            entry = features.entries[video.id]
            row = features[video.id][recipe.tensor].astype(np.float32)
            inputs_BDT = torch.from_numpy(row).T[None].to(device)
            logits_BKT = model(inputs_BDT, torch.tensor([len(row)], device=device))
            logits_BKF = interpolate(logits_BKT, logits_BKT.shape[2] * entry.stride)
            sink.add(video.id, logits_BKF[0, :, : entry.frames].T.sigmoid().cpu(), entry.fps)
    absent = [video for video in manifest.videos if video.id not in features]
    return {v.id: features.broken.get(v.id, "not among the features") for v in absent}
