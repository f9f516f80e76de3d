"""Ensembles: the mean probability of several prediction sets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ssdet.evaluation.predictions import PredictionSet, PredictionWriter

ROW_BLOCK = 2048


def mean_probability(members: Sequence[PredictionSet], folder: str | Path) -> PredictionSet:
    """Write the mean of the members' probabilities to ``folder`` and open it.

    Frames are aligned by video id and position; sums are float32, the result is float16.
    Raises ValueError naming the videos where members differ in videos, frames, rate or classes,
    for altered data, and for a folder that a member is read from. Source: specs/EVAL.md 3
    (mean of sigmoids).
    """
    _check(members, Path(folder))
    first = members[0]
    with PredictionWriter(folder, first.classes) as writer:
        for video in first:
            writer.add(video, _mean([member[video] for member in members]), first.fps(video))
    return PredictionSet.open(folder)


def _mean(scores: Sequence[np.ndarray]) -> torch.Tensor:
    mean_TK = torch.empty(scores[0].shape, dtype=torch.float16)
    for start in range(0, len(mean_TK), ROW_BLOCK):
        rows = slice(start, start + ROW_BLOCK)
        total = torch.zeros(mean_TK[rows].shape)
        for scores_TK in scores:
            total += torch.tensor(scores_TK[rows])
        mean_TK[rows] = total.div_(len(scores))
    return mean_TK


def _check(members: Sequence[PredictionSet], folder: Path) -> None:
    if not members:
        raise ValueError("an ensemble needs at least one member")
    first = members[0]
    for member in members:
        if member.folder.resolve() == folder.resolve():
            raise ValueError(f"{folder}: a member is read from here: write the ensemble elsewhere")
        if member.classes != first.classes:
            raise ValueError(
                f"{member.folder}: {member.classes} classes, {first.folder} has {first.classes}"
            )
        _check_videos(first, member)
        member.verify()


def _check_videos(first: PredictionSet, member: PredictionSet) -> None:
    if missing := sorted(set(first) ^ set(member)):
        raise ValueError(
            f"{first.folder} and {member.folder} differ in {len(missing)} videos "
            f"({', '.join(missing[:5])}): predict the same split with every member"
        )
    for video in first:
        found = (member.frames(video), member.fps(video))
        expected = (first.frames(video), first.fps(video))
        if found != expected:
            raise ValueError(
                f"{member.folder}: video {video!r} has (frames, fps) {found}, {first.folder} has "
                f"{expected}: predict every member at the same rate"
            )
