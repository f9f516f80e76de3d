"""Scores of every frame of every video of a split."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.clips import centre_crop, normalise
from ssdet.data.loading.frame_readers import FrameReader, dense_targets, timing
from ssdet.data.loading.recipe import ClipRecipe
from ssdet.data.video.clock import Clock
from ssdet.data.video.reader import CorruptVideo
from ssdet.inference.fine_features import FineFeatureReader
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.windows import Window, clip_windows, slide, upsample, windows
from ssdet.models.layers.resampling import interpolate

Network = Callable[[Tensor], Tensor]
"""Clips [1, C, T, H, W] -> logits or features [1, K, T]."""


class Sink(Protocol):
    """Receives the scores of one video after another, as `PredictionWriter` does."""

    def add(self, video_id: str, probs_TK: Tensor, fps: float | Clock) -> None:
        """Receive probabilities [frames, K] of a video of constant rate `fps`, or with a clock."""


def passes(
    video: Video, reader: FrameReader, recipe: PredictRecipe, device: torch.device
) -> Iterator[tuple[range, Tensor]]:
    """Yield frame indices and input [1, C, T, H, W] of every pass over a video: every stride-th
    frame from 0, in as few passes as the window allows. Raises CorruptVideo."""
    steps = range(0, reader.frames(video), recipe.clip.stride)
    for part in windows(len(steps), recipe.window):
        indices = steps[part.start : part.stop]
        yield indices, _input(video, reader, indices, recipe.clip, device)


def _input(
    video: Video,
    reader: FrameReader,
    indices: Sequence[int],
    clip: ClipRecipe,
    device: torch.device,
) -> Tensor:
    frames_THWC = torch.from_numpy(np.ascontiguousarray(reader.read(video, indices)))
    return normalise(centre_crop(frames_THWC, clip.size)[None], clip, device)


@torch.inference_mode()
def score_video(
    network: Network,
    video: Video,
    reader: FrameReader,
    recipe: PredictRecipe,
    device: torch.device,
    fine_reader: FineFeatureReader | None = None,
) -> Tensor:
    """Logits [frames, K] of a video, interpolated to its own rate.

    fine_reader: fine-stream features for a two-stream network. Raises CorruptVideo, and ValueError
    for a window that is all overlap.
    """
    frames, clip = reader.frames(video), recipe.clip
    steps = range(0, frames, clip.stride)
    parts = windows(len(steps), recipe.window, _context(network, recipe))

    def score(part: Window) -> Tensor:
        clips = _input(video, reader, steps[part.start : part.stop], clip, device)
        if fine_reader is None:
            return network(clips)
        fine = fine_reader([video.id], torch.tensor([steps[part.start]]))
        return network(clips, fine.to(device))  # type: ignore[call-arg]

    logits_BKT = torch.cat([score(part)[:, :, part.keep] for part in parts], 2)
    # Interpolated in one piece, so that the borders of passes have no influence.
    logits_BKF = interpolate(logits_BKT, logits_BKT.shape[2] * clip.stride)
    return logits_BKF[0].T[:frames].contiguous().cpu()


def _context(network: Network, recipe: PredictRecipe) -> int:
    """Frames that a pass reads beyond its part on each side."""
    if not recipe.overlap:
        return 0
    context: int | None = getattr(network, "temporal_context", None)
    return recipe.window // 8 if context is None else context


@torch.inference_mode()
def stream_logits(
    model: nn.Module,
    pictures: Iterable[np.ndarray],
    frames: int,
    recipe: PredictRecipe,
    device: torch.device,
    readout: Literal["frame", "clip"] = "frame",
) -> Iterator[Tensor]:
    """Yield blocks [n, K] of the logits of `score_video` for a video of `frames` frames.

    `pictures`: every stride-th frame, uint8 [H, W, C]; memory is that of one pass. With
    readout="clip" overlapping clips are scored (`model.classify`), two for every frame, and frames
    between their middles interpolated; a video of one clip or less is scored once, for all frames.
    ValueError for a window that is all overlap.
    """
    clip = recipe.clip
    steps = -(-frames // clip.stride)
    if readout == "clip":
        hop, scorer = clip.frames // 2, _clip_logits
        parts = clip_windows(steps, clip.frames, hop)
    else:
        hop, scorer = 1, _frame_logits
        parts = windows(steps, recipe.window, _context(model, recipe))
    crops = (centre_crop(torch.from_numpy(picture)[None], clip.size)[0] for picture in pictures)
    score, done = partial(scorer, model, clip, device), 0
    for rows in upsample(slide(crops, parts, score), hop * clip.stride):
        yield rows[: frames - done].cpu()
        done += len(rows)
    if done < frames:  # a single clip, whose column covers fewer frames than the clip
        yield rows[-1:].expand(frames - done, -1).cpu()


def _frame_logits(
    model: nn.Module, clip: ClipRecipe, device: torch.device, pictures_THWC: Tensor
) -> Tensor:
    return model(normalise(pictures_THWC[None], clip, device))[0]


def _clip_logits(
    model: nn.Module, clip: ClipRecipe, device: torch.device, pictures_THWC: Tensor
) -> Tensor:
    # A short video is repeated, as in training.
    clip_THWC = pictures_THWC[torch.arange(clip.frames) % len(pictures_THWC)]
    return model.classify(normalise(clip_THWC[None], clip, device)).T  # type: ignore[operator]


def predict(
    network: Network,
    manifest: Manifest,
    reader: FrameReader,
    recipe: PredictRecipe,
    writer: Sink,
    device: torch.device,
    fine_reader: FineFeatureReader | None = None,
) -> dict[str, str]:
    """Write the probabilities of every video; return the reasons of unreadable videos by id."""
    broken = {}
    for video in manifest.videos:
        try:
            logits_FK = score_video(network, video, reader, recipe, device, fine_reader)
        except CorruptVideo as error:
            broken[video.id] = error.reason
            continue
        writer.add(video.id, logits_FK.sigmoid(), timing(reader, video))
    return broken


def frame_targets(manifest: Manifest, reader: FrameReader) -> dict[str, np.ndarray]:
    """Dense labels bool [frames, K] of every expected video, [0, K] if its file is missing or
    cannot be opened."""
    targets = {name: np.zeros((0, manifest.num_classes), bool) for name in manifest.missing}
    for video in manifest.videos:
        try:
            targets[video.id] = dense_targets(manifest, video, reader).T
        except CorruptVideo:
            targets[video.id] = np.zeros((0, manifest.num_classes), bool)
    return targets
