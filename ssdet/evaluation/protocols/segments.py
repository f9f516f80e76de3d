"""Segment mAP at temporal IoU thresholds, with the semantics of the THUMOS'14 kit."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.storage.text import clean, read_text
from ssdet.data.video.clock import Clock
from ssdet.evaluation.average_precision import Array

LONGEST_LINE = 4096
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Segments = Mapping[str, Array]
"""float64 rows by video, classes from 0 and seconds: instances [G, 3] (class, start, end),
detections [D, 4] (class, start, end, score), ambiguous intervals [A, 2] (start, end)."""


@dataclass(frozen=True)
class DetectionFile:
    """Detections of a file by video; made by `read_detections`."""

    detections: Segments
    lines: int
    ignored: int
    """Lines of classes that are not evaluated."""


def segment_average_precision(
    detections: Segments,
    truth: Segments,
    classes: int,
    tious: Sequence[float] = TIOUS,
    ambiguous: Segments | None = None,
) -> Array:
    """Average precision float64 [thresholds, K]; NaN for a class without an instance.

    Each instance, in order, takes the free detection of its video with the highest overlap, if
    above the threshold. Unmatched detections that overlap an ambiguous interval are dropped. Equal
    scores rank by video id, then in their order. Source: `TH14evalDet.m` of the THUMOS'14 kit.
    """
    if not tious or not all(0 <= tiou < 1 for tiou in tious):
        raise ValueError(f"tious={tious}: expected thresholds from 0 to below 1")
    none_02 = np.zeros((0, 2))

    def states_OD(video: str, rows_D3: Array, instances_G2: Array) -> Array:
        iou_GD = overlaps(instances_G2, rows_D3)
        hits_OD = np.stack([_matched(iou_GD, tiou) for tiou in tious])
        dropped_D = (overlaps((ambiguous or {}).get(video, none_02), rows_D3) > 0).any(axis=0)
        return np.where(hits_OD, 1, np.where(dropped_D, -1, 0))

    ap_OK = np.full((len(tious), classes), np.nan)
    for k, count, ranked_OD in ranked_by_class(detections, truth, classes, states_OD, len(tious)):
        for row, states_D in enumerate(ranked_OD):
            ranks = np.flatnonzero(states_D[states_D >= 0]) + 1
            ap_OK[row, k] = float((np.arange(1, len(ranks) + 1) / ranks).sum()) / count
    return ap_OK


def ranked_by_class(
    detections: Segments,
    truth: Segments,
    classes: int,
    states: Callable[[str, Array, Array], Array],
    thresholds: int,
) -> Iterator[tuple[int, int, Array]]:
    """Yield class, instances and the states [thresholds, D] of its detections by falling score.

    ``states`` maps a video, its detections [D, 3] of the class (start, end, score) by falling score
    and its instances [G, 2] to [thresholds, D]. Classes without an instance are left out; equal
    scores rank by video id, then in their order.
    """
    for k in range(classes):
        instances = {v: rows[rows[:, 0] == k, 1:] for v, rows in truth.items()}
        if not (count := sum(map(len, instances.values()))):
            continue
        scores, parts = [np.zeros(0)], [np.zeros((thresholds, 0), int)]
        for video in sorted(detections):
            rows_D3 = detections[video][detections[video][:, 0] == k, 1:]
            if len(rows_D3):
                rows_D3 = rows_D3[np.argsort(-rows_D3[:, 2], kind="stable")]
                scores.append(rows_D3[:, 2])
                parts.append(states(video, rows_D3, instances.get(video, np.zeros((0, 2)))))
        order = np.argsort(-np.concatenate(scores), kind="stable")
        yield k, count, np.concatenate(parts, axis=1)[:, order]


def _matched(iou_GD: Array, tiou: float) -> Array:
    free_D = np.ones(iou_GD.shape[1], bool)
    for iou_D in iou_GD:
        best = int(np.where(free_D, iou_D, -1).argmax())
        if free_D[best] and iou_D[best] > tiou:
            free_D[best] = False
    return ~free_D


def overlaps(first_G2: Array, second_D2: Array) -> Array:
    """Temporal IoU [G, D] of intervals, with start and end in the first two columns."""
    starts = np.maximum(first_G2[:, None, 0], second_D2[None, :, 0])
    both = np.minimum(first_G2[:, None, 1], second_D2[None, :, 1]) - starts
    first_G, second_D = (rows[:, 1] - rows[:, 0] for rows in (first_G2, second_D2))
    union = first_G[:, None] + second_D[None, :] - both
    return np.where(both > 0, both / np.where(both > 0, union, 1), 0)


def frame_segments(
    probs_TK: Array, fps: float | Clock, levels: Sequence[float] = LEVELS, merge: float = 0.5
) -> Array:
    """Detections [D, 4] (class, start, end, score) of one video from its frame probabilities.

    At each level, runs of frames that reach it are joined over gaps of at most ``merge`` seconds;
    the score is the mean probability inside. Frame f lasts from f / fps to (f + 1) / fps or, with
    a clock, until the next frame. Of two segments of a class with IoU > 0.5 only the better one
    remains. Many levels find long segments of low probability beside short ones of high
    probability, for any calibration.
    """
    probs_TK = np.asarray(probs_TK, np.float64)
    clock = fps if isinstance(fps, Clock) else Clock.regular(len(probs_TK), fps)
    edges_T = np.append(clock.times_T, clock.end)  # where each frame begins, and the last ends
    sums_TK = np.concatenate([np.zeros((1, probs_TK.shape[1])), probs_TK.cumsum(axis=0)])
    by_class: dict[int, dict[tuple[int, int], float]] = {}
    for level in levels:
        for k, first, stop in _runs(probs_TK >= level, edges_T, merge):
            score = (sums_TK[stop, k] - sums_TK[first, k]) / (stop - first)
            by_class.setdefault(k, {})[first, stop] = score
    rows = [
        (k, edges_T[first], edges_T[stop], score)
        for k in sorted(by_class)
        for (first, stop), score in _suppressed(by_class[k])
    ]
    return np.array(rows, np.float64).reshape(-1, 4)


def _runs(reached_TK: Array, edges_T: Array, gap: float) -> Iterator[tuple[int, int, int]]:
    """Class, first frame and the frame after the last, of runs joined over gaps (seconds)."""
    columns = np.flatnonzero(reached_TK.any(axis=0))
    changes_KT = np.diff(reached_TK[:, columns].T.astype(np.int8), axis=1, prepend=0, append=0)
    for k, changes_T in zip(columns.tolist(), changes_KT, strict=True):
        firsts, stops = np.flatnonzero(changes_T > 0), np.flatnonzero(changes_T < 0)
        # Frame times are rounded; a gap of exactly the given length is joined.
        apart = edges_T[firsts[1:]] - edges_T[stops[:-1]] > gap + 1e-9
        for first, stop in zip(
            firsts[np.append(True, apart)].tolist(),
            stops[np.append(apart, True)].tolist(),
            strict=True,
        ):
            yield k, first, stop


def _suppressed(
    segments: Mapping[tuple[int, int], float],
) -> Iterator[tuple[tuple[int, int], float]]:
    """Segments by falling score, without those of IoU > 0.5 with a better one."""
    ranked = sorted(segments.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) == 1:
        yield from ranked
        return
    spans_S2 = np.array([span for span, _ in ranked], np.float64)
    close_SS = overlaps(spans_S2, spans_S2) > 0.5
    removed_S = np.zeros(len(ranked), bool)
    for i, segment in enumerate(ranked):
        if not removed_S[i]:
            removed_S |= close_SS[i]
            yield segment


def truth_segments(manifest: Manifest) -> dict[str, Array]:
    """Instances [G, 3] of every video of a manifest, in order."""
    return {
        video.id: np.array([(s.label, s.start, s.end) for s in video.segments], np.float64).reshape(
            -1, 3
        )
        for video in manifest.videos
    }


def read_detections(path: str | PathLike[str], classes: Mapping[str, int]) -> DetectionFile:
    """Read lines `video start end class score`, as in the kit's `res.txt`.

    ``classes`` maps labels in the file to classes from 0; lines of other labels are counted and
    left out, as by the kit. `.mp4` is cut from video names. ValueError names an invalid line.
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    lines = ignored = 0
    for line in detection_lines(Path(path)):
        lines += 1
        if line.label not in classes:
            ignored += 1
            continue
        row = (classes[line.label], line.start, line.end, line.score)
        rows.setdefault(line.video.removesuffix(".mp4"), []).append(row)
    return DetectionFile({v: np.array(r, float) for v, r in rows.items()}, lines, ignored)


class NamedDetection(NamedTuple):
    """One detection with the names in its file; times in seconds."""

    video: str
    label: str
    start: float
    end: float
    score: float


def detection_lines(path: Path) -> Iterator[NamedDetection]:
    """Read lines `video start end class score`; ValueError names an invalid line.

    Fields are separated by tabs or else by spaces. Names of videos and classes may contain spaces:
    the first two adjacent numbers are the times.
    """
    for where, line in _lines(path):
        fields = detection_fields(line)
        if len(fields) != 5:
            raise ValueError(
                f"{where}: {len(fields)} fields, expected 5 (video, start, end, class, score): "
                f"{line[:60]!r}"
            )
        start, end, score = _numbers([fields[1], fields[2], fields[4]], where)
        yield NamedDetection(fields[0], clean(fields[3]), start, end, score)


def detection_fields(line: str) -> list[str]:
    """Video, start, end, class and score of a line; its words if it is not such a line."""
    if line.count("\t") == 4:
        return [field.strip() for field in line.split("\t")]
    fields = line.split()
    for i in range(1, len(fields) - 3):
        if is_float(fields[i]) and is_float(fields[i + 1]):
            return [
                " ".join(fields[:i]),
                *fields[i : i + 2],
                " ".join(fields[i + 2 : -1]),
                fields[-1],
            ]
    return fields


@dataclass(frozen=True)
class KitTruth:
    """Ground truth in the kit's folder: `detclasslist.txt` and `CLASS_SUBSET.txt` files."""

    names: tuple[str, ...]
    numbers: Mapping[str, int]
    """Class from 0 by its number in detection files."""
    truth: Segments
    ambiguous: Segments


def read_kit(folder: str | PathLike[str], subset: str = "test") -> KitTruth:
    """Ground truth of the THUMOS'14 kit. ValueError and FileNotFoundError name the file."""
    folder = Path(folder)
    listed = [parts for _, parts in _fields(folder / "detclasslist.txt", 2)]
    names = tuple(name for _, name in listed)
    truth: dict[str, list[tuple[float, ...]]] = {}
    for k, name in enumerate(names):
        for where, parts in _fields(folder / f"{name}_{subset}.txt", 3):
            truth.setdefault(parts[0], []).append((k, *_numbers(parts[1:], where)))
    ambiguous: dict[str, list[tuple[float, ...]]] = {}
    for where, parts in _fields(folder / f"Ambiguous_{subset}.txt", 3):
        ambiguous.setdefault(parts[0], []).append(tuple(_numbers(parts[1:], where)))
    return KitTruth(
        names,
        {number: k for k, (number, _) in enumerate(listed)},
        {video: np.array(rows, float) for video, rows in truth.items()},
        {video: np.array(rows, float) for video, rows in ambiguous.items()},
    )


def _fields(path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Location and fields of each line of a text file that is not empty."""
    for where, line in _lines(path):
        fields = line.split()
        if len(fields) != count:
            raise ValueError(f"{where}: {len(fields)} fields, expected {count}: {line[:60]!r}")
        yield where, fields


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Location and text of each line of a text file that is not empty."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where = f"{path}: line {number}"
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{where}: longer than {LONGEST_LINE} characters: {line[:60]!r}")
        if line.strip():
            yield where, line


def is_float(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(texts: Sequence[str], where: str) -> list[float]:
    try:
        values = [float(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not all(map(math.isfinite, values)) or values[0] > values[1]:
        raise ValueError(f"{where}: {' '.join(texts)}: expected finite numbers, start <= end")
    return values
