"""Heads on stored features: batches, training and per-frame scores."""

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
from ssdet.training.loop import fit
from ssdet.training.losses import head_loss
from ssdet.training.recipe import HeadRecipe
from ssdet.training.state import Validate


class HeadBatch(NamedTuple):
    """B videos or crops of them, padded with zeros."""

    features_BDT: Tensor
    lengths_B: Tensor
    targets_BKT: Tensor
    """float32 0/1, 0 in the padding."""
    heat_BKT: Tensor | None = None
    """Heat maps of the actions if the recipe weighs them."""

    @property
    def mask_BT(self) -> Tensor:
        """bool: which steps exist."""
        steps_T = torch.arange(self.features_BDT.shape[2], device=self.lengths_B.device)
        return steps_T < self.lengths_B[:, None]

    def to(self, device: torch.device) -> "HeadBatch":
        """The same on a device."""
        return HeadBatch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


class FeatureBatches:
    """Batches, by step, of shuffled epochs over the videos of a split that have features.

    Raises ValueError if none has features (and actions, with `skip_empty`), and for a tensor that
    is not one vector a step.
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
        self.width = feature_width(features, recipe.tensor)

    def batch(self, step: int) -> HeadBatch:
        """The batch of a step (from 0)."""
        videos = drawn_videos(self.videos, self.recipe.seed, self.recipe.optim.batch, step)
        crops = [self._crop(video, step, i) for i, video in enumerate(videos)]
        return self.collate(videos, crops, self.recipe.crop)

    def _crop(self, video: Video, step: int, row: int) -> slice:
        """Steps of a video to read for a row of a step's batch."""
        spare = self.features.entries[video.id].steps - self.recipe.crop
        if not self.recipe.crop or spare <= 0:
            return slice(None)
        generator = generator_for(self.recipe.seed, "stretch", step, row)
        start = int(torch.randint(spare + 1, (), generator=generator))
        return slice(start, start + self.recipe.crop)

    def collate(
        self, videos: Sequence[Video], crops: Sequence[slice] | None = None, steps: int = 0
    ) -> HeadBatch:
        """Whole videos or crops of them as a batch, padded to at least `steps`."""
        crops = crops or [slice(None)] * len(videos)
        samples = [self._sample(video, crop) for video, crop in zip(videos, crops, strict=True)]
        lengths = [features_DT.shape[1] for features_DT, *_ in samples]
        padding = [max(steps, *lengths) - length for length in lengths]
        features_BDT, targets_BKT, *heat = (
            torch.stack([F.pad(row, (0, n)) for row, n in zip(rows, padding, strict=True)])
            for rows in zip(*samples, strict=True)
        )
        return HeadBatch(features_BDT, torch.tensor(lengths), targets_BKT, *heat)

    def _sample(self, video: Video, crop: slice) -> list[Tensor]:
        """Features [D, t], targets [K, t] and, if the recipe weighs it, heat map of a crop."""
        entry, rows_TD = self.features.entries[video.id], self.features[video.id]
        features_DT = torch.from_numpy(rows_TD[self.recipe.tensor][crop].astype(np.float32)).T
        dense_KF = dense_targets(self.manifest, video, cast(FrameReader, self.features))
        targets_KT = torch.from_numpy(dense_KF[:, :: entry.stride][:, crop]).float()
        if not self.recipe.heat_map:
            return [features_DT, targets_KT]
        clock = cast(FrameReader, self.features).clock(video)
        rate = clock.rate or entry.fps
        spans_S2 = np.array([[s.start, s.end] for s in video.segments]).reshape(-1, 2)
        if clock.rate is None:  # at a variable rate, steps are evenly spaced in frames, not in time
            spans_S2 = clock.position(spans_S2) / rate
        labels = (segment.label for segment in video.segments)
        actions = [(k, float(a), float(b)) for k, (a, b) in zip(labels, spans_S2, strict=True)]
        heat_KT = heat_map(actions, rate / entry.stride, entry.steps, self.manifest.num_classes)
        return [features_DT, targets_KT, heat_KT[:, crop]]


def drawn_videos(videos: Sequence[Video], seed: int, batch: int, step: int) -> list[Video]:
    """Videos of the batch of a step (from 0), in shuffled epochs."""
    positions = range(step * batch, (step + 1) * batch)
    return [videos[sample_at(seed, position, len(videos))[1]] for position in positions]


def feature_width(features: FeatureSet, tensor: str) -> int:
    """Channels of a tensor of one vector a step; ValueError for other and unknown tensors."""
    shape = features.shapes.get(tensor)
    if shape is None or len(shape) != 1:
        raise ValueError(
            f"{features.folder}: tensor {tensor!r} of shape {shape}: heads read one vector a step, "
            f"there are {features.shapes}"
        )
    return shape[0]


def build_head(recipe: HeadRecipe, width: int, classes: int) -> nn.Module:
    """The recipe's model with fresh weights by its seed.

    ValueError for `in_features` other than `width`, or a heat map that the model lacks.
    """
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
    recipe: HeadRecipe, batches: FeatureBatches, context: Context, validate: Validate | None = None
) -> dict[str, Any]:
    """Train a head; resumes and ends as `ssdet.training.train`."""
    model = build_head(recipe, batches.width, batches.manifest.num_classes)

    def loss_of(batch: HeadBatch) -> Tensor:
        return batch_loss(recipe, model, batch)

    return fit(recipe, model, batches.batch, loss_of, context, validate)


def batch_loss(recipe: HeadRecipe, model: nn.Module, batch: HeadBatch) -> Tensor:
    """BCE of the steps plus, if the batch has heat maps, their weighted focal loss."""
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
    """Write the probabilities of every frame of every video with features; return the reasons of
    the other videos by id.

    Videos are scored whole, one at a time, without padding (the published code of MS-TCT scores
    only the first 256 steps of a test video).
    """
    absent = {}
    for video in manifest.videos:
        if video.id not in features:
            absent[video.id] = features.broken.get(video.id, "not among the features")
            continue
        entry = features.entries[video.id]
        rows_TD = features[video.id][recipe.tensor].astype(np.float32)
        inputs_BDT = torch.from_numpy(rows_TD).T[None].to(device)
        logits_BKT = model(inputs_BDT, torch.tensor([len(rows_TD)], device=device))
        logits_BKF = interpolate(logits_BKT, logits_BKT.shape[2] * entry.stride)
        sink.add(video.id, logits_BKF[0, :, : entry.frames].T.sigmoid().cpu(), entry.timing)
    return absent
