"""Action-conditional scores: precision, recall and mAP given another action, now or before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssdet.evaluation.average_precision import Array, as_array, checked
from ssdet.evaluation.lazy_rows import Rows, release
from ssdet.evaluation.protocols.dense import pooled_average_precision, scored_videos


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
    """Precision, recall, F1 and mAP on the frames that each class selects, averaged over pairs.

    t = 0: frames where class j is active. t > 0: frames where it is inactive, but was active in
    the t - 1 frames before (the published window of t includes the frame itself); t < 0: is
    active in the frames after. ``compat="released"`` has the published code's window for t < 0,
    which is wrong near both ends of a video and empty between. Scores are probabilities, decided
    by ``threshold``. Raises ValueError as `dense_map`, and without any pair. Source: the published
    code of MS-TCT (Dai et al., CVPR 2022).
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
        selected_TK = _selected(hits_TK, t, compat)
        for j in np.flatnonzero(selected_TK.any(axis=0)).tolist():
            frames_of.setdefault(j, {})[video] = np.flatnonzero(selected_TK[:, j])
        release(predictions)
    given = [_given(j, predictions, targets, rows, threshold) for j, rows in frames_of.items()]
    pairs_P3 = np.concatenate([np.zeros((0, 3)), *(scores_I3 for _, scores_I3 in given)])
    if not len(pairs_P3):
        raise ValueError(f"no class has a positive in frames that another one selects (t={t})")
    precision, recall, mean_ap = pairs_P3.mean(axis=0).tolist()
    return ConditionalScore(
        precision, recall, 2 * precision * recall / (precision + recall + 1e-9), mean_ap,
        f"conditional_t{t}{'_released' * bool(compat)}/v1", len(pairs_P3),
        len({i for others, _ in given for i in others}), len(videos), len(targets), total,
    )  # fmt: skip


def _selected(hits_TK: Array, t: int, compat: str) -> Array:
    """Frames that each class selects, bool [T, K]."""
    if t == 0:
        return hits_TK
    if t < 0 and compat:
        return _released_after(hits_TK, -t) & ~hits_TK
    near = _active_within(hits_TK[::-1], -t)[::-1] if t < 0 else _active_within(hits_TK, t)
    return near & ~hits_TK


def _active_within(hits_TK: Array, window: int) -> Array:
    """Whether a class is active in any of the last `window` frames, including the current one."""
    counts = hits_TK.cumsum(axis=0)
    before = np.zeros_like(counts)
    before[window:] = counts[:-window]
    return counts > before


def _released_after(hits_TK: Array, window: int) -> Array:
    """The published window over later frames, whose counts are shifted in the wrong direction."""
    counts = hits_TK[::-1].cumsum(axis=0)
    shifted = np.roll(counts, -window, axis=0)
    shifted[:window] = 0
    return np.asarray((counts > shifted)[::-1])


def _given(
    j: int, predictions: Rows, targets: Rows, rows: Mapping[str, Array], threshold: float
) -> tuple[list[int], Array]:
    """Other classes with a positive in these frames; their precision, recall and average
    precision [I, 3]."""
    scores = {video: as_array(predictions[video])[frames] for video, frames in rows.items()}
    hits = {video: as_array(targets[video])[frames].astype(bool) for video, frames in rows.items()}
    release(predictions)
    positive = {video: scores_NK >= threshold for video, scores_NK in scores.items()}
    hits_K = np.sum([hits[video].sum(axis=0) for video in rows], axis=0)
    positive_K = np.sum([positive[video].sum(axis=0) for video in rows], axis=0)
    right_K = np.sum([(positive[video] & hits[video]).sum(axis=0) for video in rows], axis=0)
    others = hits_K > 0
    others[j] = False
    ap_K, _ = pooled_average_precision(scores, hits, list(rows))
    columns = (right_K / np.maximum(positive_K, 1), right_K / np.maximum(hits_K, 1), ap_K)
    return np.flatnonzero(others).tolist(), np.stack(columns, axis=1)[others]
