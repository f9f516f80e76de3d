"""The official Charades submission: a text line `id framenr s0 … s156` for every point."""

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
"""Most bytes of a number and what parts it from the next."""
DIGITS = {2: 5, 4: 9, 8: 17}
"""Decimal digits that bring a float of so many bytes back exactly."""


@dataclass(frozen=True)
class Submission:
    """What a submission file held of the expected videos; made by `read_submission`."""

    scores: Mapping[str, Array]
    """float64 [25, K] by video; -inf where the file has no line. Videos without a line lack."""
    rows: int
    """Lines in the file."""
    shifted: bool
    """Whether frames counted from 0 and were shifted by 1, as the script does."""
    ignored: int
    """Lines of other videos or of frames that are no point of the 25."""
    repeated: int
    """Lines of a video and frame that an earlier line had; the last one counts."""
    missing: int
    """Points of expected videos without a line."""


@dataclass
class _Video:
    """Lines of one video: frames 0 to 25, of which one end is no point."""

    rows_NK: Array
    times_N: list[int] = field(default_factory=lambda: [0] * (POINTS + 1))


def read_submission(
    path: str | os.PathLike[str], videos: Collection[str], classes: int = CLASSES
) -> Submission:
    """Read a submission file once, line by line; only scores of the expected videos are kept.

    Videos are matched as `VideoNames` does. Frames are 1 to 25; where the file's least frame is 0,
    all are shifted by 1. Of equal keys the last wins. ValueError naming file and line for anything
    but an id, an integer and as many numbers as classes (NaN is none). Source: the format of
    `Charades_v1_localize.m`.
    """
    found: dict[str, _Video] = {}
    expected, rows, outside, least = VideoNames(videos), 0, 0, 1
    for name, frame, text, where in _lines(Path(path), classes):
        rows, least = rows + 1, frame if not rows else min(least, frame)
        scores_K = _numbers(text, classes, where)
        id = expected.find(name)
        if id is None or not 0 <= frame <= POINTS:
            outside += 1
            continue
        video = found.setdefault(id, _Video(np.full((POINTS + 1, classes), -np.inf)))
        video.rows_NK[frame] = scores_K
        video.times_N[frame] += 1
    first = 0 if least == 0 else 1
    kept = {name: video for name, video in found.items() if any(_points(video, first))}
    points = [times for video in kept.values() for times in _points(video, first)]
    lines = sum(sum(video.times_N) for video in found.values())
    filled = sum(times > 0 for times in points)
    return Submission(
        {name: video.rows_NK[first : first + POINTS] for name, video in kept.items()},
        rows,
        shifted=first == 0,
        ignored=outside + lines - sum(points),
        repeated=sum(points) - filled,
        missing=POINTS * len(frozenset(videos)) - filled,
    )


def _points(video: _Video, first: int) -> list[int]:
    """How many lines each of the 25 points has."""
    return video.times_N[first : first + POINTS]


def _lines(path: Path, classes: int) -> Iterator[tuple[str, int, bytes, str]]:
    """Video, frame and the text of the scores of every line, and where it stands."""
    limit = LONGEST * (classes + 16)
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(limit), b""), 1):
            where = f"{path}: line {number}"
            if len(line) == limit:
                raise ValueError(f"{where}: longer than {limit} bytes: no line of a submission")
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
                    f"{POINTS}, parted by spaces"
                )
            yield name, frame, parts[2], where


def _numbers(text: bytes, classes: int, where: str) -> Array:
    words = text.split()
    if len(words) != classes:
        hint = (
            "; the script's check lets one more pass, its matrix has no place for it"
            if len(words) == classes + 1
            else ""
        )
        raise ValueError(f"{where}: {len(words)} scores, expected {classes}{hint}")
    try:
        scores_K = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if np.isnan(scores_K).any() or b"_" in text:
        raise ValueError(f"{where}: a score is NaN or no number")
    return scores_K


def write_submission(
    path: str | os.PathLike[str], scores: Mapping[str, Array | torch.Tensor]
) -> int:
    """Write scores [25, K] by video as the official script reads them; returns the lines.

    Points whose scores are all -inf are left out. Numbers read back exactly. The file appears
    whole. ValueError for NaN, other shapes, and an id with a space.
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
        raise ValueError(f"video id {video!r}: a submission parts its fields by spaces")
    if scores_NK.ndim != 2 or len(scores_NK) != POINTS or np.isnan(scores_NK).any():
        raise ValueError(
            f"video {video!r}: scores {scores_NK.shape}, expected [{POINTS}, classes] without NaN"
        )
    digits = DIGITS[scores_NK.dtype.itemsize]
    for point, row_K in enumerate(scores_NK.tolist(), 1):
        if any(score > -math.inf for score in row_K):
            yield f"{video} {point} {' '.join(f'{score:.{digits}g}' for score in row_K)}\n"
