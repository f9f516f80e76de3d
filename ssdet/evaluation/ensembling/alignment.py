"""Alignment of the prediction sets of several runs on one grid of frames."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssdet.data.video.clock import Clock
from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.ensembling.choices import Videos
from ssdet.evaluation.predictions import PredictionSet

ROW_BLOCK = 2048
Grid = Mapping[str, tuple[int, float | Clock]]
"""Number of frames and, by constant fps (frame i is at i / fps) or clock, their times, by video."""


@dataclass(frozen=True)
class Alignment:
    """Members whose rows are the frames of one grid; made by `align`."""

    members: tuple[PredictionSet, ...]
    grid: Grid
    """Grid of the videos that all members have, in the order of the first member."""
    left_out: tuple[str, ...]
    """Videos that a member lacks."""

    @property
    def classes(self) -> int:
        return self.members[0].classes

    def blocks(self, video: str, member: int) -> Iterator[torch.Tensor]:
        """A member's float16 scores [at most 2048, K] of one video on the grid, in order."""
        frames, timing = self.grid[video]
        scores_TK, own = self.members[member][video], _timing(self.members[member], video)
        same = _same_times(own, timing)
        for start in range(0, frames, ROW_BLOCK):
            rows = slice(start, min(start + ROW_BLOCK, frames))
            if same:
                yield torch.tensor(scores_TK[rows])
            else:
                yield _interpolated(scores_TK, _positions(own, timing, frames)[rows])

    def check(self, targets: Mapping[str, Array]) -> None:
        """Raise ValueError naming a video that the targets lack, or have with another shape."""
        for video, (frames, _) in self.grid.items():
            shape = targets[video].shape if video in targets else None
            if shape != (frames, self.classes):
                raise ValueError(
                    f"video {video!r}: targets {shape}, the members' grid is "
                    f"{(frames, self.classes)}: score the split that was predicted, on its grid"
                )


def align(
    members: Sequence[PredictionSet], grid: Grid | None = None, videos: Videos = "equal"
) -> Alignment:
    """Members on the frames of ``grid``, by default those of the first member.

    A member of another rate is interpolated linearly in time (beyond its end: its last frame)
    and rounded to float16. ``videos="common"`` selects the videos that all members and the grid
    have. Raises ValueError without a member or video, for altered data, and for members that
    differ in videos, classes or the length of a video (at different rates, by more than a frame
    of the lower one).
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    if videos not in ("equal", "common"):
        raise ValueError(f"videos={videos!r}: choose 'equal' or 'common'")
    first = members[0]
    shared = [video for video in first if all(video in member for member in members)]
    if grid is not None and videos == "common":
        shared = [video for video in shared if video in grid]
    left_out = sorted({video for member in members for video in member} - set(shared))
    if videos == "equal" or not shared:
        for member in members:
            _check_videos(first, member)
    if not shared:
        raise ValueError("the members and the grid have no video in common")
    grid = grid or grid_of(first)
    if unknown := [video for video in shared if video not in grid]:
        raise ValueError(f"the grid lacks {len(unknown)} videos ({', '.join(unknown[:5])})")
    aligned = Alignment(tuple(members), {v: grid[v] for v in shared}, tuple(left_out))
    for member in {member.folder.resolve(): member for member in members}.values():
        _check(member, aligned)
        member.verify()
    return aligned


def grid_of(member: PredictionSet) -> Grid:
    """Frames and times of a prediction set itself."""
    return {video: (member.frames(video), _timing(member, video)) for video in member}


def _timing(member: PredictionSet, video: str) -> float | Clock:
    clock = member.clock(video)
    return clock if clock.rate is None else clock.rate


def _same_times(own: float | Clock, other: float | Clock) -> bool:
    if isinstance(own, Clock) and isinstance(other, Clock):
        return np.array_equal(own.times_T, other.times_T)
    return not isinstance(own, Clock) and not isinstance(other, Clock) and own == other


def same_grid(own: tuple[int, float | Clock], other: tuple[int, float | Clock]) -> bool:
    """Whether two entries of grids have the same frame times."""
    return _same_times(own[1], other[1])


def _positions(own: float | Clock, grid: float | Clock, frames: int) -> Array:
    """Fractional frame numbers of a member at the frames of the grid, [frames]."""
    if isinstance(grid, Clock):
        times_T = grid.times_T
        return own.position(times_T) if isinstance(own, Clock) else times_T * own
    if isinstance(own, Clock):
        return own.position(np.arange(frames) / grid)
    return np.arange(frames) * (own / grid)


def _check(member: PredictionSet, aligned: Alignment) -> None:
    first = aligned.members[0]
    if member.classes != first.classes:
        raise ValueError(
            f"{member.folder}: {member.classes} classes, {first.folder} has {first.classes}"
        )
    for video, expected in aligned.grid.items():
        own = (member.frames(video), _timing(member, video))
        if not _same_length(own, expected):
            raise ValueError(
                f"{member.folder}: video {video!r} has (frames, fps) {own}, expected "
                f"{expected} as in {first.folder}: predict the same videos with every member"
            )


def _check_videos(first: PredictionSet, member: PredictionSet) -> None:
    if missing := sorted(set(first) ^ set(member)):
        raise ValueError(
            f"{first.folder} and {member.folder} differ in {len(missing)} videos "
            f"({', '.join(missing[:5])}): predict the same split with every member"
        )


def _same_length(entry: tuple[int, float | Clock], other_entry: tuple[int, float | Clock]) -> bool:
    (frames, own), (other_frames, other) = entry, other_entry
    if _same_times(own, other):
        return frames == other_frames
    ends = [
        (timing.end, timing.end / frames) if isinstance(timing, Clock) else (n / timing, 1 / timing)
        for n, timing in (entry, other_entry)
    ]
    slack = max(length for _, length in ends) + 1e-6
    return abs(ends[0][0] - ends[1][0]) <= slack


def _interpolated(scores_TK: Array, at_N: Array) -> torch.Tensor:
    """A member's rows at fractional frame numbers."""
    low_N = np.minimum(at_N.astype(np.int64), len(scores_TK) - 1)
    high_N = np.minimum(low_N + 1, len(scores_TK) - 1)
    weight_N1 = torch.from_numpy(at_N - low_N).float()[:, None]
    low_NK, high_NK = (torch.from_numpy(scores_TK[index]).float() for index in (low_N, high_N))
    return torch.lerp(low_NK, high_NK, weight_N1).half()
