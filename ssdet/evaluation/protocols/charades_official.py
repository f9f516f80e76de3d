"""The official Charades localisation score at 25 points a video (`Charades_v1_localize.m`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.storage.text import number, read_table
from ssdet.evaluation.average_precision import Array, as_array, average_precision, checked
from ssdet.evaluation.lazy_rows import LazyRows, at_steps, release
from ssdet.evaluation.predictions import PredictionSet

POINTS = 25
CLASSES = 157
PROTOCOL = "charades_official"
Action = tuple[int, float, float]
"""Class from 0, first and last second."""


@dataclass(frozen=True)
class OfficialTruth:
    """Labels at the 25 points of every video, in the order of the annotation file."""

    hits: Mapping[str, Array]
    """bool [25, K] by video, all false for a video without actions."""
    lengths: Mapping[str, float]
    """Seconds by video."""
    classes: int

    def only(self, videos: Iterable[str]) -> "OfficialTruth":
        """The truth of these videos, in the order of the file."""
        chosen = set(videos)
        return OfficialTruth(
            {video: hits for video, hits in self.hits.items() if video in chosen},
            {video: length for video, length in self.lengths.items() if video in chosen},
            self.classes,
        )


def points(length: float) -> Array:
    """Seconds of the 25 points of a video, float64 [25]: the first is 0, the last 24/25 of it."""
    return np.arange(POINTS) / POINTS * length


def read_truth(path: str | PathLike[str], classes: int = CLASSES) -> OfficialTruth:
    """Labels from the official CSV (columns id, actions, length), or from its folder.

    A point is positive iff start <= point <= end, as in the script. ValueError names file and
    video of an invalid row.
    """
    path = Path(path)
    path = path / "Charades_v1_test.csv" if path.is_dir() else path
    rows = read_table(path)
    if missing := {"id", "actions", "length"} - (set(rows[0]) if rows else set()):
        raise ValueError(f"{path}: no rows with columns {', '.join(sorted(missing))}")
    hits: dict[str, Array] = {}
    lengths: dict[str, float] = {}
    for row in rows:
        where = f"{path}: video {row['id']!r}"
        if row["id"] in hits:
            raise ValueError(f"{where} is there twice")
        lengths[row["id"]] = length = number(row["length"], f"{where}: length")
        if not 0 < length < float("inf"):
            raise ValueError(f"{where}: length {length}, expected seconds > 0")
        actions = [_action(text, where, classes) for text in row["actions"].split(";") if text]
        hits[row["id"]] = _labels(actions, length, classes)
    return OfficialTruth(hits, lengths, classes)


def truth_of(manifest: Manifest) -> OfficialTruth:
    """Labels from annotation in any format.

    ValueError for a manifest with missing videos, which have no annotation in it, and for videos
    without a duration.
    """
    if manifest.missing:
        raise ValueError(
            f"{manifest.name}: the annotation of {len(manifest.missing)} missing videos is not in "
            "the manifest: load it without the folder of videos"
        )
    if without := [video.id for video in manifest.videos if not video.duration]:
        raise ValueError(f"{len(without)} videos have no duration ({', '.join(without[:5])})")
    lengths = {video.id: float(video.duration or 0) for video in manifest.videos}
    hits = {
        video.id: _labels(
            [(s.label, s.start, s.end) for s in video.segments],
            lengths[video.id],
            manifest.num_classes,
        )
        for video in manifest.videos
    }
    return OfficialTruth(hits, lengths, manifest.num_classes)


def official_points(predictions: PredictionSet, truth: OfficialTruth) -> LazyRows:
    """Probabilities float64 [25, K] at the points of every predicted video that is expected.

    Linear in logits between the two frames next to a point, at seconds x fps; the last frame
    beyond the end.
    """

    def scores(video: str) -> Array:
        steps_N = predictions.clock(video).position(points(truth.lengths[video]))
        return at_steps(predictions[video], steps_N)

    videos = [video for video in truth.hits if video in predictions]
    return LazyRows(videos, scores, source=predictions)


def charades_localization(
    scores: Mapping[str, Array | torch.Tensor], annotations: str | PathLike[str]
) -> dict[str, Any]:
    """The official score of predictions at 25 points, with the CSV as ground truth.

    ``scores`` maps a video id to [25, K]: row j is the point j/25 of its length, -inf if missing.
    Equal scores rank in the order of the file; videos without actions count; missing ones are -inf.
    Returns `map` and `wap` (weighted by each class's positives; as in the script both are NaN with
    a class without a positive), `ap` float64 [K], `videos_scored`, `videos_expected`,
    `videos_ignored` (predicted but not annotated), `points_scored`, `points_expected`, `positives`
    [K] and the `protocol`. ValueError names a video of other shape or with NaN.
    """
    widths = {as_array(scores[video]).shape[-1:] for video in scores}
    (classes,) = widths.pop() if len(widths) == 1 else (CLASSES,)
    return localization(scores, read_truth(annotations, classes))


def localization(
    scores: Mapping[str, Array | torch.Tensor], truth: OfficialTruth
) -> dict[str, Any]:
    """`charades_localization` with labels that are already read."""
    hits_NK = np.concatenate([*truth.hits.values(), np.zeros((0, truth.classes), bool)])
    scores_NK = np.full(hits_NK.shape, -np.inf)
    scored = 0
    for first, (video, hits) in zip(
        range(0, len(hits_NK), POINTS), truth.hits.items(), strict=True
    ):
        if video in scores:
            rows, _ = checked(scores[video], hits, f"video {video!r}")
            scores_NK[first : first + POINTS] = rows
            scored += bool((rows > -np.inf).any())
            release(scores)
    ap_K = average_precision(scores_NK, hits_NK, ties="stable")
    positives_K = hits_NK.sum(axis=0)
    return {
        "map": float(np.mean(ap_K)),
        "wap": float((ap_K * positives_K).sum() / max(positives_K.sum(), 1)),
        "ap": ap_K,
        "positives": positives_K,
        "videos_scored": scored,
        "videos_expected": len(truth.hits),
        "videos_ignored": len([video for video in scores if video not in truth.hits]),
        "points_scored": int((scores_NK > -np.inf).any(axis=1).sum()),
        "points_expected": len(scores_NK),
        "protocol": f"{PROTOCOL}/v1",
    }


def _labels(actions: Sequence[Action], length: float, classes: int) -> Array:
    hits_NK = np.zeros((POINTS, classes), bool)
    at_N = points(length)
    for label, start, end in actions:
        hits_NK[(start <= at_N) & (at_N <= end), label] = True
    return hits_NK


def _action(text: str, where: str, classes: int) -> Action:
    parts = text.split()
    code = parts[0][1:] if parts and parts[0].startswith("c") else ""
    if len(parts) != 3 or not (code.isascii() and code.isdecimal()) or int(code) >= classes:
        raise ValueError(
            f"{where}: action {text!r}, expected 'c000 start end' with a class below {classes}"
        )
    start, end = (number(part, f"{where}: action {text!r}") for part in parts[1:])
    return int(code), start, end
