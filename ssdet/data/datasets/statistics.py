"""Statistics of annotations: videos, instances, labels per frame, label changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.video.clock import Clock

POINTS = 25
RADII = (0, 1, 3)
"""Frames on both sides of a label change that count as boundary (Table A.1g)."""


@dataclass(frozen=True)
class FrameRule:
    """Frame times at which videos are labelled, and the minimum length of videos."""

    fps: float = 24.0
    times: Literal["frames", "grid"] = "frames"
    """frames: frame f of n is at f · duration / n, as in the dense protocol; grid: at f / fps, as
    in MultiTHUMOS (10 a second). They differ at the borders of actions, which are annotated in
    tenths of a second."""
    min_frames: int = 0
    """Minimum number of frames of a video; 162 in the published code."""

    def __post_init__(self) -> None:
        if not 0 < self.fps < 1e6 or self.min_frames < 0:
            raise ValueError(
                f"{self.fps} frames a second, at least {self.min_frames}: expected > 0 and >= 0"
            )

    def frames(self, video: Video) -> int:
        """Number of frames by the annotated duration: round(duration · fps); 0 without a duration.

        Rounding to nearest reproduces the measured counts (Charades' test videos of at least 162
        frames: 1,282,247 frames; rounding down gives 1,281,493, up 1,282,990).
        """
        return round((video.duration or 0.0) * self.fps)

    def targets(self, manifest: Manifest, video: Video, frames: int) -> np.ndarray:
        """Labels bool [K, frames] of the frames strictly inside actions."""
        by_file = self.times == "frames" and video.duration
        rate = frames / video.duration if by_file and video.duration else self.fps
        return manifest.frame_targets(video, frames, rate)


@dataclass(frozen=True)
class LabelCounts:
    """Counts of labels over the frames, or sampled points, of videos."""

    videos: int
    labels: np.ndarray
    """[3] frames with none, one and several labels."""
    near: np.ndarray
    """[3] frames at most 0, 1 and 3 frames from a label change."""
    positives: np.ndarray
    """[K] frames of each class."""

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return LabelCounts(*(mine + others for mine, others in pairs))

    @property
    def frames(self) -> int:
        return int(self.labels.sum())

    def summary(self) -> dict[str, Any]:
        """Counts and, if there are frames, shares as fractions of the frames."""
        counts = {"videos": self.videos, "frames": self.frames, "labels": int(self.positives.sum())}
        if not self.frames:
            return counts
        none, one, several = (self.labels / self.frames).tolist()
        return counts | {
            "labels_per_frame": counts["labels"] / self.frames,
            "share_by_labels": {"none": none, "one": one, "several": several},
        }

    def changes(self) -> dict[str, Any]:
        """Number of label changes, and shares of the frames near one by distance, for JSON."""
        shares = (self.near / max(self.frames, 1)).tolist()
        near = dict(zip(map(str, RADII), shares, strict=True))
        return {"changes": int(self.near[0]), "share_near_change": near}


def no_labels(classes: int) -> LabelCounts:
    """Counts of an empty set of videos."""
    return LabelCounts(0, np.zeros(3, int), np.zeros(len(RADII), int), np.zeros(classes, int))


def count_labels(targets_KT: np.ndarray) -> LabelCounts:
    """Counts of one video's labels, bool [K, T].

    A label change is a frame whose labels differ from those of the previous frame in any class.
    """
    seen = targets_KT.any(1)
    active = targets_KT[seen]  # few of the classes
    changed = np.zeros(targets_KT.shape[1], bool)
    changed[1:] = (active[:, 1:] != active[:, :-1]).any(0)
    positives = np.zeros(len(targets_KT), int)
    positives[seen] = active.sum(1)
    labels = np.bincount(np.minimum(active.sum(0), 2), minlength=3)
    near = [int(_within(changed, radius).sum()) for radius in RADII]
    return LabelCounts(1, labels, np.array(near), positives)


def _within(changed_T: np.ndarray, radius: int) -> np.ndarray:
    """Frames at most `radius` frames from a change, bool [T]."""
    near = changed_T.copy()
    for step in range(1, radius + 1):
        near[step:] |= changed_T[:-step]
        near[:-step] |= changed_T[step:]
    return near


def point_targets(manifest: Manifest, video: Video, points: int = POINTS) -> np.ndarray:
    """Labels bool [K, points] at duration · j / points, j = 0 ..., including borders of actions.

    As in Charades' official localisation code. Raises ValueError without a duration.
    """
    if video.duration is None:
        raise ValueError(f"{manifest.name}: video {video.id!r} has no duration")
    times = np.arange(points) / points * video.duration
    targets = np.zeros((manifest.num_classes, points), bool)
    for segment in video.segments:
        targets[segment.label] |= (segment.start <= times) & (times <= segment.end)
    return targets


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split of a data set."""

    videos: int
    missing: int
    """Annotated videos without a usable file."""
    quarantined: int
    """Missing videos that are in quarantine."""
    unlabelled: int
    """Videos without a label."""
    instances: int
    """Annotated actions including those left out; one per clip with a single label."""
    left_out: int
    """Instances that end before they start."""
    late: int
    """Instances that end after the video, excluding those left out."""
    mean_length: float | None
    """Mean duration in seconds of the videos that have one."""
    classes_per_video: float
    instances_per_class: np.ndarray
    """[K], excluding those left out."""
    videos_per_class: np.ndarray
    points: LabelCounts | None
    """At 25 points of each video; None for clips with a single label."""
    dense: LabelCounts | None
    """At every frame; None for clips with a single label."""

    def summary(self) -> dict[str, Any]:
        """Counts, means and shares (as fractions), for JSON."""
        names = ("videos", "missing", "quarantined", "unlabelled", "instances", "left_out", "late")
        return {
            **{name: getattr(self, name) for name in names},
            "mean_length": self.mean_length,
            "classes_per_video": self.classes_per_video,
            "points": self.points and self.points.summary(),
            "dense": self.dense and {**self.dense.summary(), **self.dense.changes()},
        }


def split_statistics(
    manifest: Manifest, rule: FrameRule | None = None, clocks: Mapping[str, Clock] | None = None
) -> SplitStatistics:
    """Statistics of the videos of a manifest, usually of one split.

    `clocks` are the clocks of readable files by video id; videos without one have no dense labels.
    Without `clocks` frames are counted by the annotated durations.
    """
    videos = manifest.videos
    labels = [[s.label for s in v.segments] if v.label is None else [v.label] for v in videos]
    lengths = [video.duration for video in videos if video.duration is not None]
    clips = any(video.label is not None for video in videos)
    timed = (point_targets(manifest, video) for video in videos if video.duration is not None)
    return SplitStatistics(
        videos=len(videos),
        missing=len(manifest.missing),
        quarantined=len(manifest.quarantined),
        unlabelled=labels.count([]),
        instances=sum(map(len, labels)) + sum(video.left_out for video in videos),
        left_out=sum(video.left_out for video in videos),
        late=sum(s.end > (v.duration or np.inf) for v in videos for s in v.segments),
        mean_length=float(np.mean(lengths)) if lengths else None,
        classes_per_video=float(np.mean([len(set(classes)) for classes in labels]))
        if videos
        else 0.0,
        instances_per_class=_per_class(manifest, [k for classes in labels for k in classes]),
        videos_per_class=_per_class(manifest, [k for classes in labels for k in set(classes)]),
        points=None if clips else sum(map(count_labels, timed), no_labels(manifest.num_classes)),
        dense=None if clips else _dense(manifest, rule or FrameRule(), clocks),
    )


def _per_class(manifest: Manifest, labels: list[int]) -> np.ndarray:
    return np.bincount(np.array(labels, int), minlength=manifest.num_classes)


def _dense(manifest: Manifest, rule: FrameRule, clocks: Mapping[str, Clock] | None) -> LabelCounts:
    total = no_labels(manifest.num_classes)
    for video in manifest.videos:
        clock = None if clocks is None else clocks.get(video.id)
        if clocks is not None and clock is None:
            continue
        if clock is not None and rule.times == "frames":
            count, targets = clock.frames, manifest.targets_at(video, clock.times_T)
        else:
            count = rule.frames(video)
            targets = rule.targets(manifest, video, count)
        if count >= max(rule.min_frames, 1):
            total += count_labels(targets)
    return total
