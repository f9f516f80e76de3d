"""Average precision per class: exact by sorting, or streaming over the values of float16."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

EmptyClasses = Literal["left_out", "zero", "nonzero"]
Array = np.ndarray[Any, Any]
Ties = Literal["stable", "sklearn"]

CLASS_BLOCK = 16  # columns copied at once: one cache line of float32
ROW_BLOCK = 2048
MAGNITUDES = 1 << 15  # codes of a float16 without its sign
SIGN, INFINITY = 0x8000, 0x7C00


def average_precision(
    scores_NK: Array | torch.Tensor, targets_NK: Array | torch.Tensor, ties: Ties = "stable"
) -> Array:
    """Area under precision-recall of each class without interpolation, float64 [K].

    ``scores_NK``: any real values, -inf ranks last but counts; ``targets_NK``: bool or 0/1.
    ``ties="stable"`` ranks equal scores in the order of their rows (`Charades_v1_localize.m`);
    ``ties="sklearn"`` gives them the precision at the end of their group (scikit-learn), which
    does not depend on the order of rows. A class without a positive is NaN. Raises ValueError
    for shapes that differ, NaN and targets other than 0/1.
    """
    if ties not in _RULES:
        raise ValueError(f"ties={ties!r}: choose one of {', '.join(_RULES)}")
    scores_NK, hits_NK = checked(scores_NK, targets_NK)
    ap_K = np.full(scores_NK.shape[1], np.nan)
    for first, scores_bN, hits_bN in class_blocks([scores_NK], [hits_NK]):
        for k, (scores_N, hits_N) in enumerate(zip(scores_bN, hits_bN, strict=True), first):
            ap_K[k] = class_average_precision(scores_N, hits_N, ties)
    return ap_K


def class_average_precision(scores_N: Array, hits_N: Array, ties: Ties) -> float:
    """Average precision of one class from checked scores [N] and bool hits [N]."""
    return _RULES[ties](scores_N, hits_N) if hits_N.any() else float("nan")


def checked(
    scores_NK: Array | torch.Tensor, targets_NK: Array | torch.Tensor, name: str = "scores"
) -> tuple[Array, Array]:
    """Scores and bool targets as arrays of one shape [N, K]; ``name`` begins the error messages."""
    scores, targets = as_array(scores_NK), as_array(targets_NK)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(
            f"{name}: scores {scores.shape} and targets {targets.shape} must both be "
            "[frames, classes]"
        )
    hits = targets if targets.dtype == bool else targets.astype(bool)
    if hits is not targets and (hits != targets).any():
        row, k = np.argwhere(hits != targets)[0]
        raise ValueError(f"{name}: target of class {k} in row {row} is {targets[row, k]}, not 0/1")
    if scores.size and has_nan(scores):
        row, k = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"{name}: score of class {k} in row {row} is NaN: drop or repair the row")
    return scores, hits


def as_array(values: Array | torch.Tensor) -> Array:
    """Numpy view of an array or tensor (bfloat16, which numpy lacks, widened to float32)."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def has_nan(scores: Array) -> bool:
    """Whether a non-empty array holds a NaN, without a temporary as large as float32."""
    if scores.dtype == np.float16:
        return bool((scores.view(np.uint16) & (SIGN - 1)).max() > INFINITY)
    return bool(np.isnan(scores.min()))


def class_blocks(
    scores: Sequence[Array], hits: Sequence[Array]
) -> Iterator[tuple[int, Array, Array]]:
    """Yield first class, scores [b, N] and hits [b, N] of a few classes at a time over all videos.

    Rows become contiguous per class; at most one block is copied at a time.
    """
    classes = {part.shape[1] for part in scores}
    if len(classes) != 1:
        raise ValueError(f"videos must have the same number of classes, found {sorted(classes)}")
    dtype = np.result_type(np.float32, *{part.dtype for part in scores})
    for first in range(0, classes.pop(), CLASS_BLOCK):
        block = slice(first, first + CLASS_BLOCK)
        yield (
            first,
            np.concatenate([part[:, block].T for part in scores], axis=1, dtype=dtype),
            np.concatenate([part[:, block].T for part in hits], axis=1),
        )


def descending_order(scores_N: Array) -> Array:
    """Row numbers by falling score, equal scores in the order of their rows.

    A float32 and its row number fit into an integer, whose sort is much faster than argsort.
    """
    if scores_N.dtype != np.float32:
        return np.argsort(-scores_N, kind="stable")
    bits = (scores_N + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into +0.0
    falling = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    keys = falling.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


def _stable(scores_N: Array, hits_N: Array) -> float:
    ranks = np.flatnonzero(hits_N[descending_order(scores_N)]) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def _tie_groups(scores_N: Array, hits_N: Array) -> float:
    ranked, positives = np.sort(scores_N), np.sort(scores_N[hits_N])
    ranks = len(ranked) - np.searchsorted(ranked, positives)
    hits = len(positives) - np.searchsorted(positives, positives)
    return float(np.mean(hits / ranks))


_RULES: dict[str, Callable[[Array, Array], float]] = {"stable": _stable, "sklearn": _tie_groups}


class HistogramAP:
    """Average precision of float16 scores from counts per value: exact, streaming, mergeable.

    State: int32 counts of negatives and positives for every value >= 0 (41 MB for 157 classes,
    whatever the number of frames) and as much again once a score below 0 arrives. Ties follow
    ``ties="sklearn"``. At most 2**31 - 1 frames.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.frames = 0
        self._counts: dict[bool, Array] = {}  # whether the score is negative -> counts

    def _counts_of(self, negative: bool) -> Array:
        if negative not in self._counts:
            self._counts[negative] = np.zeros((self.classes, 2, MAGNITUDES), np.int32)
        return self._counts[negative]

    def add(
        self, scores_NK: Array | torch.Tensor, targets_NK: Array | torch.Tensor, name: str = "add"
    ) -> None:
        """Count float16 scores [N, K] with their 0/1 targets [N, K]; ``name`` is for errors."""
        scores, hits = checked(scores_NK, targets_NK, name)
        if scores.dtype != np.float16 or scores.shape[1] != self.classes:
            raise ValueError(
                f"{name}: {scores.dtype} scores of {scores.shape[1]} classes, expected float16 "
                f"of {self.classes}: use average_precision for other types"
            )
        self._grow(len(scores))
        for first in range(0, len(scores), ROW_BLOCK):
            rows = slice(first, first + ROW_BLOCK)
            self._count(scores[rows].view(np.uint16).T, hits[rows].T)

    def _grow(self, frames: int) -> None:
        if self.frames + frames >= 1 << 31:
            raise OverflowError(f"{self.frames + frames} frames do not fit the 32-bit counts")
        self.frames += frames

    def _count(self, bits_KN: Array, hits_KN: Array) -> None:
        cells = (bits_KN & (SIGN - 1)).astype(np.int64)
        cells += hits_KN * np.int64(MAGNITUDES)
        cells += np.arange(self.classes)[:, None] * (2 * MAGNITUDES)
        below = bits_KN > SIGN  # -0.0, the sign alone, counts as 0
        if below.any():
            self._increment(True, cells[below])
            cells = cells[~below]
        self._increment(False, cells)

    def _increment(self, negative: bool, cells: Array) -> None:
        counts = torch.from_numpy(self._counts_of(negative).reshape(-1))
        index = torch.from_numpy(cells.reshape(-1))
        counts.scatter_add_(0, index, torch.ones(1, dtype=torch.int32).expand(index.shape))

    def merge(self, other: "HistogramAP") -> None:
        """Add the counts of another worker; raises ValueError if it has other classes."""
        if other.classes != self.classes:
            raise ValueError(f"cannot merge {other.classes} classes into {self.classes}")
        self._grow(other.frames)
        for negative, counts in other._counts.items():
            mine = self._counts_of(negative)
            mine += counts

    def average_precision(self) -> Array:
        """Average precision of each class, float64 [K]; NaN for a class with no positive."""
        return np.array([self._class_average_precision(k) for k in range(self.classes)])

    def _class_average_precision(self, k: int) -> float:
        falling_2M = self._counts_of(False)[k, :, ::-1]
        if True in self._counts:
            falling_2M = np.concatenate([falling_2M, self._counts[True][k]], axis=1)
        hits_M = falling_2M[1].astype(np.int64)
        occupied = np.flatnonzero(hits_M)
        if not len(occupied):
            return float("nan")
        hits, above = np.cumsum(hits_M)[occupied], np.cumsum(falling_2M.sum(0))[occupied]
        return float((hits_M[occupied] * (hits / above)).sum() / hits[-1])
