"""Scores and labels of videos that are computed on access, and interpolation between frames."""

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
"""Logits are computed of probabilities clamped to these, half a float16 step inside 0 and 1."""


class LazyRows(Mapping[str, Array]):
    """Read-only mapping from video id to rows [T, K] that are computed on every access."""

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
        """Rows that they are computed from, for `release`."""

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
    """Whether all scores are float16, without reading those of a prediction set."""
    if isinstance(rows, PredictionSet):
        return True
    if isinstance(rows, LazyRows):
        return rows.half
    return all(as_array(rows[video]).dtype == np.float16 for video in rows)


def release(rows: Rows) -> None:
    """Release the memory of the scores that were read from a prediction set."""
    if isinstance(rows, PredictionSet):
        rows.release()
    elif isinstance(rows, LazyRows) and rows.source is not None:
        release(rows.source)


def frame_labels(manifest: Manifest, predictions: PredictionSet) -> LazyRows:
    """Dense labels bool [T, K] at the predictions' frames, of every expected video.

    Frames are at the times of variable-rate predictions, else evenly spaced over the annotated
    duration, as in the published code for Charades. Videos without predictions or file have none.
    """
    videos = {video.id: video for video in manifest.videos}
    return LazyRows([*videos, *manifest.missing], partial(_labels, manifest, videos, predictions))


def _labels(
    manifest: Manifest, videos: Mapping[str, Video], predictions: PredictionSet, name: str
) -> Array:
    if name not in predictions or name not in videos:
        return np.zeros((0, manifest.num_classes), bool)
    video, clock = videos[name], predictions.clock(name)
    if clock.rate is not None and video.duration:
        clock = Clock.regular(clock.frames, clock.frames / video.duration)
    return manifest.targets_at(video, clock.times_T).T


def at_steps(probs_TK: Array, steps_N: Array) -> Array:
    """Probabilities float64 [N, K] at fractional row numbers ``steps_N`` (from 0): linear in the
    logits, the end rows beyond the ends. ValueError for scores outside 0 to 1."""
    steps_N = np.clip(steps_N, 0, len(probs_TK) - 1)
    low_N = steps_N.astype(np.int64)
    high_N = np.minimum(low_N + 1, len(probs_TK) - 1)
    pair_2NK = np.stack([probs_TK[low_N], probs_TK[high_N]]).astype(np.float64)
    if not ((pair_2NK >= 0) & (pair_2NK <= 1)).all():
        raise ValueError("scores between frames need probabilities from 0 to 1: store those")
    logit_2NK = logit(np.clip(pair_2NK, ZERO, ONE))
    weight_N1 = (steps_N - low_N)[:, None]
    return np.asarray(expit(logit_2NK[0] * (1 - weight_N1) + logit_2NK[1] * weight_N1))
