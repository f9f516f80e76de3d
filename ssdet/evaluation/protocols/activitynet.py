"""Detection mAP as in ActivityNet's evaluation script."""

from collections.abc import Sequence

import numpy as np

from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.protocols.segments import Segments, overlaps, ranked_by_class

ACTIVITYNET_TIOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.5, 0.55, …, 0.95 with the script's rounding."""
THUMOS_TIOUS = tuple(np.linspace(0.3, 0.7, 5).tolist())


def activitynet_average_precision(
    detections: Segments, truth: Segments, classes: int, tious: Sequence[float] = ACTIVITYNET_TIOUS
) -> Array:
    """Interpolated average precision float64 [thresholds, K]; NaN for a class without an instance.

    Detections of a class, by falling score over all videos, each take the free instance of their
    video with the highest overlap, if at least the threshold. Precision at a recall is the maximum
    at this recall or a higher one. Equal scores rank by video id, then in their order (undefined in
    the script). Source: `Evaluation/eval_detection.py` of activitynet/ActivityNet.
    """
    tious_O = np.asarray(tious)

    def hits_OD(video: str, rows_D3: Array, instances_G2: Array) -> Array:
        return _matched(overlaps(instances_G2, rows_D3), tious_O)

    ap_OK = np.full((len(tious), classes), np.nan)
    for k, count, ranked_OD in ranked_by_class(detections, truth, classes, hits_OD, len(tious)):
        for row, hits_D in enumerate(ranked_OD):
            ranks = np.flatnonzero(hits_D) + 1
            precision = np.arange(1, len(ranks) + 1) / ranks
            ap_OK[row, k] = float(np.maximum.accumulate(precision[::-1]).sum()) / count
    return ap_OK


def _matched(iou_GD: Array, tious_O: Array) -> Array:
    """Hits bool [thresholds, D] of the detections of one video, by falling score."""
    hits_OD = np.zeros((len(tious_O), iou_GD.shape[1]), bool)
    if not len(iou_GD):
        return hits_OD
    free_OG = np.ones((len(tious_O), len(iou_GD)), bool)
    thresholds = np.arange(len(tious_O))
    for d in np.flatnonzero(iou_GD.max(axis=0) >= tious_O.min()):
        iou_OG = np.where(free_OG, iou_GD[:, d], -1)
        best_O = iou_OG.argmax(axis=1)
        hits_OD[:, d] = iou_OG[thresholds, best_O] >= tious_O
        free_OG[thresholds, best_O] &= ~hits_OD[:, d]
    return hits_OD
