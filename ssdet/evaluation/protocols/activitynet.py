"""Detection mAP as ActivityNet's evaluation script computes it."""

from collections.abc import Iterator, Sequence

import numpy as np

from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.protocols.segments import RankedSegments, Segments, overlaps

ACTIVITYNET_TIOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.5, 0.55, …, 0.95 with the script's rounding."""
THUMOS_TIOUS = tuple(np.linspace(0.3, 0.7, 5).tolist())


def activitynet_average_precision(
    detections: Segments,
    truth: Segments,
    classes: int,
    tious: Sequence[float] = ACTIVITYNET_TIOUS,
) -> Array:
    """Interpolated average precision float64 [thresholds, K]; NaN for a class without an instance.

    Detections of a class, by falling score over all videos, each take the free instance of their
    video that they overlap best, if by at least the threshold. Precision at a recall is the highest
    at this recall or a higher one. Equal scores rank by video id, then in their order; the script
    leaves that to chance. Source: `Evaluation/eval_detection.py` of activitynet/ActivityNet.
    """
    ap_OK = np.full((len(tious), classes), np.nan)
    for k, ranked in ranked_detections(detections, truth, classes, tious):
        ap_OK[:, k] = [_interpolated_sum(hits_D) / ranked.expected for hits_D in ranked.hits]
    return ap_OK


def ranked_detections(
    detections: Segments,
    truth: Segments,
    classes: int,
    tious: Sequence[float] = ACTIVITYNET_TIOUS,
) -> Iterator[tuple[int, RankedSegments]]:
    """Each class that has an instance, and its detections as the script ranks them."""
    for k in range(classes):
        instances = {v: rows[rows[:, 0] == k, 1:] for v, rows in truth.items()}
        if any(map(len, instances.values())):
            of_class = {v: rows[rows[:, 0] == k, 1:] for v, rows in detections.items()}
            yield k, _ranked(of_class, instances, np.asarray(tious))


def _ranked(detections: Segments, instances: Segments, tious_O: Array) -> RankedSegments:
    names: list[str] = []
    scores: list[Array] = [np.zeros(0)]
    hits: list[Array] = [np.zeros((len(tious_O), 0), bool)]
    for video in sorted(video for video, rows in detections.items() if len(rows)):
        rows_D3 = detections[video][np.argsort(-detections[video][:, 2], kind="stable")]
        iou_GD = overlaps(instances.get(video, np.zeros((0, 2))), rows_D3)
        names += [video] * len(rows_D3)
        scores.append(rows_D3[:, 2])
        hits.append(_matched(iou_GD, tious_O))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    counts = {video: len(rows) for video, rows in instances.items()}
    videos = [np.array(names, object)[order]] * len(tious_O)
    return RankedSegments(videos, list(np.concatenate(hits, axis=1)[:, order]), counts)


def _matched(iou_GD: Array, tious_O: Array) -> Array:
    """Hits [thresholds, D] of the detections of one video, in the order given."""
    hits_OD = np.zeros((len(tious_O), iou_GD.shape[1]), bool)
    if not len(iou_GD):
        return hits_OD
    free_OG = np.ones((len(tious_O), len(iou_GD)), bool)
    thresholds = np.arange(len(tious_O))
    for place in np.flatnonzero(iou_GD.max(axis=0) >= tious_O.min()):
        iou_OG = np.where(free_OG, iou_GD[:, place], -1)
        best_O = iou_OG.argmax(axis=1)
        hits_OD[:, place] = iou_OG[thresholds, best_O] >= tious_O
        free_OG[thresholds, best_O] &= ~hits_OD[:, place]
    return hits_OD


def _interpolated_sum(hits_D: Array) -> float:
    ranks = np.flatnonzero(hits_D) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    return float(np.maximum.accumulate(precision[::-1]).sum())
