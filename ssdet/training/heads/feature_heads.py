"""Models of features: training on files of features, and their scores for every frame."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.features.shards import FeatureSet
from ssdet.data.loading.frame_readers import FrameReader, dense_targets
from ssdet.data.loading.sampling import generator_for, sample_at
from ssdet.inference.scoring import Sink
from ssdet.models import create
from ssdet.models.layers.resampling import interpolate
from ssdet.training.context import Context
from ssdet.training.heat_map import focal_loss, heat_map
from ssdet.training.loop import autocast, descend
from ssdet.training.losses import head_loss
from ssdet.training.recipe import HeadRecipe
from ssdet.training.state import State, Validate


class HeadBatch(NamedTuple):
    """B videos, or stretches of them, padded with zeros."""

    features_BDT: Tensor
    lengths_B: Tensor
    targets_BKT: Tensor
    """float32 0/1, 0 in the padding."""
    heat_BKT: Tensor | None = None
    """Heat maps of the actions, where the recipe has a weight for them."""

    @property
    def mask_BT(self) -> Tensor:
        """bool: which steps exist."""
        steps_T = torch.arange(self.features_BDT.shape[2], device=self.lengths_B.device)
        return steps_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> "HeadBatch":
        """The same on a device."""
        heat_BKT = None if self.heat_BKT is None else self.heat_BKT.to(device)
        features_BDT, lengths_B, targets_BKT = (part.to(device) for part in self[:3])
        return HeadBatch(features_BDT, lengths_B, targets_BKT, heat_BKT)


class Stretches:
    """Batches of the videos of a split that have features, by step alone: shuffled epochs.

    Raises ValueError where none has (and, with `skip_empty`, actions), or for a tensor that is not
    one vector a step.
    """

    def __init__(self, manifest: Manifest, features: FeatureSet, recipe: HeadRecipe) -> None:
        self.features, self.manifest, self.recipe = features, manifest, recipe
        self.videos = [video for video in manifest.videos if video.id in features]
        if not self.videos:
            raise ValueError(
                f"data set {manifest.name!r}: none of its videos has features in {features.folder}"
            )
        if recipe.skip_empty:
            self.videos = [v for v in self.videos if v.segments or v.label is not None]
        if not self.videos:
            raise ValueError(
                f"data set {manifest.name!r}: none of its videos with features has actions: "
                "train with skip_empty=False"
            )
        self.width = width_of(features, recipe.tensor)

    def batch(self, step: int) -> HeadBatch:
        """The batch of a step (from 0)."""
        size, count = self.recipe.optim.batch, len(self.videos)
        places = [sample_at(self.recipe.seed, step * size + i, count)[1] for i in range(size)]
        videos = [self.videos[place] for place in places]
        parts = [self._part(video, step, i) for i, video in enumerate(videos)]
        return self.gathered(videos, parts, self.recipe.crop)

    def _part(self, video: Video, step: int, place: int) -> slice:
        """The steps of a video that the sample at a place of a step's batch shows."""
        spare = self.features.entries[video.id].steps - self.recipe.crop
        if not self.recipe.crop or spare <= 0:
            return slice(None)
        draws = generator_for(self.recipe.seed, "stretch", step, place)
        start = int(torch.randint(spare + 1, (), generator=draws))
        return slice(start, start + self.recipe.crop)

    def gathered(
        self, videos: Sequence[Video], parts: Sequence[slice] | None = None, steps: int = 0
    ) -> HeadBatch:
        """These videos as a batch, whole or the `parts` of each, padded to at least `steps`."""
        parts = parts or [slice(None)] * len(videos)
        shown = [self._shown(video, part) for video, part in zip(videos, parts, strict=True)]
        lengths = [features_DT.shape[1] for features_DT, *_ in shown]
        missing = [max(steps, *lengths) - length for length in lengths]
        features_BDT, targets_BKT, *heat = (
            torch.stack([F.pad(row, (0, n)) for row, n in zip(rows, missing, strict=True)])
            for rows in zip(*shown, strict=True)
        )
        return HeadBatch(features_BDT, torch.tensor(lengths), targets_BKT, *heat)

    def _shown(self, video: Video, part: slice) -> list[Tensor]:
        """Features [D, t] and targets [K, t] of a part of a video, perhaps its heat map."""
        entry, rows_TD = self.features.entries[video.id], self.features[video.id]
        features_DT = torch.from_numpy(rows_TD[self.recipe.tensor][part].astype(np.float32)).T
        dense_KF = dense_targets(self.manifest, video, cast(FrameReader, self.features))
        targets_KT = torch.from_numpy(dense_KF[:, :: entry.stride][:, part]).float()
        if not self.recipe.heat_map:
            return [features_DT, targets_KT]
        clock = cast(FrameReader, self.features).clock(video)
        # Where the rate varies, an action is where its frames are.
        rate = clock.rate or entry.fps
        spans_S2 = np.array([[s.start, s.end] for s in video.segments]).reshape(-1, 2)
        if clock.rate is None:
            spans_S2 = clock.position(spans_S2) / rate
        labels = (segment.label for segment in video.segments)
        actions = [(k, float(a), float(b)) for k, (a, b) in zip(labels, spans_S2, strict=True)]
        rate /= entry.stride
        heat_KT = heat_map(actions, rate, entry.steps, self.manifest.num_classes)
        return [features_DT, targets_KT, heat_KT[:, part]]


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
    """The recipe's model with fresh weights by its seed. ValueError for another `in_features`, and
    for a heat map that the model does not have."""
    options = {"in_features": width, **recipe.model.options}
    if options["in_features"] != width:
        raise ValueError(
            f"model {recipe.model.name!r}: in_features={options['in_features']}, the features have "
            f"{width} channels: leave the option out"
        )
    generator = generator_for(recipe.seed, "weights", "head")
    model = create(recipe.model.name, classes, generator=generator, **options)
    if recipe.heat_map and not hasattr(model, "with_heat_map"):
        raise ValueError(
            f"model {recipe.model.name!r} has no heat map to learn: heat_map must be 0, found "
            f"{recipe.heat_map}"
        )
    return model


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
            loss = batch_loss(recipe, model, batch)
        state.scaler.scale(loss).backward()
        return loss.item(), len(batch.lengths_B)

    return descend(state, recipe.seed, backward, validate, recipe.validations)


def batch_loss(recipe: HeadRecipe, model: nn.Module, batch: HeadBatch) -> Tensor:
    """BCE of the steps and, where the batch has heat maps, the weighted focal loss of those."""
    inputs, mask_BT = (batch.features_BDT, batch.lengths_B), batch.mask_BT
    if batch.heat_BKT is None:
        return head_loss(model(*inputs), batch.targets_BKT, mask_BT, recipe.padding)
    logits_BKT, heat_BKT = model.with_heat_map(*inputs)  # type: ignore[operator]
    exists = mask_BT.unsqueeze(1) if recipe.padding == "masked" else None
    focal = focal_loss(heat_BKT.float().sigmoid(), batch.heat_BKT, exists)
    steps = head_loss(logits_BKT, batch.targets_BKT, mask_BT, recipe.padding)
    return steps + recipe.heat_map * focal


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
    and why they have none.

    Videos are scored whole and one at a time, so there is no padding. The published code of MS-TCT
    scores only the first 256 steps of a test video.
    """
    for video in manifest.videos:
        if video.id in features:
            entry = features.entries[video.id]
            row = features[video.id][recipe.tensor].astype(np.float32)
            inputs_BDT = torch.from_numpy(row).T[None].to(device)
            logits_BKT = model(inputs_BDT, torch.tensor([len(row)], device=device))
            logits_BKF = interpolate(logits_BKT, logits_BKT.shape[2] * entry.stride)
            sink.add(video.id, logits_BKF[0, :, : entry.frames].T.sigmoid().cpu(), entry.timing)
    absent = [video for video in manifest.videos if video.id not in features]
    return {v.id: features.broken.get(v.id, "not among the features") for v in absent}
