"""Validation during training, on the validation split of the data being trained on."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.loading.clips import centre_clips, normalise
from ssdet.data.loading.frame_readers import FrameReader
from ssdet.data.loading.recipe import DENSE
from ssdet.data.video.clock import Clock
from ssdet.data.video.reader import CorruptVideo
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.evaluation.protocols.registry import Material, protocol_of
from ssdet.inference.fine_features import FineFeatureReader
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import Sink, frame_targets, predict
from ssdet.stages.job import Job
from ssdet.training.recipe import HeadRecipe, OptimRecipe, TrainRecipe
from ssdet.training.state import Validate


def validation_of(
    recipe: TrainRecipe,
    manifest: Manifest,
    reader: FrameReader,
    device: torch.device,
    fine_reader: FineFeatureReader | None = None,
    truth: Material | None = None,
) -> Validate | None:
    """What judges the networks of a recipe; None without videos, where no schedule needs them.

    truth: what the recipe's protocol scores against; not needed for dense mAP.
    """
    if not followed(recipe.optim, recipe.validate_on, manifest):
        return None
    if recipe.task == "pretrain":
        return clip_accuracy(recipe, manifest, reader, device)
    return frame_map(recipe, manifest, reader, device, fine_reader, truth)


def followed(optim: OptimRecipe, split: str, manifest: Manifest) -> bool:
    """Whether there are videos to judge a network on; ValueError without any where the learning
    rate follows them."""
    if not manifest.videos and optim.schedule == "plateau":
        raise ValueError(
            f"schedule='plateau': data set {manifest.name!r} has no videos in the split {split!r}, "
            "whose loss it follows: mark some as validation, set validate_on='test' as the "
            "published code does, or schedule='step'"
        )
    return bool(manifest.videos)


def clip_accuracy(
    recipe: TrainRecipe, manifest: Manifest, reader: FrameReader, device: torch.device
) -> Validate:
    """Share of videos whose label is the first choice (top-1), by the mean over the clips that the
    recipe spreads over a video, one from its middle by default. A video that cannot be read counts
    as a miss."""
    shift = recipe.head_classes(manifest.num_classes) - manifest.num_classes
    views = recipe.validation_clips

    @torch.inference_mode()
    def judge(model: nn.Module) -> Mapping[str, float]:
        hits = 0
        for first in range(0, len(manifest.videos), 16):
            read = []
            for video in manifest.videos[first : first + 16]:
                with suppress(CorruptVideo):
                    read.append((video.label, centre_clips(video, reader, recipe.clip, views)))
            if not read:
                continue
            labels, pictures = zip(*read, strict=True)
            clips = normalise(torch.cat(pictures), recipe.clip, device)
            clip = recipe.readout == "clip"
            logits = model.classify(clips) if clip else model(clips).mean(2)  # type: ignore[operator]
            mean_BK = logits[:, shift:].unflatten(0, (-1, views)).mean(1)
            hits += int((mean_BK.argmax(1).cpu() == torch.tensor(labels)).sum())
        return {"validation": hits / len(manifest.videos)}

    return judge


def frame_map(
    recipe: TrainRecipe,
    manifest: Manifest,
    reader: FrameReader,
    device: torch.device,
    fine_reader: FineFeatureReader | None = None,
    truth: Material | None = None,
) -> Validate:
    """Judges a network by whole videos, see `whole_videos`."""

    def score(model: nn.Module, sink: Sink) -> None:
        predict(model, manifest, reader, PredictRecipe(recipe.clip), sink, device, fine_reader)

    targets = frame_targets(manifest, reader)
    return whole_videos(score, targets, recipe.optim, recipe.validate_by, truth)


def whole_videos(
    score: Callable[[nn.Module, Sink], None],
    targets: Mapping[str, np.ndarray],
    optim: OptimRecipe,
    by: str = DENSE,
    truth: Material | None = None,
) -> Validate:
    """Score, under the protocol `by`, of the videos that `score` hands on and, where the schedule
    follows it, the mean over videos of the localisation loss.

    truth: what another protocol than dense mAP scores against.
    """

    def judge(model: nn.Module) -> Mapping[str, float]:
        seen = Memory(targets if optim.schedule == "plateau" else {})
        score(model, seen)
        if truth is None:
            found = {"validation": dense_map(seen.scores, targets).value}
        else:
            found = {"validation": seen.scored(by, truth)}
        return found | ({"validation_loss": float(np.mean(seen.losses))} if seen.losses else {})

    return judge


class Memory:
    """Keeps probabilities in memory, in place of a writer, and the losses of videos with targets
    [frames, K]."""

    def __init__(self, targets: Mapping[str, np.ndarray]) -> None:
        self.targets = targets
        self.scores: dict[str, Tensor] = {}
        self.clocks: dict[str, float | Clock] = {}
        self.losses: list[float] = []

    def add(self, video_id: str, probs_TK: Tensor, fps: float | Clock) -> None:
        self.scores[video_id], self.clocks[video_id] = probs_TK.half(), fps
        if video_id in self.targets:
            labels_TK = torch.from_numpy(self.targets[video_id]).to(probs_TK)
            clip = F.binary_cross_entropy(probs_TK.amax(0), labels_TK.amax(0))
            self.losses.append(float(clip + F.binary_cross_entropy(probs_TK, labels_TK)) / 2)

    def scored(self, protocol: str, truth: Material) -> float:
        """Score of what was kept; ValueError where the protocol does not apply or has no value."""
        with TemporaryDirectory(prefix="ssdet-validation-") as folder:
            with PredictionWriter(folder, truth.annotated.num_classes) as writer:
                for video, probs_TK in self.scores.items():
                    writer.add(video, probs_TK, self.clocks[video])
            predictions = PredictionSet.open(folder)
            return protocol_of(protocol).reading(replace(truth, predictions=predictions)).number


def validation_truth(job: Job, recipe: TrainRecipe | HeadRecipe) -> Material | None:
    """What a protocol other than dense mAP scores validations against; None for dense mAP."""
    return None if recipe.validate_by == DENSE else job.data.truth(recipe.validate_on)
