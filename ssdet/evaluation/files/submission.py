"""Charades submission files: text lines `id framenr s0 … s156`, one per point."""

import codecs
import math
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ssdet.data.datasets.video_names import VideoNames
from ssdet.evaluation.average_precision import Array, as_array
from ssdet.evaluation.protocols.charades_official import CLASSES, POINTS

LONGEST = 64
"""Maximum bytes per number including its separator."""
DIGITS = {2: 5, 4: 9, 8: 17}
"""Decimal digits for an exact round trip, by bytes of the float type."""


@dataclass(frozen=True)
class Submission:
    """Scores of the expected videos in a submission file; made by `read_submission`."""

    scores: Mapping[str, Array]
    """float64 [25, K] by video with a line in the file; -inf for points without one."""
    rows: int
    """Lines in the file."""
    shifted: bool
    """Whether frames counted from 0 and were shifted by 1, as in the script."""
    ignored: int
    """Lines of other videos, or of frames outside the 25 points."""
    repeated: int
    """Lines that repeat the video and frame of an earlier one; the last one counts."""
    missing: int
    """Points of expected videos without a line."""


@dataclass
class _Video:
    """Rows of one video for frames 0 to 25, of which the first or the last is no point."""

    rows_NK: Array
    times_N: list[int] = field(default_factory=lambda: [0] * (POINTS + 1))


def read_submission(
    path: str | os.PathLike[str], videos: Collection[str], classes: int = CLASSES
) -> Submission:
    """Read a submission file line by line and keep the scores of the expected videos.

    Videos are matched by `VideoNames`. Frames are 1 to 25; if the lowest frame of the file is 0,
    all are shifted by 1. Of repeated lines the last one counts. ValueError names file and line for
    anything but an id, an integer and one number (not NaN) per class. Source: the format of
    `Charades_v1_localize.m`.
    """
    by_name: dict[str, _Video] = {}
    expected, rows, outside, lowest = VideoNames(videos), 0, 0, 1
    for name, frame, text, where in _lines(Path(path), classes):
        rows, lowest = rows + 1, frame if not rows else min(lowest, frame)
        scores_K = _numbers(text, classes, where)
        id = expected.find(name)
        if id is None or not 0 <= frame <= POINTS:
            outside += 1
            continue
        video = by_name.setdefault(id, _Video(np.full((POINTS + 1, classes), -np.inf)))
        video.rows_NK[frame] = scores_K
        video.times_N[frame] += 1
    first = 0 if lowest == 0 else 1
    chosen = {name: video for name, video in by_name.items() if any(_points(video, first))}
    points = [times for video in chosen.values() for times in _points(video, first)]
    lines = sum(sum(video.times_N) for video in by_name.values())
    filled = sum(times > 0 for times in points)
    return Submission(
        {name: video.rows_NK[first : first + POINTS] for name, video in chosen.items()},
        rows,
        shifted=first == 0,
        ignored=outside + lines - sum(points),
        repeated=sum(points) - filled,
        missing=POINTS * len(frozenset(videos)) - filled,
    )


def _points(video: _Video, first: int) -> list[int]:
    """Number of lines of each of the 25 points."""
    return video.times_N[first : first + POINTS]


def _lines(path: Path, classes: int) -> Iterator[tuple[str, int, bytes, str]]:
    """Video, frame, text of the scores and location of every line."""
    limit = LONGEST * (classes + 16)
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(limit), b""), 1):
            where = f"{path}: line {number}"
            if len(line) == limit:
                raise ValueError(f"{where}: longer than {limit} bytes: not a line of a submission")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            parts = line.split(None, 2)
            if not parts:
                continue
            if len(parts) < 3:
                raise ValueError(f"{where}: {len(parts)} fields, expected id, frame and scores")
            try:
                name = parts[0].decode()
                frame = int(parts[1]) if len(parts[1]) < 12 and b"_" not in parts[1] else None
            except ValueError:
                frame = None
            if frame is None:
                raise ValueError(
                    f"{where}: begins {line[:40]!r}, expected a video id and a frame from 1 to "
                    f"{POINTS}, separated by spaces"
                )
            yield name, frame, parts[2], where


def _numbers(text: bytes, classes: int, where: str) -> Array:
    words = text.split()
    if len(words) != classes:
        hint = (
            "; the official script accepts one more, but has no column for it"
            if len(words) == classes + 1
            else ""
        )
        raise ValueError(f"{where}: {len(words)} scores, expected {classes}{hint}")
    try:
        scores_K = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if np.isnan(scores_K).any() or b"_" in text:
        raise ValueError(f"{where}: a score is NaN or not a number")
    return scores_K


def write_submission(
    path: str | os.PathLike[str], scores: Mapping[str, Array | torch.Tensor]
) -> int:
    """Write scores [25, K] by video for the official script; return the number of lines.

    Points whose scores are all -inf are left out. Numbers are exact. The file is written
    atomically. ValueError for NaN, other shapes, and an id with a space.
    """
    path, lines = Path(path), 0
    work = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(work, "w", encoding="utf-8") as file:
            for video in scores:
                for text in _written(video, as_array(scores[video])):
                    file.write(text)
                    lines += 1
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)
    return lines


def _written(video: str, scores_NK: Array) -> Iterator[str]:
    if not video or len(video.split()) != 1:
        raise ValueError(f"video id {video!r}: fields of a submission are separated by spaces")
    if scores_NK.ndim != 2 or len(scores_NK) != POINTS or np.isnan(scores_NK).any():
        raise ValueError(
            f"video {video!r}: scores {scores_NK.shape}, expected [{POINTS}, classes] without NaN"
        )
    digits = DIGITS[scores_NK.dtype.itemsize]
    for point, row_K in enumerate(scores_NK.tolist(), 1):
        if any(score > -math.inf for score in row_K):
            yield f"{video} {point} {' '.join(f'{score:.{digits}g}' for score in row_K)}\n"
