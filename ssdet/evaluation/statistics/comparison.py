"""Holm's correction, effect size, power, and the verdict on a difference over seeds.

Scores and differences are fractions of mAP; a seed pairs the two arms.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import nct, t

ROUNDING = 1e-12  # scores of arms that differ by a constant still differ in their last digit


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for the number of tests, in the given order (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, made monotone and cut at 1: rejecting where
    it is at most alpha keeps the chance of any false finding at alpha, however the tests depend
    on each other. ValueError for a value outside [0, 1].
    """
    for row, p in enumerate(p_values):
        if not 0 <= p <= 1:
            raise ValueError(f"p value {row} is {p}, not in [0, 1]: leave out rows without a test")
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, row in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[row]))
        adjusted[row] = floor
    return adjusted


def paired_sd(baseline: Mapping[int, float], scores: Mapping[int, float]) -> float | None:
    """Sample standard deviation (n - 1) of the differences over common seeds; None under two."""
    differences = _differences(baseline, scores)
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else None


def effect_size(baseline: Mapping[int, float], scores: Mapping[int, float]) -> float | None:
    """Mean difference over common seeds in units of its standard deviation, Hedges' g_z.

    J(n - 1) * mean / sd with the exact small-sample factor J(m) = gamma(m / 2) / (sqrt(m / 2)
    gamma((m - 1) / 2)) of Hedges 1981 (eq. 6e), on paired differences as Cohen's d_z. None under
    three common seeds (with two, J is 0: no unbiased estimate exists) and without spread.
    """
    differences = _differences(baseline, scores)
    if len(differences) < 3 or np.ptp(differences) <= ROUNDING:
        return None
    half = (len(differences) - 1) / 2
    factor = math.exp(gammaln(half) - gammaln(half - 0.5)) / math.sqrt(half)
    return float(factor * np.mean(differences) / np.std(differences, ddof=1))


def _differences(baseline: Mapping[int, float], scores: Mapping[int, float]) -> list[float]:
    return [scores[seed] - baseline[seed] for seed in sorted(baseline.keys() & scores.keys())]


def detectable_difference(
    sd: float, seeds: int, power: float = 0.8, alpha: float = 0.05, comparisons: int = 1
) -> float:
    """Smallest true mean difference that a two-sided paired t test finds with this power.

    ``sd``: standard deviation of the paired differences, in the unit of the answer. The
    noncentrality of a t with seeds - 1 degrees of freedom at which the test rejects with
    ``power``, solved numerically, times sd / sqrt(seeds). ``comparisons`` divides alpha
    (Bonferroni), which is Holm's first and hardest step: an upper bound for the others. The sd of
    few seeds is itself uncertain (of 3: by a factor of 0.5 to 6 at 95 %), and so is the answer.
    ValueError under 2 seeds and for arguments out of range.
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds}: one pair has no spread to test against, run 2 or more")
    if not sd >= 0 or comparisons < 1 or not 0 < alpha < power < 1:
        raise ValueError(
            f"sd={sd} must be >= 0, comparisons={comparisons} >= 1 and 0 < alpha={alpha} < "
            f"power={power} < 1"
        )
    critical = float(t.isf(alpha / comparisons / 2, seeds - 1))
    low, high = 0.0, 2 * critical
    while _power(high, critical, seeds) < power:
        low, high = high, 2 * high
    noncentrality = brentq(lambda shift: _power(shift, critical, seeds) - power, low, high)
    return float(noncentrality) * sd / math.sqrt(seeds)


def _power(shift: float, critical: float, seeds: int) -> float:
    """Chance that a noncentral t leaves the interval of the null hypothesis on either side."""
    # The lower tail as the upper one of the mirrored t: scipy's nct.cdf is NaN at large shifts.
    return float(nct.sf(critical, seeds - 1, shift) + nct.sf(critical, seeds - 1, -shift))


def verdict(
    difference: float,
    low: float,
    high: float,
    p_adjusted: float,
    seeds: int,
    detectable: float | None,
    alpha: float = 0.05,
) -> str:
    """What may be said of a difference to the baseline, as a fragment of a sentence.

    ``low``, ``high``: its bootstrap interval; ``p_adjusted``: after Holm's correction;
    ``detectable``: `detectable_difference` of the same seeds and table, None where unknown.
    A plain "better" or "worse" needs all three: an interval without 0, the correction, and a
    difference of at least ``detectable``. The last because resampling few seeds misses part of
    their spread: where seeds are the noise, three of them agree by chance one time in four, and
    then every resample does. ValueError for NaN, low > high and under one seed.
    """
    if not low <= high or not 0 <= p_adjusted <= 1 or math.isnan(difference) or seeds < 1:
        raise ValueError(
            f"difference={difference}, low={low} <= high={high}, p_adjusted={p_adjusted} in "
            f"[0, 1] and seeds={seeds} >= 1 are needed for a verdict"
        )
    if seeds == 1:
        return "one seed: no verdict"
    if low <= 0 <= high:
        return _nothing_seen(difference, low, high, detectable)
    better = low > 0
    if p_adjusted > alpha:
        side = "above" if better else "below"
        return f"interval {side} 0, but not after Holm's correction (p = {p_adjusted:.2g})"
    word = "better" if better else "worse"
    if detectable is not None and abs(difference) >= detectable:
        return word
    known = ""
    if detectable:
        can = f"can only detect {_points(detectable)}" if detectable < 1 else "are too few for any"
        known = f": {seeds} seeds {can}"
    return f"{word} on these {seeds} seeds, may not hold for others{known}"


def _nothing_seen(difference: float, low: float, high: float, detectable: float | None) -> str:
    # Where videos are the larger noise, the seeds alone would promise too fine an eye.
    if detectable and detectable >= 1:
        return "no difference seen (too few seeds for any)"
    if detectable and detectable >= max(abs(difference), (high - low) / 2):
        return f"no difference seen (could have seen {_points(detectable)})"
    return f"no difference seen (interval {100 * low:+.2g} to {100 * high:+.2g} points)"


def _points(fraction: float) -> str:
    points = 100 * fraction
    return f"{points:.1f} points" if points >= 0.95 else f"{points:.2g} points"
