"""Scores for every frame of every video of a split."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssdet.data.clips import ClipRecipe, centre_crop, normalise
from ssdet.data.frames import FrameReader, dense_targets
from ssdet.data.manifest import Manifest, Video
from ssdet.data.video import CorruptVideo
from ssdet.training.losses import interpolate

Network = Callable[[Tensor], Tensor]
"""Clips [1, C, T, H, W] -> logits or features [1, K, T]."""


class Sink(Protocol):
    """Takes the scores of one video after another, as `PredictionWriter` does."""

    def add(self, video_id: str, probs_TK: Tensor, fps: float) -> None:
        """Probabilities [frames, K]."""


@dataclass(frozen=True)
class PredictRecipe:
    """How a network is slid over whole videos."""

    clip: ClipRecipe = field(default_factory=ClipRecipe)
    window: int = 256
    """Most clip frames in one pass; longer videos are cut into equal parts."""


def passes(
    video: Video, reader: FrameReader, recipe: PredictRecipe, device: torch.device
) -> Iterator[tuple[range, Tensor]]:
    """Every stride-th frame of a video from frame 0, in as few passes as the window allows: the
    frames' indices and the input [1, C, T, H, W]. Raises CorruptVideo."""
    steps = range(0, reader.frames(video), recipe.clip.stride)
    count = -(-len(steps) // recipe.window)
    for part in range(count):
        mine = steps[len(steps) * part // count : len(steps) * (part + 1) // count]
        pictures = torch.from_numpy(np.ascontiguousarray(reader.read(video, mine)))
        yield mine, normalise(centre_crop(pictures, recipe.clip.size)[None], recipe.clip, device)


@torch.inference_mode()
def score_video(
    network: Network, video: Video, reader: FrameReader, recipe: PredictRecipe, device: torch.device
) -> Tensor:
    """Logits [frames, K] of a video, interpolated to its own rate. Raises CorruptVideo."""
    inputs = passes(video, reader, recipe, device)
    logits_BKT = torch.cat([network(clips) for _, clips in inputs], 2)
    # In one piece, so that interpolation does not see where one pass ends and the next begins.
    logits_BKF = interpolate(logits_BKT, logits_BKT.shape[2] * recipe.clip.stride)
    return logits_BKF[0].T[: reader.frames(video)].contiguous().cpu()


def predict(
    network: Network,
    manifest: Manifest,
    reader: FrameReader,
    recipe: PredictRecipe,
    writer: Sink,
    device: torch.device,
) -> dict[str, str]:
    """Write the probabilities of every video; returns the videos that cannot be read, and why."""
    broken = {}
    for video in manifest.videos:
        try:
            logits_FK = score_video(network, video, reader, recipe, device)
        except CorruptVideo as error:
            broken[video.id] = error.reason
            continue
        writer.add(video.id, logits_FK.sigmoid(), reader.fps(video))
    return broken


def frame_targets(manifest: Manifest, reader: FrameReader) -> dict[str, np.ndarray]:
    """Dense labels bool [frames, K] of every expected video; no frames where it is missing or
    cannot be opened."""
    targets = {name: np.zeros((0, manifest.num_classes), bool) for name in manifest.missing}
    for video in manifest.videos:
        try:
            targets[video.id] = dense_targets(manifest, video, reader).T
        except CorruptVideo:
            targets[video.id] = np.zeros((0, manifest.num_classes), bool)
    return targets
