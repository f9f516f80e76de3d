"""Detections of other tools' files, matched with the videos and classes of an annotation."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.datasets.segments import is_number, is_whole
from ssdet.data.datasets.video_names import VideoNames
from ssdet.data.storage.text import clean
from ssdet.evaluation.files.class_numbers import class_codes
from ssdet.evaluation.files.kinds import Recognised, UnusableFile
from ssdet.evaluation.protocols.segments import NamedDetection, Segments, detection_lines


@dataclass(frozen=True)
class MatchedDetections:
    """Detections of a file; made by `match_detections`."""

    detections: Segments
    """By id of annotated videos, and by the name in the file for others."""
    rule: str
    """How class labels were interpreted."""
    notes: Mapping[str, int]
    """Numbers of lines and of lines of classes that are not annotated."""
    unknown_videos: tuple[str, ...]
    unknown_classes: tuple[str, ...]


def match_detections(
    path: Path,
    file: Recognised,
    manifest: Manifest,
    format: str = "",
    first_class: int | None = None,
) -> MatchedDetections:
    """Read a file of detections and match its names with those of an annotation.

    ``format`` is the annotation's, ``first_class`` the number of the first class for numeric labels
    (see `class_codes`). Raises ValueError naming an invalid line or video, and UnusableFile for
    ambiguous class numbers.
    """
    videos: Iterable[str] = ()
    if file.results is None:
        rows = list(detection_lines(path))
    else:
        rows, videos = list(_result_rows(path, file.results)), file.results
    labels = Counter(row.label for row in rows)
    try:
        codes, rule = class_codes(labels, manifest.classes, format, first_class)
    except UnusableFile as error:
        raise UnusableFile(f"{path}: {error}") from error
    names = VideoNames([*(video.id for video in manifest.videos), *manifest.missing])
    matched = {name: names.find(name) for name in {*videos, *(row.video for row in rows)}}
    if file.results is not None:
        _refuse_duplicates(path, matched)
    by_video: dict[str, list[tuple[float, ...]]] = {matched[v] or v: [] for v in videos}
    for row in rows:
        if row.label in codes:
            video = by_video.setdefault(matched[row.video] or row.video, [])
            video.append((codes[row.label], row.start, row.end, row.score))
    unknown = {label: count for label, count in labels.items() if label not in codes}
    notes = {"lines": len(rows), "lines_ignored": sum(unknown.values())}
    return MatchedDetections(
        {video: np.array(part, np.float64).reshape(-1, 4) for video, part in by_video.items()},
        rule,
        notes,
        tuple(sorted(name for name, video in matched.items() if video is None)),
        tuple(sorted(unknown)),
    )


def _refuse_duplicates(path: Path, matched: Mapping[str, str | None]) -> None:
    first: dict[str, str] = {}
    for name, video in matched.items():
        if video is not None and first.setdefault(video, name) != name:
            pair = " and ".join(map(repr, sorted((first[video], name))))
            raise ValueError(f"{path}: {pair} are one video, {video!r}: leave one of them out")


def _result_rows(path: Path, results: Mapping[str, Any]) -> Iterator[NamedDetection]:
    """Rows of ActivityNet's results; ValueError names video and detection."""
    for video, items in results.items():
        for number, item in enumerate(items):
            where = f"{path}: video {video!r}: detection {number}"
            if not isinstance(item, dict) or not {"label", "score", "segment"} <= item.keys():
                raise ValueError(f"{where}: {item!r:.80}, expected label, score and segment")
            start, end = _times(where, item["segment"])
            score = item["score"]
            if isinstance(score, bool) or not isinstance(score, int | float) or (
                not math.isfinite(score)
            ):  # fmt: skip
                raise ValueError(f"{where}: score {score!r}, expected a finite number")
            yield NamedDetection(video, _label(where, item["label"]), start, end, float(score))


def _label(where: str, label: Any) -> str:
    if isinstance(label, str) or is_whole(label):
        return clean(str(label))
    raise ValueError(f"{where}: label {label!r}, expected the name or number of a class")


def _times(where: str, segment: Any) -> Sequence[float]:
    times = segment if isinstance(segment, list) else []
    if len(times) != 2 or not all(map(is_number, times)) or times[0] > times[1]:
        raise ValueError(f"{where}: segment {segment!r}, expected [start, end] in seconds")
    return [float(time) for time in times]
