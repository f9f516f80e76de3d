"""Statistics of further protocols: their scores as functions of how often each video is drawn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation.average_precision import Array, EmptyClasses, as_array, descending_order
from ssdet.evaluation.lazy_rows import LazyRows, Rows
from ssdet.evaluation.predictions import PredictionSet
from ssdet.evaluation.protocols.charades_official import POINTS, OfficialTruth
from ssdet.evaluation.protocols.segments import RankedSegments
from ssdet.evaluation.statistics.bootstrap import Statistic, dense_statistic

EXACT_RESAMPLES = 200
"""Most resamples of a protocol that evaluates every one of them anew."""
BLOCK = 1 << 22
"""Most weights at once."""


def pooled_statistic(scores: Rows, labels: Rows, empty_classes: EmptyClasses) -> Statistic:
    """Of rows that are ranked together; expected videos without scores are not drawn."""
    scored = [video for video in labels if video in scores]
    labels_of_scored = LazyRows(scored, lambda video: as_array(labels[video]))
    return dense_statistic(scores, labels_of_scored, empty_classes)


def official_statistic(scores: Rows, truth: OfficialTruth) -> Statistic:
    """Of the official Charades score: all expected videos are drawn, those without scores too.

    Rows keep the order in which the official script ranks equal scores. A class without a positive
    in a resample is left out of it.
    """
    shape = (POINTS, truth.classes)
    missing = np.full(shape, -np.inf)
    parts = [as_array(scores[v]) if v in scores else missing for v in truth.hits]
    ranks_NK = np.empty((POINTS * len(parts), truth.classes), np.float32)
    for k in range(truth.classes):
        order = descending_order(np.concatenate([part[:, k] for part in parts]))
        ranks_NK[order, k] = np.arange(len(order), 0, -1)
    ranks = dict(zip(truth.hits, ranks_NK.reshape(-1, *shape), strict=True))
    return dense_statistic(ranks, truth.hits)


def segment_statistic(
    ranked: Iterable[tuple[int, RankedSegments]], videos: Sequence[str], interpolated: bool
) -> Statistic:
    """Of segment mAP, the mean over thresholds: whether a detection is a hit depends on its own
    video alone, so that a resample only counts it several times or not at all.

    Copies of a detection share the precision at the last of them.
    """
    place = {video: number for number, video in enumerate(videos)}
    classes = [one for _, one in ranked]

    def under(weights_RV: torch.Tensor) -> Array:
        drawn_RV = weights_RV.double().numpy()
        ap_KR = np.stack([_weighted_ap(one, place, drawn_RV, interpolated) for one in classes])
        if np.isnan(ap_KR).all(axis=0).any():
            raise ValueError("a resample has no instance: too few videos hold any")
        return np.asarray(np.nanmean(ap_KR, axis=0))

    return Statistic(tuple(videos), under)


def _weighted_ap(
    ranked: RankedSegments, place: Mapping[str, int], weights_RV: Array, interpolated: bool
) -> Array:
    """Average precision [R] of one class, mean over thresholds; NaN without an instance."""
    instances_V = np.array([ranked.instances.get(video, 0) for video in place])
    expected_R = weights_RV @ instances_V
    total_R = np.zeros(len(weights_RV))
    for videos_D, hits_D in zip(ranked.videos, ranked.hits, strict=True):
        places_D = np.array([place[video] for video in videos_D], int)
        rows = max(1, BLOCK // max(1, len(places_D)))
        for first in range(0, len(weights_RV), rows):
            part = slice(first, first + rows)
            total_R[part] += _precision_sums(weights_RV[part, places_D], hits_D, interpolated)
    with np.errstate(invalid="ignore"):  # 0 of 0: a resample without an instance
        return np.asarray(total_R / len(ranked.hits) / expected_R)


def _precision_sums(weights_RD: Array, hits_D: Array, interpolated: bool) -> Array:
    """Sum over hits of the precision there, [R]."""
    drawn_RH = weights_RD[:, hits_D]
    above_RH = weights_RD.cumsum(axis=1)[:, hits_D]
    precision_RH = drawn_RH.cumsum(axis=1) / np.maximum(above_RH, 1)
    if interpolated:
        precision_RH = np.maximum.accumulate(precision_RH[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((precision_RH * drawn_RH).sum(axis=1))


def evaluated_statistic(
    videos: Sequence[str], score: Callable[[Mapping[str, str]], float | None]
) -> Statistic:
    """Of any score: every resample is evaluated, with a name of its own for each copy of a video.

    ``score`` gets the video behind each name.
    """

    def under(weights_RV: torch.Tensor) -> Array:
        values = [score(dict(_copies(videos, counts_V))) for counts_V in weights_RV.int().tolist()]
        if None in values:
            raise ValueError("a resample has no score: too few videos hold positives")
        return np.array(values, float)

    return Statistic(tuple(videos), under, EXACT_RESAMPLES)


def _copies(videos: Sequence[str], counts_V: Sequence[int]) -> Iterator[tuple[str, str]]:
    for video, count in zip(videos, counts_V, strict=True):
        for copy in range(count):
            yield f"{video}#{copy}", video


def drawn_predictions(predictions: PredictionSet, sources: Mapping[str, str]) -> PredictionSet:
    """Scores of the drawn videos that have any."""
    return predictions.renamed({name: v for name, v in sources.items() if v in predictions})


def drawn_manifest(manifest: Manifest, sources: Mapping[str, str]) -> Manifest:
    """Annotation of the drawn videos."""
    known = {video.id: video for video in manifest.videos}
    drawn = tuple(replace(known[v], id=name) for name, v in sources.items() if v in known)
    return replace(manifest, videos=drawn, missing=(), missing_splits=())


def drawn_truth(truth: OfficialTruth, sources: Mapping[str, str]) -> OfficialTruth:
    """Labels at the points of the drawn videos."""
    hits = {name: truth.hits[v] for name, v in sources.items()}
    return OfficialTruth(hits, {n: truth.lengths[v] for n, v in sources.items()}, truth.classes)
