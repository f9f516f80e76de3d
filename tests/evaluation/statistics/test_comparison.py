from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from ssdet.evaluation import detectable_difference, effect_size, holm, paired_sd, verdict


def arms(differences, start=0.4):
    baseline = {seed: start + 0.01 * seed for seed in range(len(differences))}
    return baseline, {seed: baseline[seed] + d for seed, d in enumerate(differences)}


def test_holm_by_hand():
    # Sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1] and holm([0.03]) == [0.03] and holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_stepwise_rule_rejects(p_values, alpha):
    rejected, left = set(), sorted(range(len(p_values)), key=lambda row: p_values[row])
    while left and p_values[left[0]] * len(left) <= alpha:
        rejected.add(left.pop(0))
    assert {row for row, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_holm_takes_no_missing_test(bad):
    with pytest.raises(ValueError, match="p value 1 is"):
        holm([0.2, bad])


def test_effect_size_by_hand():
    # Mean 2, deviation 1; J(2) = gamma(1) / gamma(1/2) = 1 / sqrt(pi).
    assert effect_size(*arms([0.01, 0.02, 0.03])) == pytest.approx(2 / np.sqrt(np.pi))
    many = np.random.default_rng(0).normal(0.01, 0.02, 11)  # tables: J(10) = 0.9227
    assert effect_size(*arms(many)) == pytest.approx(
        0.9227 * many.mean() / many.std(ddof=1), rel=1e-4
    )


def test_effect_size_is_unbiased_for_three_seeds():
    rng = np.random.default_rng(1)
    sizes = [effect_size(*arms(rng.normal(0.01, 0.01, 4))) for _ in range(4000)]
    assert np.mean(sizes) == pytest.approx(1, abs=0.06)  # uncorrected: 1.38


def test_where_an_effect_size_or_a_deviation_does_not_exist():
    assert effect_size(*arms([0.01, 0.03])) is None
    assert effect_size(*arms([0.1, 0.1, 0.1])) is None  # differ in the last digit only
    assert paired_sd(*arms([0.1])) is None and paired_sd({0: 0.3}, {1: 0.4}) is None
    assert paired_sd(*arms([0.01, 0.03])) == pytest.approx(0.02 / np.sqrt(2))


def test_only_common_seeds_count():
    baseline, scores = arms([0.01, 0.02, 0.03])
    extra = {**scores, 7: 0.9}
    assert effect_size(baseline, extra) == effect_size(baseline, scores)
    assert paired_sd(baseline, extra) == pytest.approx(0.01)


@pytest.mark.parametrize(("size", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_pairs_needed_as_in_the_tables_of_power(size, pairs):
    """G*Power, two dependent means, two-sided 0.05, power 0.8."""
    assert detectable_difference(1, pairs) <= size < detectable_difference(1, pairs - 1)


@pytest.mark.parametrize(("seeds", "power", "comparisons"), [(2, 0.8, 1), (3, 0.8, 6), (5, 0.5, 3)])
def test_simulated_seeds_are_found_as_often_as_stated(seeds, power, comparisons):
    rng = np.random.default_rng(seeds)
    shift = detectable_difference(0.02, seeds, power, comparisons=comparisons)
    pairs = rng.normal(shift, 0.02, (20_000, seeds))
    p_values = ttest_rel(pairs, np.zeros_like(pairs), axis=1).pvalue
    assert np.mean(p_values < 0.05 / comparisons) == pytest.approx(power, abs=0.012)


def test_more_seeds_less_noise_and_fewer_rows_see_smaller_differences():
    assert detectable_difference(0.02, 5) < detectable_difference(0.02, 3)
    assert detectable_difference(0.02, 3) < detectable_difference(0.02, 3, comparisons=10)
    assert detectable_difference(0.04, 3) == pytest.approx(2 * detectable_difference(0.02, 3))
    assert detectable_difference(0.0, 3) == 0
    extremes = [detectable_difference(1, 2, 0.99, comparisons=k) for k in (1, 30, 200)]
    assert np.isfinite(extremes).all() and sorted(extremes) == extremes


def test_what_has_no_detectable_difference():
    with pytest.raises(ValueError, match="seeds=1.*run 2 or more"):
        detectable_difference(0.02, 1)
    bad = ({"sd": -1.0}, {"sd": float("nan")}, {"power": 1.0}, {"power": 0.01}, {"comparisons": 0})
    for change in bad:
        with pytest.raises(ValueError, match="must be"):
            detectable_difference(**({"sd": 0.02, "seeds": 3} | change))


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "seeds", "detectable", "words"),
    [
        (0.05, 0.02, 0.08, 0.01, 5, 0.031, "better"),
        (-0.05, -0.08, -0.02, 0.01, 5, 0.031, "worse"),
        (0.05, 0.02, 0.08, 0.01, 1, None, "one seed: no verdict"),
        (0.01, -0.01, 0.03, 0.4, 5, 0.031, "no difference seen (could have seen 3.1 points)"),
        (0.01, -0.01, 0.03, 0.4, 5, None, "no difference seen (interval -1 to +3 points)"),
        # Seeds agree, videos do not: the noise of seeds alone would promise too much.
        (0.04, -0.02, 0.1, 0.4, 5, 0.01, "no difference seen (interval -2 to +10 points)"),
        (0.03, 0.01, 0.05, 0.08, 5, 0.02,
         "interval above 0, but not after Holm's correction (p = 0.08)"),
        (-0.03, -0.05, -0.01, 0.08, 5, 0.02,
         "interval below 0, but not after Holm's correction (p = 0.08)"),
        (0.02, 0.01, 0.03, 0.01, 3, 0.031,
         "better on these 3 seeds, may not hold for others: 3 seeds can only detect 3.1 points"),
        (-0.02, -0.03, -0.01, 0.01, 3, None, "worse on these 3 seeds, may not hold for others"),
        (0.0, 0.0, 0.0, 1.0, 3, 0.0, "no difference seen (interval +0 to +0 points)"),
    ],
)  # fmt: skip
def test_the_words(difference, low, high, p, seeds, detectable, words):
    assert verdict(difference, low, high, p, seeds, detectable) == words


def test_chance_agreement_of_three_seeds_is_no_finding():
    """Where seeds are all the noise, resampling three of them excludes 0 far too often."""
    rng, combinations = np.random.default_rng(0), np.array(list(product(range(3), repeat=3)))
    words, excluded = [], 0
    for _ in range(300):
        d = rng.normal(0, 0.02, 3)
        drawn = d[combinations].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        p = min(1, 2 * min(np.mean(drawn <= 0), np.mean(drawn >= 0)))
        excluded += not low <= 0 <= high
        able = detectable_difference(np.std(d, ddof=1), 3)
        words.append(verdict(d.mean(), low, high, p, 3, able))
    assert excluded > 50
    assert sum(w in ("better", "worse") for w in words) <= 15
    assert sum(w.startswith(("better on", "worse on")) for w in words) > 40


@pytest.mark.parametrize(
    "change", [{"difference": float("nan")}, {"low": 0.2}, {"p_adjusted": float("nan")},
               {"seeds": 0}],
)  # fmt: skip
def test_no_verdict_on_broken_numbers(change):
    given = {"difference": 0.01, "low": 0.0, "high": 0.02, "p_adjusted": 0.5, "seeds": 3}
    with pytest.raises(ValueError, match="needed for a verdict"):
        verdict(**(given | change), detectable=None)


def test_a_difference_beyond_all_scores_is_not_promised() -> None:
    """Two seeds and six rows: a t test with one degree of freedom detects 357 points of 100."""
    said = verdict(-0.3, -0.37, -0.26, 0.012, 2, 3.569)
    assert said == "worse on these 2 seeds, may not hold for others: 2 seeds are too few for any"
    assert verdict(0.01, -0.01, 0.05, 0.6, 2, 1.4) == "no difference seen (too few seeds for any)"
