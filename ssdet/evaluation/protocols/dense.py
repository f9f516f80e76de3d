"""Protocols: how per-frame scores become one number, and what that number was computed from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ssdet.evaluation.average_precision import (
    Array,
    EmptyClasses,
    HistogramAP,
    as_array,
    checked,
    class_average_precision,
    class_blocks,
)
from ssdet.evaluation.lazy_rows import LazyRows, Rows, all_half, release
from ssdet.evaluation.predictions import PredictionSet

_DENSE = {
    "left_out": "dense_map/v1",
    "zero": "dense_map_apmeter/v1",
    "nonzero": "dense_map_pdan/v1",
}
SHORT = 162
"""Videos with fewer frames are skipped by the published Charades code."""


@dataclass(frozen=True)
class Score:
    """One number with the protocol that produced it; ``dataclasses.asdict`` of it is JSON."""

    value: float
    """Mean average precision, a fraction."""
    protocol: str
    """Scores of different protocols are not comparable."""
    per_class: tuple[float | None, ...]
    """Average precision of each class; None for a class without a positive frame."""
    classes_scored: int
    """Classes with a positive frame."""
    empty_class_rule: EmptyClasses
    """A class without a positive is left out of the mean, or counts 0; "nonzero" leaves out every
    class whose average precision is 0, which are the same classes."""
    videos_scored: int
    videos_expected: int
    frames: int
    """Frames of the scored videos."""


def dense_map(predictions: Rows, targets: Rows, empty_classes: EmptyClasses = "left_out") -> Score:
    """Unweighted mean over classes of the average precision over every frame of all videos.

    ``predictions`` (a PredictionSet or a mapping) and ``targets`` map a video id to [T, K].
    Equal scores share the precision of their group, so that the order of videos does not
    matter. Expected videos without predictions are not ranked, but counted. Other rules for
    classes without a positive, "zero" (apmeter) and "nonzero" (PDAN), have protocol ids of
    their own. float16 scores stream: one video is held at a time. Raises ValueError for unknown
    videos, other frame or class counts, NaN, no positive at all.
    """
    if empty_classes not in _DENSE:
        raise ValueError(f"empty_classes={empty_classes!r}: choose one of {list(_DENSE)}")
    return pooled(predictions, targets, _DENSE[empty_classes], empty_classes)


def dense_map_min162(predictions: Rows, targets: Rows) -> Score:
    """`dense_map` without the videos of fewer than 162 frames, which published code skips.

    A video without a known length stays expected.
    """
    return pooled(*without_short(predictions, targets), "dense_map_min162/v1", "left_out")


def without_short(predictions: Rows, targets: Rows) -> tuple[LazyRows, LazyRows]:
    """Scores and labels of the videos of 162 frames and more; ValueError without any."""
    kept = [video for video in targets if not 0 < len(targets[video]) < SHORT]
    scored = LazyRows(
        [video for video in kept if video in predictions],
        lambda video: as_array(predictions[video]),
        all_half(predictions),
        predictions,
    )
    if not scored:
        raise ValueError(f"no scored video has {SHORT} frames or more")
    check_expected(predictions, targets)
    return scored, LazyRows(kept, lambda video: as_array(targets[video]))


def pooled(predictions: Rows, targets: Rows, protocol: str, empty_classes: EmptyClasses) -> Score:
    """Mean average precision over the rows of all videos together, under a protocol's id."""
    scored = scored_videos(predictions, targets)
    ap_K, frames = pooled_average_precision(predictions, targets, scored)
    return _score(ap_K, frames, len(scored), len(targets), protocol, empty_classes)


def _score(
    ap_K: Array, frames: int, scored: int, expected: int, protocol: str, empty: EmptyClasses
) -> Score:
    positive_K = ~np.isnan(ap_K)
    if not positive_K.any():
        raise ValueError("no class has a positive frame: check the targets of this split")
    return Score(
        value=_mean(ap_K, empty),
        protocol=protocol,
        per_class=tuple(None if np.isnan(ap) else float(ap) for ap in ap_K),
        classes_scored=int(positive_K.sum()),
        empty_class_rule=empty,
        videos_scored=scored,
        videos_expected=expected,
        frames=frames,
    )


def _mean(ap_K: Array, empty_classes: EmptyClasses) -> float:
    zeroed_K = np.nan_to_num(ap_K)
    if empty_classes == "nonzero":
        return float(zeroed_K.sum() / np.count_nonzero(zeroed_K))
    return float(zeroed_K.mean() if empty_classes == "zero" else ap_K[~np.isnan(ap_K)].mean())


def scored_videos(predictions: Rows, targets: Rows) -> list[str]:
    """Expected videos that have predictions, in the order of the targets.

    ValueError for predicted videos that are not expected, and where there are none.
    """
    check_expected(predictions, targets)
    scored = [video for video in targets if video in predictions]
    if not scored:
        raise ValueError(f"none of the {len(targets)} expected videos has predictions")
    return scored


def check_expected(predictions: Rows, targets: Mapping[str, object]) -> None:
    """Raise ValueError for predicted videos that are not expected."""
    unknown = sorted(set(predictions) - set(targets))
    if unknown:
        raise ValueError(
            f"{len(unknown)} predicted videos are not in the targets ({', '.join(unknown[:5])}): "
            "score the split that was predicted"
        )


def pooled_average_precision(
    predictions: Rows, targets: Rows, videos: list[str]
) -> tuple[Array, int]:
    """Average precision [K] and the number of frames; streaming where all scores are float16."""
    if all_half(predictions):
        histogram = counted(predictions, targets, videos)
        return histogram.average_precision(), histogram.frames
    pairs = [checked(predictions[v], targets[v], f"video {v!r}") for v in videos]
    ap_K = np.full(pairs[0][0].shape[1], np.nan)
    for first, scores_bN, hits_bN in class_blocks(*map(list, zip(*pairs, strict=True))):
        for k, (scores_N, hits_N) in enumerate(zip(scores_bN, hits_bN, strict=True), first):
            ap_K[k] = class_average_precision(scores_N, hits_N, "sklearn")
    return ap_K, sum(len(scores_TK) for scores_TK, _ in pairs)


def counted(predictions: Rows, targets: Rows, videos: list[str]) -> HistogramAP:
    """State of the average precision over these videos' float16 scores, one video at a time.

    States of disjoint videos, counted by any workers, `merge` into that of all of them.
    """
    histogram: HistogramAP | None = None
    for video in videos:
        scores_TK = as_array(predictions[video])
        histogram = histogram or HistogramAP(scores_TK.shape[-1])
        histogram.add(scores_TK, targets[video], f"video {video!r}")
        release(predictions)
    if histogram is None:
        raise ValueError("no video to count")
    return histogram


def dense_map_in_parts(
    predictions: PredictionSet,
    targets: Rows,
    parts: int,
    over: Callable[
        [Callable[[list[str]], HistogramAP], list[list[str]]], Iterable[HistogramAP]
    ] = map,
    empty_classes: EmptyClasses = "left_out",
) -> Score:
    """`dense_map` with the videos counted in parts, which workers may do: the same to the last bit.

    ``over(count, parts)`` gives each part's state, in any order: `map`, a process pool's `map`, or
    Ray tasks (docs/protocols.md). Workers open the folder of the predictions; ``targets`` are sent
    to them, and those of `frame_labels` are small. Raises ValueError as `dense_map`.
    """
    if parts < 1 or empty_classes not in _DENSE:
        raise ValueError(
            f"parts={parts}, empty_classes={empty_classes!r}: expected 1 or more, and "
            f"one of {list(_DENSE)}"
        )
    scored = scored_videos(predictions, targets)
    split = [part for part in (scored[first::parts] for first in range(parts)) if part]
    whole = HistogramAP(predictions.classes)
    for state in over(partial(counted, predictions, targets), split):
        whole.merge(state)
    return _score(
        whole.average_precision(), whole.frames, len(scored), len(targets), _DENSE[empty_classes],
        empty_classes,
    )  # fmt: skip
