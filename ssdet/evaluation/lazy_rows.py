"""Rows of videos that are made when they are asked for: labels, samples, points in time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from scipy.special import expit, logit

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.video.clock import Clock
from ssdet.evaluation.average_precision import Array, as_array
from ssdet.evaluation.predictions import PredictionSet

Rows = Mapping[str, Array | torch.Tensor]
"""Scores or labels [T, K] by video id."""

ZERO, ONE = 2.0**-25, 1 - 2.0**-12
"""Probabilities between which float16 tells neither 0 nor 1; logits are taken within."""


class View(Mapping[str, Array]):
    """Rows of some videos, computed each time one is asked for, so that none are held."""

    def __init__(
        self,
        videos: Iterable[str],
        make: Callable[[str], Array],
        half: bool = False,
        source: Rows | None = None,
    ) -> None:
        self._videos, self._make = dict.fromkeys(videos), make
        self.half = half
        """Whether all rows are float16."""
        self.source = source
        """Where they come from."""

    def __getitem__(self, video: str) -> Array:
        if video not in self._videos:
            raise KeyError(video)
        return self._make(video)

    def __contains__(self, video: object) -> bool:
        return video in self._videos

    def __iter__(self) -> Iterator[str]:
        return iter(self._videos)

    def __len__(self) -> int:
        return len(self._videos)


def all_half(rows: Rows) -> bool:
    """Whether all scores are float16; a prediction set's are, and are not read for it."""
    if isinstance(rows, PredictionSet):
        return True
    if isinstance(rows, View):
        return rows.half
    return all(as_array(rows[video]).dtype == np.float16 for video in rows)


def release(rows: Rows) -> None:
    """Let go of the memory of scores of a prediction set that were read so far."""
    if isinstance(rows, PredictionSet):
        rows.release()
    elif isinstance(rows, View) and rows.source is not None:
        release(rows.source)


def frame_labels(manifest: Manifest, predictions: PredictionSet) -> View:
    """Dense labels bool [T, K] at the predictions' frames, of every expected video.

    Times are those of the predictions, if they have any; else frames are spread evenly over the
    annotated duration, as in the published code for Charades. Videos without predictions, and those
    whose file is missing, have no frames.
    """
    known = {video.id: video for video in manifest.videos}
    return View([*known, *manifest.missing], partial(_labels, manifest, known, predictions))


def _labels(
    manifest: Manifest, known: Mapping[str, Video], predictions: PredictionSet, name: str
) -> Array:
    if name not in predictions or name not in known:
        return np.zeros((0, manifest.num_classes), bool)
    video, clock = known[name], predictions.clock(name)
    if clock.rate is not None and video.duration:
        clock = Clock.regular(clock.frames, clock.frames / video.duration)
    return manifest.targets_at(video, clock.times_T).T


def at_steps(probs_TK: Array, steps_N: Array) -> Array:
    """Probabilities float64 [N, K] between rows: linear in their logits, held beyond the ends.

    ``steps_N`` are row numbers from 0, fractions allowed. ValueError for scores outside 0 to 1.
    Source: specs/EVAL.md 1.6.
    """
    steps_N = np.clip(steps_N, 0, len(probs_TK) - 1)
    low_N = steps_N.astype(np.int64)
    high_N = np.minimum(low_N + 1, len(probs_TK) - 1)
    pair_2NK = np.stack([probs_TK[low_N], probs_TK[high_N]]).astype(np.float64)
    if not ((pair_2NK >= 0) & (pair_2NK <= 1)).all():
        raise ValueError("scores between frames need probabilities from 0 to 1: store those")
    logit_2NK = logit(np.clip(pair_2NK, ZERO, ONE))
    share_N1 = (steps_N - low_N)[:, None]
    return np.asarray(expit(logit_2NK[0] * (1 - share_N1) + logit_2NK[1] * share_N1))
