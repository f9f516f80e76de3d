"""Manifests: annotated videos of a data set, independent of the annotation format."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ssdet.data.storage.folders import NOISE, VideoFolder, split_name
from ssdet.data.video.image_folders import stored_size

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Segment:
    """One action instance: class from 0, times in seconds; ValueError unless start < end."""

    label: int
    start: float
    end: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end) and self.start < self.end):
            raise ValueError(f"segment {self.start} to {self.end}: expected finite start < end")


@dataclass(frozen=True, slots=True)
class Video:
    """One annotated video: a clip with one `label`, or a long video with `segments`."""

    id: str
    path: str
    """File or folder of numbered JPEG files; empty if only annotations were loaded."""
    split: str
    """train, val or test."""
    label: int | None = None
    segments: tuple[Segment, ...] = ()
    duration: float | None = None
    """Seconds, as annotated."""
    left_out: int = 0
    """Annotated instances that end before they start."""


@dataclass(frozen=True)
class Manifest:
    """Annotated videos of a data set.

    Raises ValueError for duplicate ids, classes out of range and durations not above 0.
    """

    name: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    missing: tuple[str, ...] = ()
    """Ids of annotated videos without a file, which are not in `videos`."""
    missing_splits: tuple[str, ...] = ()
    """Split of each missing video."""
    quarantined: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Reasons by id of missing videos that are in quarantine."""
    missing_reasons: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Reasons by id of other missing videos, where more is known than that there is no file."""
    notes: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Counts by kind of annotations that were left out or look wrong."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for video in self.videos:
            if video.id in seen:
                raise ValueError(f"{self.name}: video {video.id!r} is there twice")
            seen.add(video.id)
            self._check(video)

    def _check(self, video: Video) -> None:
        labels = {segment.label for segment in video.segments}
        labels |= set() if video.label is None else {video.label}
        for label in labels:
            if not 0 <= label < self.num_classes:
                raise ValueError(
                    f"{self.name}: video {video.id!r}: class {label}, expected 0 to "
                    f"{self.num_classes - 1}"
                )
        if video.duration is not None and not 0 < video.duration < math.inf:
            raise ValueError(
                f"{self.name}: video {video.id!r}: duration {video.duration}, expected seconds > 0"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of annotation and file sizes, independent of folders and dates.

        Raises FileNotFoundError for a removed video.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for video in self.videos:
            size = stored_size(video.path) if video.path else None
            segments = [(s.label, s.start, s.end) for s in video.segments]
            row = (video.id, video.split, video.label, segments, video.duration, size)
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def first(self, videos: int) -> "Manifest":
        """The first `videos` of each split by id, without missing ones."""
        counts: Counter[str] = Counter()
        chosen = []
        for video in sorted(self.videos, key=lambda v: v.id):
            counts[video.split] += 1
            if counts[video.split] <= videos:
                chosen.append(video)
        return replace(self, videos=tuple(chosen), missing=(), missing_splits=(), quarantined={})

    def without(self, reasons: Mapping[str, str]) -> "Manifest":
        """Move the videos with a reason (by id) to the missing ones, as quarantined."""
        excluded = [video for video in self.videos if video.id in reasons]
        missing = (*self.missing, *(video.id for video in excluded))
        return replace(
            self,
            videos=tuple(video for video in self.videos if video.id not in reasons),
            missing=missing,
            missing_splits=(*self.missing_splits, *(video.split for video in excluded)),
            # Converted copies of quarantined videos are missing already.
            quarantined={**self.quarantined, **{v: reasons[v] for v in missing if v in reasons}},
        )

    def split(self, name: str) -> "Manifest":
        """The videos of one split (train, val or test), with the notes of all."""
        name = split_name(name, "split")
        pairs = zip(self.missing, self.missing_splits, strict=True)
        missing = tuple(video for video, split in pairs if split == name)
        return replace(
            self,
            videos=tuple(video for video in self.videos if video.split == name),
            missing=missing,
            missing_splits=(name,) * len(missing),
            quarantined={v: self.quarantined[v] for v in missing if v in self.quarantined},
        )

    def frame_targets(self, video: Video, frames: int, fps: float) -> np.ndarray:
        """Dense labels of a video, bool [K, frames].

        Frame f (from 0) has an action iff start < f / fps < end, as in the published code for
        Charades; a clip's single label applies to every frame.
        """
        return self.targets_at(video, np.arange(frames) / fps)

    def targets_at(self, video: Video, times_T: np.ndarray) -> np.ndarray:
        """Labels bool [K, T] at ascending times in seconds: actions with start < time < end, and a
        clip's single label."""
        targets = np.zeros((self.num_classes, len(times_T)), bool)
        for segment in video.segments:
            first = np.searchsorted(times_T, segment.start, side="right")
            stop = np.searchsorted(times_T, segment.end, side="left")
            targets[segment.label, first:stop] = True
        if video.label is not None:
            targets[video.label] = True
        return targets


def join_files(
    name: str,
    classes: Sequence[str],
    videos: Sequence[Video],
    stems: Iterable[Iterable[str]],
    folder: Path | None,
    notes: Mapping[str, int],
) -> Manifest:
    """Manifest of the annotated `videos` with a file in `folder` named by one of their `stems`.

    Others are listed as missing. Without a folder all videos are included, with empty paths.
    """
    reasons: dict[str, str] = {}
    notes = dict(notes)
    if folder is not None:
        files, located = VideoFolder(folder), []
        for video, names in zip(videos, map(tuple, stems), strict=True):
            located.append(replace(video, path=files.find(names)))
            if not located[-1].path and (reason := files.reason(names)):
                reasons[video.id] = reason
        videos = located
        notes[NOISE] = files.ignored
    missing = [video for video in videos if folder is not None and not video.path]
    return Manifest(
        name,
        tuple(classes),
        tuple(video for video in videos if folder is None or video.path),
        tuple(video.id for video in missing),
        tuple(video.split for video in missing),
        missing_reasons=reasons,
        notes={kind: count for kind, count in notes.items() if count},
    )
