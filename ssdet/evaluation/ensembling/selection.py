"""Weights and greedy selection of ensemble members on held-out videos, gains, error correlation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.ensembling.alignment import Alignment, Grid, align
from ssdet.evaluation.ensembling.choices import Method, Videos
from ssdet.evaluation.ensembling.combination import Combiner, combine
from ssdet.evaluation.predictions import PredictionSet

Members = Sequence[PredictionSet] | Alignment
Targets = Mapping[str, Array]
Weights = tuple[float, ...]
LAST_STEP = 1 / 32
LEAST_GAIN = 1e-5
"""Minimum gain of mAP (fraction) for which a change of weights is accepted."""
ROUNDS = 50


@dataclass(frozen=True)
class Fit:
    """Weights fitted on a held-out split, and their score there."""

    kind: Literal["weights", "greedy"]
    method: Method
    weights: Weights
    """One per member, >= 0, sum 1."""
    score: float
    """Dense mAP (fraction) on the fitted videos, which is optimistic."""
    chosen: tuple[int, ...]
    """Greedy selection: indices of the members in the order of addition."""
    evaluations: int
    videos: frozenset[str]
    """Fitted videos."""

    def apply(
        self,
        members: Sequence[PredictionSet],
        folder: str | Path,
        grid: Grid | None = None,
        videos: Videos = "equal",
    ) -> PredictionSet:
        """Combine the same members' predictions of other videos; see `combine`.

        Raises ValueError for a fitted video, on which a score would be biased.
        """
        self.check_unseen({video for member in members for video in member})
        return combine(members, folder, weighted(self.method), self.weights, grid, videos)

    def check_unseen(self, videos: set[str]) -> None:
        """Raise ValueError for fitted videos among these."""
        if seen := sorted(self.videos & videos):
            raise ValueError(
                f"{len(seen)} of {len(videos)} videos were fitted ({', '.join(seen[:5])}): "
                "report another split than the one that weights are fitted on"
            )


@dataclass(frozen=True)
class MarginalGain:
    """Contribution of one member, in dense mAP as a fraction."""

    single: float
    """Score of the member alone."""
    leave_one_out: float | None
    """Score of all members minus the score without this one; None for the only member."""
    added_to_best: float
    """Score of this member with the best single one, minus the best one's own."""


def weighted(method: Method) -> Method:
    """The name of a method with weights."""
    return "weighted" if method == "mean_probability" else method


def fit_weights(members: Members, targets: Targets, method: Method = "mean_probability") -> Fit:
    """Weights that raise the dense mAP on held-out videos, by a pattern search on the simplex.

    Starts from equal weights, or from a single member if that scores higher. Moves each member's
    weight towards 1 and towards 0, at first all the way (the member alone, or dropped), accepts
    moves that gain at least 1e-5, and halves the step when none does, down to 1/32. Deterministic
    and never below the start on these videos. About 12 passes a member over the predictions.
    Raises as `align`.
    """
    score = _CachedScore(members, targets, method)
    starts = [_equal(score.size), *_singles(score.size)]
    best = max(starts, key=score)  # the first of equal scores: equal weights before any single
    step = 1.0
    while step >= LAST_STEP:
        improved = False
        for weights_of in (_towards, _away):
            for member in range(score.size):
                moved = weights_of(best, member, step)
                if score(moved) >= score(best) + LEAST_GAIN:
                    best, improved = moved, True
        step = step if improved else step / 2
    return score.fit("weights", best)


def select_greedily(
    members: Members, targets: Targets, method: Method = "mean_probability", rounds: int = ROUNDS
) -> Fit:
    """Add the member that raises the held-out dense mAP most, with replacement, until none does.

    Stops below a gain of 1e-5. Ties go to the earlier member. Weights are the numbers of
    additions. Raises as `align`. Source: Caruana et al., Ensemble selection from libraries of
    models, ICML 2004.
    """
    score = _CachedScore(members, targets, method)
    chosen: list[int] = []
    best = -np.inf
    while len(chosen) < rounds:
        scores = [score(_counted([*chosen, member], score.size)) for member in range(score.size)]
        if max(scores) < best + LEAST_GAIN:
            break
        best = max(scores)
        chosen.append(scores.index(best))
    return score.fit("greedy", _counted(chosen, score.size), tuple(chosen))


def marginal_gains(
    members: Members,
    targets: Targets,
    method: Method = "mean_probability",
    weights: Sequence[float] | None = None,
) -> tuple[MarginalGain, ...]:
    """What each member adds to the others, and to the best single one; 3 passes a member.

    ``weights`` are those of the ensemble (default: equal); without a member the others are scaled
    up. Raises as `align`, and for another number of weights.
    """
    score = _CachedScore(members, targets, method)
    whole = tuple(weights) if weights is not None else _equal(score.size)
    if len(whole) != score.size:
        raise ValueError(f"{len(whole)} weights of {score.size} members: give one a member")
    singles = _singles(score.size)
    alone = [score(single) for single in singles]
    best = alone.index(max(alone))
    return tuple(
        MarginalGain(
            single=alone[member],
            leave_one_out=None if whole == singles[member] else score(whole) - score(rest),
            added_to_best=score(_counted([best, member], score.size)) - alone[best],
        )
        for member in range(score.size)
        for rest in [_away(whole, member, 1)]
    )


def error_correlation(members: Members, targets: Targets) -> Array:
    """Pearson correlation of the members' residuals (score - truth), float64 [M, M].

    Over all frames and classes, streamed; NaN for a member of constant residual. Raises as
    `align`.
    """
    aligned = members if isinstance(members, Alignment) else align(members)
    aligned.check(targets)
    everyone = range(len(aligned.members))
    products_MM = torch.zeros(len(everyone), len(everyone), dtype=torch.float64)
    sums_M, count = torch.zeros(len(everyone), dtype=torch.float64), 0
    for video in aligned.grid:
        start = 0
        for parts in zip(*(aligned.blocks(video, member) for member in everyone), strict=True):
            stop = start + len(parts[0])
            truth_NK = torch.from_numpy(np.array(targets[video][start:stop], np.float64))
            residuals_ML = torch.stack([(part.double() - truth_NK).flatten() for part in parts])
            products_MM += residuals_ML @ residuals_ML.T
            sums_M += residuals_ML.sum(1)
            start, count = stop, count + residuals_ML.shape[1]
    covariance_MM = products_MM / count - torch.outer(sums_M, sums_M) / count**2
    sd_M = covariance_MM.diagonal().clamp(min=0).sqrt()
    return (covariance_MM / torch.outer(sd_M, sd_M)).numpy()


class _CachedScore:
    """Dense mAP of any weighting of the members, cached."""

    def __init__(self, members: Members, targets: Targets, method: Method) -> None:
        aligned = members if isinstance(members, Alignment) else align(members)
        self.size = len(aligned.members)
        self._combiner, self._targets = Combiner(aligned, method), targets
        self._scores: dict[Weights, float] = {}

    def __call__(self, weights: Weights) -> float:
        if weights not in self._scores:
            self._scores[weights] = self._combiner.dense_map(self._targets, weights)
        return self._scores[weights]

    def fit(
        self, kind: Literal["weights", "greedy"], weights: Weights, chosen: tuple[int, ...] = ()
    ) -> Fit:
        videos = frozenset(self._combiner.aligned.grid)
        method = self._combiner.method
        return Fit(kind, method, weights, self(weights), chosen, len(self._scores), videos)


def _equal(size: int) -> Weights:
    return (1 / size,) * size


def _singles(size: int) -> list[Weights]:
    return [_counted([member], size) for member in range(size)]


def _counted(chosen: Sequence[int], size: int) -> Weights:
    """Weights proportional to how often members were chosen."""
    return tuple(chosen.count(member) / len(chosen) for member in range(size))


def _towards(weights: Weights, member: int, step: float) -> Weights:
    """Move a member's weight towards 1 by a fraction of the way, and scale the others."""
    return tuple(w * (1 - step) + step * (i == member) for i, w in enumerate(weights))


def _away(weights: Weights, member: int, step: float) -> Weights:
    """Lower a member's weight by a fraction, and scale the others; unchanged if alone."""
    left = [w * (1 - step * (i == member)) for i, w in enumerate(weights)]
    total = sum(left)
    return tuple(w / total for w in left) if total else weights
