"""Detector: scores of one trained network or several for every frame of a video."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdet.data.loading.frame_readers import shrunk
from ssdet.data.video.stream import Clock, stream_frames, video_clock
from ssdet.detection.records import Detections
from ssdet.detection.segments import Rows
from ssdet.inference.scoring import stream_logits
from ssdet.inference.windows import retime
from ssdet.stages.checkpoint_loader import NO_NAMES, LoadedNetwork, Name, load_networks
from ssdet.training.context import default_device


class Detector:
    """Scores every frame of a video with one network, or with the mean probability of several:
    `Detector("i3d-kinetics400").detect(path)`.

    checkpoint: a stage or run id of `store`, a stage's folder, a checkpoint file with its
    `recipe.json` beside it or in the folder above, the name of published weights, a `Member`, or
    several of these. An ensemble's id selects its members. Each network reads a video at its own
    size and frame rate; its scores are interpolated to the video's frames.

    `window`: maximum clip frames per pass, by default the recipe's. A network with a limited
    temporal context (`temporal_context`) scores a video of any length as in one pass;
    squeeze-excitation averages over a pass. ValueError and FileNotFoundError describe what is wrong
    with a checkpoint.
    """

    def __init__(
        self,
        checkpoint: Name | LoadedNetwork | Sequence[Name | LoadedNetwork],
        store: Name | None = None,
        device: str | torch.device | None = None,
        window: int | None = None,
    ) -> None:
        several = not isinstance(checkpoint, (str, os.PathLike, LoadedNetwork))
        sources: Sequence[Any] = checkpoint if several else [checkpoint]  # type: ignore[assignment]
        self.sources = tuple(
            "" if isinstance(one, LoadedNetwork) else os.fspath(one) for one in sources
        )
        self.device = default_device() if device is None else torch.device(device)
        members = [member for one in sources for member in load_networks(one, store)]
        self.members = tuple(_ready(member, window, self.device) for member in members)
        if not self.members:
            raise ValueError("a detector needs at least one checkpoint")
        self.classes = _common_classes(self.members)
        self.notes = tuple(dict.fromkeys(note for one in self.members for note in one.notes))

    def stream(self, path: Name) -> Iterator[Rows]:
        """Scores in blocks of consecutive frames, in bounded memory for videos of any length.

        Raises CorruptVideo (also after valid blocks), FileNotFoundError, and ValueError where a
        network gives NaN.
        """
        times, done = video_clock(path), 0
        for scores_NK in _mean(partial(self._scores, one, path, times) for one in self.members):
            if bool(scores_NK.isnan().any()):
                raise ValueError(f"video {os.fspath(path)!r}: scores contain NaN: repair the model")
            stop = done + len(scores_NK)
            yield Rows(done, times.times_T[done:stop], times.ends(done, stop), scores_NK.numpy())
            done = stop

    def detect(self, path: Name) -> Detections:
        """Scores of all frames at once. Raises as `stream`."""
        times = video_clock(path)
        scores_TK = np.concatenate([rows.probabilities_NK for rows in self.stream(path)])
        video = os.fspath(path)
        return Detections(video, self.classes, times.times_T, times.end, scores_TK, self.notes)

    def _scores(self, member: LoadedNetwork, path: Name, times: Clock) -> Iterator[Tensor]:
        numbers = times.grid(member.fps) if member.fps else np.arange(len(times.times_T))
        wanted = numbers[:: member.recipe.clip.stride].tolist()
        pictures = stream_frames(path, wanted, shrunk(os.fspath(path), member.decode_size))
        blocks = stream_logits(
            member.model, pictures, len(numbers), member.recipe, self.device, member.readout
        )
        scores = (member.probabilities(logits_NK) for logits_NK in blocks)
        if not member.fps:
            return scores
        return retime(scores, (times.times_T - times.times_T[0]) * member.fps)


def _mean(streams: Any) -> Iterator[Tensor]:
    """Mean of several streams of blocks [n, K] of the same rows, cut at different rows."""
    iterators = [stream() for stream in streams]
    blocks = [next(iterator) for iterator in iterators]
    while True:
        rows = min(map(len, blocks))
        yield torch.stack([block[:rows] for block in blocks]).mean(0)
        blocks = [block[rows:] for block in blocks]
        for index, iterator in enumerate(iterators):
            if not len(blocks[index]):
                following = next(iterator, None)
                if following is None:
                    return
                blocks[index] = following


def _ready(member: LoadedNetwork, window: int | None, device: torch.device) -> LoadedNetwork:
    recipe = replace(member.recipe, overlap=True, window=window or member.recipe.window)
    return replace(member, model=member.model.to(device).eval(), recipe=recipe)


def _common_classes(members: Sequence[LoadedNetwork]) -> tuple[str, ...]:
    named = [one.classes for one in members if NO_NAMES not in one.notes]
    first = (named or [members[0].classes])[0]
    for other in [*named, *(one.classes for one in members)]:
        if len(other) != len(first):
            raise ValueError(f"members have {len(first)} and {len(other)} classes: take one task's")
        if other in named and other != first:
            differing = next(pair for pair in zip(first, other, strict=True) if len(set(pair)) > 1)
            raise ValueError(f"members differ in their classes: {differing[0]!r}, {differing[1]!r}")
    return first
