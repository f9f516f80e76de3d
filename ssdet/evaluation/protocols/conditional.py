"""Action-conditional scores: how well classes are found where another class is, or has been."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssdet.evaluation.average_precision import (
    Array,
    HistogramAP,
    as_array,
    average_precision,
    checked,
)
from ssdet.evaluation.lazy_rows import Rows, release
from ssdet.evaluation.protocols.dense import scored_videos


@dataclass(frozen=True)
class ConditionalScore:
    """Means over ordered pairs of classes (i given j, i != j) where i has a positive."""

    precision: float
    recall: float
    f1: float
    """Harmonic mean of the two means above."""
    map: float
    protocol: str
    pairs: int
    """Pairs in the means."""
    classes: int
    """Classes with a positive in one of them."""
    videos_scored: int
    videos_expected: int
    frames: int
    """Frames of the scored videos."""


def conditional_map(
    predictions: Rows,
    targets: Rows,
    t: int = 0,
    threshold: float = 0.5,
    compat: Literal["", "released"] = "",
) -> ConditionalScore:
    """Precision, recall, F1 and mAP on the frames chosen by each class, averaged over pairs.

    t = 0: frames where class j is active. t > 0: where it is not, but was in the t - 1 frames
    before (the published window of t counts the frame itself); t < 0: is in the frames after.
    ``compat="released"`` has the published window for t < 0, which looks elsewhere near both ends
    of a video and nowhere between. Scores are probabilities; ``threshold`` makes them decisions.
    Raises ValueError as `dense_map`, and without any pair. Source: specs/EVAL.md 7.
    """
    if compat not in ("", "released") or not 0 < threshold < 1:
        raise ValueError(
            f"compat={compat!r}, threshold={threshold}: expected '' or 'released', and 0 to 1"
        )
    videos = scored_videos(predictions, targets)
    frames_of: dict[int, dict[str, Array]] = {}
    total = 0
    for video in videos:
        _, hits_TK = checked(predictions[video], targets[video], f"video {video!r}")
        total += len(hits_TK)
        chosen_TK = _chosen(hits_TK, t, compat)
        for j in np.flatnonzero(chosen_TK.any(axis=0)).tolist():
            frames_of.setdefault(j, {})[video] = np.flatnonzero(chosen_TK[:, j])
        release(predictions)
    given = [_given(j, predictions, targets, rows, threshold) for j, rows in frames_of.items()]
    pairs_P3 = np.concatenate([np.zeros((0, 3)), *(scores_I3 for _, scores_I3 in given)])
    if not len(pairs_P3):
        raise ValueError(f"no class has a positive where another is chosen (t={t})")
    precision, recall, mean_ap = pairs_P3.mean(axis=0).tolist()
    return ConditionalScore(
        precision, recall, 2 * precision * recall / (precision + recall + 1e-9), mean_ap,
        f"conditional_t{t}{'_released' * bool(compat)}/v1", len(pairs_P3),
        len({i for others, _ in given for i in others}), len(videos), len(targets), total,
    )  # fmt: skip


def _chosen(hits_TK: Array, t: int, compat: str) -> Array:
    """Frames that each class chooses, bool [T, K]."""
    if t == 0:
        return hits_TK
    if t < 0 and compat:
        return _released_after(hits_TK, -t) & ~hits_TK
    near = _active_within(hits_TK[::-1], -t)[::-1] if t < 0 else _active_within(hits_TK, t)
    return near & ~hits_TK


def _active_within(hits_TK: Array, window: int) -> Array:
    """Whether a class is active in any of the last `window` frames, the present one included."""
    counts = hits_TK.cumsum(axis=0)
    before = np.zeros_like(counts)
    before[window:] = counts[:-window]
    return counts > before


def _released_after(hits_TK: Array, window: int) -> Array:
    """The published window over the frames after: its counts are shifted the wrong way round."""
    counts = hits_TK[::-1].cumsum(axis=0)
    shifted = np.roll(counts, -window, axis=0)
    shifted[:window] = 0
    return np.asarray((counts > shifted)[::-1])


def _given(
    j: int, predictions: Rows, targets: Rows, rows: Mapping[str, Array], threshold: float
) -> tuple[list[int], Array]:
    """Other classes with a positive in these frames; their precision, recall and average
    precision [I, 3]."""
    parts = [
        (as_array(predictions[video])[frames], as_array(targets[video])[frames].astype(bool))
        for video, frames in rows.items()
    ]
    release(predictions)
    hits_K = sum(hits.sum(axis=0) for _, hits in parts)
    found_K = sum((scores >= threshold).sum(axis=0) for scores, _ in parts)
    right_K = sum(((scores >= threshold) & hits).sum(axis=0) for scores, hits in parts)
    others = np.asarray(hits_K) > 0
    others[j] = False
    columns = (right_K / np.maximum(found_K, 1), right_K / np.maximum(hits_K, 1), _ap(parts))
    return np.flatnonzero(others).tolist(), np.stack(columns, axis=1)[others]


def _ap(parts: list[tuple[Array, Array]]) -> Array:
    if {scores.dtype for scores, _ in parts} != {np.dtype(np.float16)}:
        scores_NK, hits_NK = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return average_precision(scores_NK, hits_NK, ties="sklearn")
    histogram = HistogramAP(parts[0][0].shape[1])
    for scores_NK, hits_NK in parts:
        histogram.add(scores_NK, hits_NK)
    return histogram.average_precision()
