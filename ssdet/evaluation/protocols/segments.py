"""Segment mAP at temporal IoU thresholds, with the semantics of the THUMOS'14 kit."""

import math
from collections.abc import Iterator, Mapping, Sequence
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
"""float64 rows by video: class, start, end in truth [G, 3]; class, start, end, score in
detections [D, 4]; start, end in ambiguous stretches [A, 2]. Classes from 0, seconds."""


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

    Each instance, in its order, takes the free detection of its video that overlaps it best, if
    by more than the threshold. What is left and overlaps an ambiguous stretch is dropped. Equal
    scores rank by video id, then in their order. Source: `TH14evalDet.m` of the kit.
    """
    if not tious or not all(0 <= tiou < 1 for tiou in tious):
        raise ValueError(f"tious={tious}: expected thresholds from 0 to below 1")
    ap_OK = np.full((len(tious), classes), np.nan)
    for k, ranked in ranked_segments(detections, truth, classes, tious, ambiguous):
        ap_OK[:, k] = [_precision_sum(hits_D) / ranked.expected for hits_D in ranked.hits]
    return ap_OK


@dataclass(frozen=True)
class RankedSegments:
    """Detections of one class by falling score."""

    videos: Sequence[Array]
    """Video id of each ranked detection, [D] for each threshold."""
    hits: Sequence[Array]
    """Whether each is a hit, bool [D] for each threshold."""
    instances: Mapping[str, int]
    """Instances by video."""

    @property
    def expected(self) -> int:
        return sum(self.instances.values())


def ranked_segments(
    detections: Segments,
    truth: Segments,
    classes: int,
    tious: Sequence[float] = TIOUS,
    ambiguous: Segments | None = None,
) -> Iterator[tuple[int, RankedSegments]]:
    """Each class that has an instance, and its detections as `segment_average_precision` ranks
    them; what is dropped is not among them."""
    for k in range(classes):
        instances = {v: rows[rows[:, 0] == k, 1:] for v, rows in truth.items()}
        if any(map(len, instances.values())):
            found = {v: rows[rows[:, 0] == k, 1:] for v, rows in detections.items()}
            yield k, _ranked(found, instances, ambiguous or {}, tious)


def _ranked(
    found: Segments, instances: Segments, ambiguous: Segments, tious: Sequence[float]
) -> RankedSegments:
    names: list[str] = []
    scores: list[Array] = [np.zeros(0)]
    states: list[Array] = [np.zeros((len(tious), 0), int)]
    for video in sorted(video for video, rows in found.items() if len(rows)):
        rows_D3 = found[video][np.argsort(-found[video][:, 2], kind="stable")]
        iou_GD = overlaps(instances.get(video, np.zeros((0, 2))), rows_D3)
        hits_OD = np.stack([_matched(iou_GD, tiou) for tiou in tious])
        dropped_D = (overlaps(ambiguous.get(video, np.zeros((0, 2))), rows_D3) > 0).any(axis=0)
        names += [video] * len(rows_D3)
        scores.append(rows_D3[:, 2])
        states.append(np.where(hits_OD, 1, np.where(dropped_D, -1, 0)))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    ranked_OD, names_D = np.concatenate(states, axis=1)[:, order], np.array(names, object)[order]
    counts = {video: len(rows) for video, rows in instances.items()}
    return RankedSegments(
        [names_D[states_D >= 0] for states_D in ranked_OD],
        [states_D[states_D >= 0] > 0 for states_D in ranked_OD],
        counts,
    )


def _precision_sum(hits_D: Array) -> float:
    ranks = np.flatnonzero(hits_D) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum())


def _matched(iou_GD: Array, tiou: float) -> Array:
    free_D = np.ones(iou_GD.shape[1], bool)
    for iou_D in iou_GD:
        best = int(np.where(free_D, iou_D, -1).argmax())
        if free_D[best] and iou_D[best] > tiou:
            free_D[best] = False
    return ~free_D


def overlaps(first_G2: Array, second_D2: Array) -> Array:
    """Temporal IoU [G, D] of stretches, start and end in the first two columns."""
    starts = np.maximum(first_G2[:, None, 0], second_D2[None, :, 0])
    both = np.minimum(first_G2[:, None, 1], second_D2[None, :, 1]) - starts
    lengths = (rows[:, 1] - rows[:, 0] for rows in (first_G2, second_D2))
    first, second = lengths
    union = first[:, None] + second[None, :] - both
    return np.where(both > 0, both / np.where(both > 0, union, 1), 0)


def frame_segments(
    probs_TK: Array, fps: float | Clock, levels: Sequence[float] = LEVELS, merge: float = 0.5
) -> Array:
    """Detections [D, 4] (class, start, end, score) of one video from its frame probabilities.

    At each level, runs of frames that reach it are joined over gaps of at most ``merge`` seconds;
    frame f lasts from f / fps to (f + 1) / fps or, where a clock is given for ``fps``, until the
    next is shown; the score is the mean probability inside. Of two segments of a class that overlap
    by more than half (IoU) the better one stays. Many levels find the long and faint beside the
    short and sure, whatever the calibration.
    """
    probs_TK = np.asarray(probs_TK, np.float64)
    clock = fps if isinstance(fps, Clock) else Clock.regular(len(probs_TK), fps)
    edges_T = np.append(clock.times_T, clock.end)  # where each frame begins, and the last ends
    sums_TK = np.concatenate([np.zeros((1, probs_TK.shape[1])), probs_TK.cumsum(axis=0)])
    found: dict[int, dict[tuple[int, int], float]] = {}
    for level in levels:
        for k, first, stop in _runs(probs_TK >= level, edges_T, merge):
            score = (sums_TK[stop, k] - sums_TK[first, k]) / (stop - first)
            found.setdefault(k, {})[first, stop] = score
    rows = [
        (k, edges_T[first], edges_T[stop], score)
        for k in sorted(found)
        for (first, stop), score in _best_apart(found[k])
    ]
    return np.array(rows, np.float64).reshape(-1, 4)


def _runs(reached_TK: Array, edges_T: Array, gap: float) -> Iterator[tuple[int, int, int]]:
    """Class, first frame and the frame after the last, of runs joined over gaps in seconds."""
    columns = np.flatnonzero(reached_TK.any(axis=0))
    changes_KT = np.diff(reached_TK[:, columns].T.astype(np.int8), axis=1, prepend=0, append=0)
    for k, changes_T in zip(columns.tolist(), changes_KT, strict=True):
        firsts, stops = np.flatnonzero(changes_T > 0), np.flatnonzero(changes_T < 0)
        # Times of frames are rounded in their last digit; a gap of just so long is joined.
        apart = edges_T[firsts[1:]] - edges_T[stops[:-1]] > gap + 1e-9
        for first, stop in zip(
            firsts[np.append(True, apart)].tolist(),
            stops[np.append(apart, True)].tolist(),
            strict=True,
        ):
            yield k, first, stop


def _best_apart(
    segments: Mapping[tuple[int, int], float],
) -> Iterator[tuple[tuple[int, int], float]]:
    """Segments by falling score, without those that overlap a better one by more than half."""
    ranked = sorted(segments.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) == 1:
        yield from ranked
        return
    stretches_S2 = np.array([stretch for stretch, _ in ranked], np.float64)
    close_SS = overlaps(stretches_S2, stretches_S2) > 0.5
    out_S = np.zeros(len(ranked), bool)
    for place, segment in enumerate(ranked):
        if not out_S[place]:
            out_S |= close_SS[place]
            yield segment


def truth_segments(manifest: Manifest) -> dict[str, Array]:
    """Instances [G, 3] of every video of a manifest, in its order."""
    return {
        video.id: np.array([(s.label, s.start, s.end) for s in video.segments], np.float64).reshape(
            -1, 3
        )
        for video in manifest.videos
    }


def read_detections(path: str | PathLike[str], classes: Mapping[str, int]) -> DetectionFile:
    """Read lines `video start end class score`, as the kit's `res.txt` has them.

    ``classes`` maps what stands in the file to classes from 0; lines of others are counted and
    left out, as the kit does. `.mp4` is cut from video names. ValueError naming the line for
    anything else.
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
    """One detection with the names that its file uses; seconds."""

    video: str
    label: str
    start: float
    end: float
    score: float


def detection_lines(path: Path) -> Iterator[NamedDetection]:
    """Read lines `video start end class score`; ValueError naming the line that is none.

    Fields are separated by tabs, or else by spaces. A name of a video or class may hold spaces:
    the first two numbers in a row are the times.
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
    """Video, start, end, class and score of a line; other fields where it is no such line."""
    if line.count("\t") == 4:
        return [field.strip() for field in line.split("\t")]
    fields = line.split()
    for place in range(1, len(fields) - 3):
        if is_float(fields[place]) and is_float(fields[place + 1]):
            name, label = " ".join(fields[:place]), " ".join(fields[place + 2 : -1])
            return [name, *fields[place : place + 2], label, fields[-1]]
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
    """Where each line of a text file stands, and its fields; empty lines are passed over."""
    for where, line in _lines(path):
        fields = line.split()
        if len(fields) != count:
            raise ValueError(f"{where}: {len(fields)} fields, expected {count}: {line[:60]!r}")
        yield where, fields


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line of a text file stands, and its text; empty lines are passed over."""
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
