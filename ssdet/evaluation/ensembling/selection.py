"""Which members an ensemble needs: weights and choices fitted on held-out videos, gains, errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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
Measure = Callable[[PredictionSet], float]
"""The score of a prediction set, the higher the better."""
LAST_STEP = 1 / 32
LEAST_GAIN = 1e-5
"""mAP (fraction) below which a change is not worth its passes over the predictions."""
ROUNDS = 50


@dataclass(frozen=True)
class Fit:
    """Weights found on a held-out split, and what they scored there."""

    kind: Literal["weights", "greedy"]
    method: Method
    weights: Weights
    """Of each member, >= 0, sum 1."""
    score: float
    """Score (fraction) on the videos that were fitted: an optimistic number."""
    chosen: tuple[int, ...]
    """Greedy: positions of the members in the order in which they were added."""
    evaluations: int
    videos: frozenset[str]
    """The videos that were fitted."""

    def apply(
        self,
        members: Sequence[PredictionSet],
        folder: str | Path,
        grid: Grid | None = None,
        videos: Videos = "equal",
    ) -> PredictionSet:
        """Combine the same members' predictions of other videos; see `combine`.

        Raises ValueError where a video was fitted: a score on it would be no result.
        """
        self.check_unseen({video for member in members for video in member})
        return combine(members, folder, weighted(self.method), self.weights, grid, videos)

    def check_unseen(self, videos: set[str]) -> None:
        """Raise ValueError naming the videos that were fitted."""
        if seen := sorted(self.videos & videos):
            raise ValueError(
                f"{len(seen)} of {len(videos)} videos were fitted ({', '.join(seen[:5])}): "
                "report another split than the one that weights are fitted on"
            )


@dataclass(frozen=True)
class MarginalGain:
    """What one member is worth, scores as fractions."""

    single: float
    """Score of the member alone."""
    leave_one_out: float | None
    """Score of all members minus the score without this one; None for the only member."""
    added_to_best: float
    """Score of this one beside the best single member minus the best's own; 0 for that one."""


def weighted(method: Method) -> Method:
    """The method's name once it has weights."""
    return "weighted" if method == "mean_probability" else method


def fit_weights(
    members: Members,
    targets: Targets,
    method: Method = "mean_probability",
    score: Measure | None = None,
) -> Fit:
    """Weights that raise a score, dense mAP by default, on held-out videos, by a pattern search on
    the simplex.

    Starts from equal weights, or from a single member where that scores higher. Moves each
    member's weight towards 1 and towards 0, all the way (the member alone, or dropped), keeps
    what gains at least 1e-5, and halves the step once nothing does, down to 1/32. Deterministic;
    never below the start on these videos. Some 12 passes a member over the predictions. Raises
    as `align`.
    """
    judge = _Judge(members, targets, method, score)
    starts = [_equal(judge.size), *_singles(judge.size)]
    best = max(starts, key=judge)  # the first of equal scores: equal weights before any single
    step = 1.0
    while step >= LAST_STEP:
        improved = False
        for weights_of in (_towards, _away):
            for member in range(judge.size):
                moved = weights_of(best, member, step)
                if judge(moved) >= judge(best) + LEAST_GAIN:
                    best, improved = moved, True
        step = step if improved else step / 2
    return judge.fit("weights", best)


def select_greedily(
    members: Members,
    targets: Targets,
    method: Method = "mean_probability",
    rounds: int = ROUNDS,
    score: Measure | None = None,
) -> Fit:
    """Add the member that raises a held-out score, dense mAP by default, most, with replacement,
    until none does.

    Stops below a gain of 1e-5. Equal scores go to the earlier member. How often a member was
    added is its weight. Raises as `align`. Source: Caruana et al., Ensemble selection from
    libraries of models, ICML 2004.
    """
    judge = _Judge(members, targets, method, score)
    chosen: list[int] = []
    best = -np.inf
    while len(chosen) < rounds:
        scores = [judge(_counted([*chosen, member], judge.size)) for member in range(judge.size)]
        if max(scores) < best + LEAST_GAIN:
            break
        best = max(scores)
        chosen.append(scores.index(best))
    return judge.fit("greedy", _counted(chosen, judge.size), tuple(chosen))


def marginal_gains(
    members: Members,
    targets: Targets,
    method: Method = "mean_probability",
    weights: Sequence[float] | None = None,
    score: Measure | None = None,
) -> tuple[MarginalGain, ...]:
    """What each member adds to the others, and to the best single one; 3 passes a member.

    ``weights`` are those of the ensemble (equal by default); without a member the others keep
    theirs in proportion. Raises as `align`, and where the weights do not fit.
    """
    judge = _Judge(members, targets, method, score)
    whole = tuple(weights) if weights is not None else _equal(judge.size)
    if len(whole) != judge.size:
        raise ValueError(f"{len(whole)} weights of {judge.size} members: give one a member")
    singles = _singles(judge.size)
    alone = [judge(single) for single in singles]
    best = alone.index(max(alone))
    return tuple(
        MarginalGain(
            single=alone[member],
            leave_one_out=None if whole == singles[member] else judge(whole) - judge(rest),
            added_to_best=judge(_counted([best, member], judge.size)) - alone[best],
        )
        for member in range(judge.size)
        for rest in [_away(whole, member, 1)]
    )


def error_correlation(members: Members, targets: Targets) -> Array:
    """Pearson correlation of the members' residuals (score - truth), float64 [M, M].

    Over all frames and classes together, streamed; NaN for a member whose residual is constant.
    Raises as `align`.
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


class _Judge:
    """Score of any weighting of the members, dense mAP where no other is given; what was asked once
    is remembered."""

    def __init__(
        self, members: Members, targets: Targets, method: Method, score: Measure | None
    ) -> None:
        aligned = members if isinstance(members, Alignment) else align(members)
        self.size = len(aligned.members)
        self._combiner, self._targets, self._score = Combiner(aligned, method), targets, score
        self._known: dict[Weights, float] = {}

    def __call__(self, weights: Weights) -> float:
        if weights not in self._known:
            self._known[weights] = self._scored(weights)
        return self._known[weights]

    def _scored(self, weights: Weights) -> float:
        if self._score is None:
            return self._combiner.dense_map(self._targets, weights)
        with TemporaryDirectory(prefix="ssdet-members-") as folder:
            return self._score(self._combiner.write(folder, weights))

    def fit(
        self, kind: Literal["weights", "greedy"], weights: Weights, chosen: tuple[int, ...] = ()
    ) -> Fit:
        videos = frozenset(self._combiner.aligned.grid)
        method = self._combiner.method
        return Fit(kind, method, weights, self(weights), chosen, len(self._known), videos)


def _equal(size: int) -> Weights:
    return (1 / size,) * size


def _singles(size: int) -> list[Weights]:
    return [_counted([member], size) for member in range(size)]


def _counted(chosen: Sequence[int], size: int) -> Weights:
    """Weights of members that were chosen so often."""
    return tuple(chosen.count(member) / len(chosen) for member in range(size))


def _towards(weights: Weights, member: int, step: float) -> Weights:
    """A member's weight moved towards 1 by a share of the way, the others in proportion."""
    return tuple(w * (1 - step) + step * (i == member) for i, w in enumerate(weights))


def _away(weights: Weights, member: int, step: float) -> Weights:
    """A member's weight lowered by a share, the others in proportion; as it was if alone."""
    left = [w * (1 - step * (i == member)) for i, w in enumerate(weights)]
    total = sum(left)
    return tuple(w / total for w in left) if total else weights
