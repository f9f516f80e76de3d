"""Protocols: how per-frame scores become one number, and what that number was computed from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ssdet.evaluation.average_precision import (
    Array,
    HistogramAP,
    checked,
    class_average_precision,
    class_blocks,
)

EmptyClasses = Literal["left_out", "zero"]
_PROTOCOLS = {"left_out": "dense_map/v1", "zero": "dense_map_apmeter/v1"}


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
    """Whether a class without a positive is left out of the mean or counts 0."""
    videos_scored: int
    videos_expected: int
    frames: int
    """Frames of the scored videos."""


def dense_map(
    predictions: Mapping[str, Array | torch.Tensor],
    targets: Mapping[str, Array | torch.Tensor],
    empty_classes: EmptyClasses = "left_out",
) -> Score:
    """Unweighted mean over classes of the average precision over every frame of all videos.

    ``predictions`` (a PredictionSet or a mapping) and ``targets`` map a video id to [T, K].
    Equal scores share the precision of their group, so that the order of videos does not
    matter. Expected videos without predictions are not ranked, but counted. With
    ``empty_classes="zero"`` a class without a positive counts 0 (apmeter), under its own
    protocol id. Raises ValueError for unknown videos, other frame or class counts, NaN, no
    positive at all. Source: specs/EVAL.md 3.
    """
    if empty_classes not in _PROTOCOLS:
        raise ValueError(f"empty_classes={empty_classes!r}: choose one of {list(_PROTOCOLS)}")
    scored = scored_videos(predictions, targets)
    ap_K, frames = _average_precision(predictions, targets, scored)
    positive_K = ~np.isnan(ap_K)
    if not positive_K.any():
        raise ValueError("no class has a positive frame: check the targets of this split")
    averaged_K = ap_K[positive_K] if empty_classes == "left_out" else np.nan_to_num(ap_K)
    return Score(
        value=float(averaged_K.mean()),
        protocol=_PROTOCOLS[empty_classes],
        per_class=tuple(None if np.isnan(ap) else float(ap) for ap in ap_K),
        classes_scored=int(positive_K.sum()),
        empty_class_rule=empty_classes,
        videos_scored=len(scored),
        videos_expected=len(targets),
        frames=frames,
    )


def scored_videos(
    predictions: Mapping[str, Array | torch.Tensor], targets: Mapping[str, Array | torch.Tensor]
) -> list[str]:
    """Expected videos that have predictions, in the order of the targets.

    ValueError for predicted videos that are not expected, and where there are none.
    """
    unknown = sorted(set(predictions) - set(targets))
    if unknown:
        raise ValueError(
            f"{len(unknown)} predicted videos are not in the targets ({', '.join(unknown[:5])}): "
            "score the split that was predicted"
        )
    scored = [video for video in targets if video in predictions]
    if not scored:
        raise ValueError(f"none of the {len(targets)} expected videos has predictions")
    return scored


def _average_precision(
    predictions: Mapping[str, Array | torch.Tensor],
    targets: Mapping[str, Array | torch.Tensor],
    videos: list[str],
) -> tuple[Array, int]:
    """Average precision [K] and the number of frames; streaming where all scores are float16."""
    pairs = {v: checked(predictions[v], targets[v], f"video {v!r}") for v in videos}
    classes = next(iter(pairs.values()))[0].shape[1]
    frames = sum(len(scores_TK) for scores_TK, _ in pairs.values())
    if all(scores_TK.dtype == np.float16 for scores_TK, _ in pairs.values()):
        histogram = HistogramAP(classes)
        for video, (scores_TK, hits_TK) in pairs.items():
            histogram.add(scores_TK, hits_TK, f"video {video!r}")
        return histogram.average_precision(), frames
    ap_K = np.full(classes, np.nan)
    for first, scores_bN, hits_bN in class_blocks(*map(list, zip(*pairs.values(), strict=True))):
        for k, (scores_N, hits_N) in enumerate(zip(scores_bN, hits_bN, strict=True), first):
            ap_K[k] = class_average_precision(scores_N, hits_N, "sklearn")
    return ap_K, frames
