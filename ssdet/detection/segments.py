"""Segments of classes from frame scores that arrive in blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Scores of consecutive frames."""

    first: int
    """Number of the first frame."""
    times_N: np.ndarray
    """Seconds at which each is shown."""
    ends_N: np.ndarray
    """Seconds at which each is replaced by the next."""
    probabilities_NK: np.ndarray
    """float32."""


@dataclass(frozen=True)
class SegmentRule:
    """Parameters of forming segments from scores."""

    threshold: float = 0.5
    """Minimum peak probability of a segment."""
    merge: float = 0.0
    """Maximum gap, in seconds, between two segments of a class that are merged."""
    min_length: float = 0.0
    """Minimum length of a segment in seconds."""
    low: float | None = None
    """Minimum probability of every frame of a segment before merging; the threshold by default."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or not 0 < self.least <= self.threshold:
            raise ValueError(
                f"threshold={self.threshold}, low={self.low}: expected 0 < low <= threshold <= 1"
            )
        if not (self.merge >= 0 and self.min_length >= 0):
            raise ValueError(
                f"merge={self.merge}, min_length={self.min_length}: expected seconds, 0 or more"
            )

    @property
    def least(self) -> float:
        return self.threshold if self.low is None else self.low


@dataclass(slots=True)
class Detection:
    """A segment of a video with one class."""

    label: int
    name: str
    start: float
    end: float
    """Seconds."""
    score: float
    """Mean probability of its frames with at least `SegmentRule.least`."""
    peak: float


@dataclass(slots=True)
class _Run:
    """Consecutive frames of one class, and merged later ones."""

    start: float
    end: float
    stop: int
    total: float
    frames: int
    peak: float

    def join(self, later: "_Run") -> None:
        self.end, self.stop, self.peak = later.end, later.stop, max(self.peak, later.peak)
        self.total, self.frames = self.total + later.total, self.frames + later.frames


class SegmentFinder:
    """Finds segments in blocks of scores; memory grows with the number of segments only."""

    def __init__(self, classes: Sequence[str], rule: SegmentRule) -> None:
        self.classes, self.rule = classes, rule
        self._current: dict[int, _Run] = {}
        self._waiting: dict[int, _Run] = {}
        self._found: list[Detection] = []

    def add(self, rows: Rows) -> None:
        """Add the next frames."""
        hits_NK = rows.probabilities_NK >= self.rule.least
        for k in np.flatnonzero(hits_NK.any(0)).tolist():
            edges = np.flatnonzero(np.diff(hits_NK[:, k].astype(np.int8), prepend=0, append=0))
            scores_N = rows.probabilities_NK[:, k]
            for first, stop in edges.reshape(-1, 2).tolist():
                part_n = scores_N[first:stop]
                run = _Run(
                    float(rows.times_N[first]), float(rows.ends_N[stop - 1]), rows.first + stop,
                    float(part_n.sum(dtype=np.float64)), stop - first, float(part_n.max()),
                )  # fmt: skip
                self._take(k, run, rows.first + first)

    def _take(self, k: int, run: _Run, first: int) -> None:
        current = self._current.get(k)
        if current is not None and current.stop == first:
            current.join(run)
            return
        if current is not None:
            self._close(k, current)
        self._current[k] = run

    def _close(self, k: int, run: _Run) -> None:
        if run.peak < self.rule.threshold:
            return
        waiting = self._waiting.get(k)
        if waiting is not None and run.start - waiting.end <= self.rule.merge + 1e-9:
            waiting.join(run)
            return
        if waiting is not None:
            self._keep(k, waiting)
        self._waiting[k] = run

    def _keep(self, k: int, run: _Run) -> None:
        if run.end - run.start >= self.rule.min_length - 1e-9:
            mean = run.total / run.frames
            self._found.append(Detection(k, self.classes[k], run.start, run.end, mean, run.peak))

    def finish(self) -> list[Detection]:
        """All segments, sorted by start and class; call it once, after the last frames."""
        for k, run in self._current.items():
            self._close(k, run)
        for k, run in self._waiting.items():
            self._keep(k, run)
        return sorted(self._found, key=lambda segment: (segment.start, segment.label))


def find_segments(
    classes: Sequence[str], rule: SegmentRule, rows: Iterable[Rows]
) -> list[Detection]:
    """Segments of a whole video."""
    finder = SegmentFinder(classes, rule)
    for block in rows:
        finder.add(block)
    return finder.finish()
