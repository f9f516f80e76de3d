"""Check of early stopping: whether short schedules rank arms as full ones do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from scipy.stats import rankdata

from ssdet.search.trials import SearchResult
from ssdet.store.base import Store
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import network_stage
from ssdet.studies.graph.plan import Plan
from ssdet.studies.scoring import Scoring

ENOUGH_ARMS = 5
"""With four arms, one order in 24 agrees by chance."""

SAFE = 0.5
"""Rank correlation that the interval must lie above."""


@dataclass(frozen=True)
class Trust:
    """Agreement of two rankings of the same arms."""

    arms: int
    spearman: float
    """Rank correlation; NaN with fewer than two arms, or where all scores of a side are equal."""
    low: float
    high: float
    """95 % interval, bootstrap over arms."""
    p_value: float
    """Share of random orders that agree as well or better."""
    best_short: str
    best_full: str
    kept: bool
    """Whether the best arm of the full schedule survives if the worse half is stopped early."""
    verdict: str

    @property
    def top1(self) -> bool:
        """Whether both schedules have the same best arm."""
        return self.best_short == self.best_full

    def __str__(self) -> str:
        agree = "the same best arm" if self.top1 else f"best {self.best_short}, then"
        best = agree if self.top1 else f"{agree} {self.best_full}"
        return (
            f"{self.verdict} (Spearman {self.spearman:.2f} [{self.low:.2f}, {self.high:.2f}], "
            f"p = {self.p_value:.3f}, {self.arms} arms, {best})"
        )


def trust(
    short: Mapping[str, float],
    full: Mapping[str, float],
    generator: torch.Generator | None = None,
    resamples: int = 2000,
) -> Trust:
    """Compare the scores (higher is better) of the same arms after a short and a full schedule.

    Draws come from `generator` (default: seed 0). ValueError where the arms are not the same.
    """
    if short.keys() != full.keys() or not full:
        raise ValueError(f"arms {sorted(short)} and {sorted(full)}: expected the same, at least 1")
    generator = generator or torch.Generator().manual_seed(0)
    names = sorted(full)
    before_A = np.array([short[name] for name in names])
    after_A = np.array([full[name] for name in names])
    rho = float(_spearman(before_A[None], after_A[None])[0])
    low, high = _interval(before_A, after_A, generator, resamples)
    p_value = _chance(before_A, after_A, rho, generator, resamples)
    best_short, best_full = names[int(before_A.argmax())], names[int(after_A.argmax())]
    kept = sorted(short.values(), reverse=True)[(len(names) - 1) // 2] <= short[best_full]
    verdict = _verdict(len(names), low, high, kept, best_full)
    return Trust(len(names), rho, low, high, p_value, best_short, best_full, kept, verdict)


def _verdict(arms: int, low: float, high: float, kept: bool, best: str) -> str:
    if arms < ENOUGH_ARMS:
        return f"too few arms: {arms} of the {ENOUGH_ARMS} that this takes"
    if not kept:
        return f"early stopping is not safe: it would stop {best}, the best arm"
    if low >= SAFE:
        return "early stopping looks safe"
    if high < SAFE:
        return "early stopping is not safe: the rankings differ"
    return "too few arms to tell: leave early stopping off"


def _spearman(before_RA: np.ndarray, after_RA: np.ndarray) -> np.ndarray:
    """Rank correlation of each row; NaN where all scores of a side are equal."""
    sides = [rankdata(scores, axis=1) for scores in (before_RA, after_RA)]
    before, after = (ranks - ranks.mean(1, keepdims=True) for ranks in sides)
    scale = np.sqrt((before**2).sum(1) * (after**2).sum(1))
    return np.divide((before * after).sum(1), scale, np.full(len(scale), np.nan), where=scale > 0)


def _interval(
    before_A: np.ndarray, after_A: np.ndarray, generator: torch.Generator, resamples: int
) -> tuple[float, float]:
    arms = len(before_A)
    drawn_RA = torch.randint(arms, (resamples, arms), generator=generator).numpy()
    found = _spearman(before_A[drawn_RA], after_A[drawn_RA])
    found = found[~np.isnan(found)]  # draws of a single arm have no order
    if not len(found):
        return float("nan"), float("nan")
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def _chance(
    before_A: np.ndarray, after_A: np.ndarray, rho: float, generator: torch.Generator, draws: int
) -> float:
    if np.isnan(rho):
        return 1.0
    orders_RA = torch.rand(draws, len(after_A), generator=generator).argsort(1).numpy()
    found = _spearman(np.broadcast_to(before_A, orders_RA.shape), after_A[orders_RA])
    return float(((found >= rho - 1e-9).sum() + 1) / (draws + 1))


def trust_of_validations(plan: Plan, store: Store) -> Trust:
    """First against last validation of the fine-tunings of a study's arms, mean over seeds.

    ValueError where no arm is finished with two validations.
    """
    curves = {
        arm.name: [
            curve
            for run in plan.of(arm.name)
            if run.predict.kind == "predict"
            and len(curve := validations(network_stage(run.predict), store)) > 1
        ]
        for arm in plan.study.arms
    }
    first = {name: fmean(c[0] for c in found) for name, found in curves.items() if found}
    last = {name: fmean(c[-1] for c in found) for name, found in curves.items() if found}
    if not first:
        raise ValueError(
            f"study {plan.study.name!r}: no arm is finished with two validations of fine-tuning"
        )
    return trust(first, last)


def trust_of_studies(short: Plan, full: Plan, store: Store) -> Trust:
    """Two studies of the same arms with schedules of different length, on the validation split.

    Arms that only one of them has, or that are not finished in both, do not count; ValueError
    where none is left.
    """
    before, after = scores(short, store), scores(full, store)
    both = before.keys() & after.keys()
    if not both:
        raise ValueError(
            f"studies {short.study.name!r} and {full.study.name!r} have no finished arm in common"
        )
    return trust({name: before[name] for name in both}, {name: after[name] for name in both})


def trust_of_search(result: SearchResult) -> Trust:
    """First validation against the result of the trials that ran to their end.

    Of a search with a scheduler these are the ones that it let pass: no proof that it was right.
    ValueError where no trial has finished with two validations.
    """
    done = {str(t.number): t for t in result.ranked() if len(t.rungs) > 1}
    first = {name: t.rungs[min(t.rungs)] for name, t in done.items()}
    return trust(first, {name: t.values["map"] for name, t in done.items()})


def validations(stage: Stage, store: Store) -> Sequence[float]:
    """Validation scores of a finished training stage in the order of steps, else none."""
    return [] if store.result(stage.id) is None else list(store.validations(stage.id).values())


def scores(plan: Plan, store: Store) -> dict[str, float]:
    """Validation score of each arm whose seeds have all finished, under the study's protocol, mean
    over them."""
    found: dict[str, float] = {}
    scoring = Scoring.of(store, plan.study.data, plan.study.protocol)
    for arm in plan.study.arms:
        stages = [run.predict.id for run in plan.of(arm.name)]
        if stages and all(store.result(stage) is not None for stage in stages):
            found[arm.name] = fmean(scoring.value(stage, "val") for stage in stages)
    return found
