import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ssdet.evaluation import HistogramAP, average_precision


def by_hand(scores, targets):
    """Precision at each hit of a ranking that keeps the order of equal scores."""
    hits, precisions = 0, []
    rows = sorted(range(len(scores)), key=lambda row: -scores[row])
    for rank, row in enumerate(rows, 1):
        if targets[row]:
            hits += 1
            precisions.append(hits / rank)
    return sum(precisions) / len(precisions) if precisions else float("nan")


def columns(function, scores_NK, targets_NK):
    return [function(s, t) for s, t in zip(scores_NK.T, targets_NK.T, strict=True)]


def sklearn(scores, targets):
    return average_precision_score(targets, scores)


def sample(rows=500, classes=20, levels=None, seed=0):
    rng = np.random.default_rng(seed)
    scores_NK = rng.normal(size=(rows, classes))
    if levels:
        scores_NK = np.round(scores_NK * levels) / levels
    targets_NK = rng.random((rows, classes)) < 0.2
    targets_NK[0] = True
    return scores_NK, targets_NK


def test_a_ranking_worked_out_on_paper():
    # Falling: hit, miss, hit, miss -> (1/1 + 2/3) / 2.
    ap_K = average_precision(np.array([[4.0], [3], [2], [1]]), np.array([[1], [0], [1], [0]]))
    assert ap_K.dtype == np.float64 and ap_K.tolist() == [pytest.approx((1 + 2 / 3) / 2)]


def test_reference_values(golden):
    toy = golden("stats_a1g")
    ap_K = average_precision(toy["scores"], toy["labels"])
    assert np.allclose([ap_K.mean(), *ap_K], toy["ap_all"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("levels", [None, 2])
def test_both_rules_on_every_type(dtype, levels):
    scores_NK, targets_NK = sample(levels=levels)
    scores_NK = (scores_NK * 4).astype(dtype)
    stable = average_precision(scores_NK, targets_NK)
    shared = average_precision(scores_NK, targets_NK, ties="sklearn")
    assert np.allclose(stable, columns(by_hand, scores_NK, targets_NK), rtol=0, atol=1e-12)
    assert np.allclose(shared, columns(sklearn, scores_NK, targets_NK), rtol=0, atol=1e-12)


EDGES = [0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 1.5, 65504.0, -65504.0, -np.inf, 1e-3, 1.0009765625]


@given(st.lists(st.tuples(st.sampled_from(EDGES), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_signed_zeros_subnormals_and_minus_infinity(rows):
    scores_N1 = np.array([[score] for score, _ in rows])
    targets_N1 = np.array([[hit] for _, hit in rows])
    finite_N = np.maximum(scores_N1[:, 0], -1e6)  # scikit-learn refuses infinities
    expected = by_hand(scores_N1[:, 0], targets_N1[:, 0])
    shared = sklearn(finite_N, targets_N1[:, 0]) if targets_N1.any() else np.nan
    for dtype in (np.float16, np.float32, np.float64):
        typed = scores_N1.astype(dtype)
        assert average_precision(typed, targets_N1)[0] == pytest.approx(expected, nan_ok=True)
        got = average_precision(typed, targets_N1, ties="sklearn")[0]
        assert got == pytest.approx(shared, nan_ok=True)
    histogram = HistogramAP(1)
    histogram.add(scores_N1.astype(np.float16), targets_N1)
    assert histogram.average_precision()[0] == pytest.approx(shared, nan_ok=True)


def test_constant_scores_give_the_prevalence_or_follow_the_rows():
    targets_N1 = np.array([[0], [1], [0], [1]])
    assert average_precision(np.ones((4, 1)), targets_N1, ties="sklearn")[0] == 0.5
    assert average_precision(np.ones((4, 1)), targets_N1)[0] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_rows_at_minus_infinity_rank_last_but_count():
    scores_N1 = np.array([[-np.inf], [0.5], [-np.inf]], np.float32)
    assert average_precision(scores_N1, np.array([[1], [1], [0]]))[0] == 1.0
    assert average_precision(scores_N1, np.array([[0], [1], [1]]))[0] == pytest.approx(5 / 6)


def test_a_class_without_a_positive_is_nan_and_no_row_is_allowed():
    ap_K = average_precision(np.ones((3, 2)), np.array([[1, 0]] * 3))
    assert ap_K[0] == 1 and np.isnan(ap_K[1])
    assert np.isnan(average_precision(np.empty((0, 4)), np.empty((0, 4)))).all()


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_kinds_of_targets_and_tensors_agree(kind):
    scores_NK, targets_NK = sample(50, 3)
    expected = average_precision(scores_NK, targets_NK)
    assert np.array_equal(average_precision(scores_NK, targets_NK.astype(kind)), expected)
    tensor = torch.tensor(scores_NK, requires_grad=True)
    got = average_precision(tensor, torch.tensor(targets_NK.astype(kind)))
    assert isinstance(got, np.ndarray) and np.array_equal(got, expected)


def test_bfloat16_counts_as_the_values_it_holds():
    scores_NK, targets_NK = sample(80, 2)
    rounded = torch.tensor(scores_NK).bfloat16()
    assert np.array_equal(
        average_precision(rounded, targets_NK), average_precision(rounded.double(), targets_NK)
    )


def test_inputs_stay_as_they_were_whatever_their_layout():
    scores_NK, targets_NK = sample(60, 33)
    kept = scores_NK.copy()
    ap_K = average_precision(np.asfortranarray(scores_NK), targets_NK[:, ::-1][:, ::-1])
    assert np.array_equal(ap_K, average_precision(scores_NK, targets_NK))
    assert np.array_equal(scores_NK, kept)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_is_refused_by_class_and_row(dtype):
    scores_NK, targets_NK = sample(30, 20)
    scores_NK[7, 18] = np.nan
    with pytest.raises(ValueError, match="class 18 in row 7 is NaN"):
        average_precision(scores_NK.astype(dtype), targets_NK)


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, np.nan])
def test_targets_other_than_zero_and_one_are_refused(value):
    scores_NK, targets_NK = sample(30, 4)
    soft_NK = targets_NK.astype(float)
    soft_NK[5, 2] = value
    with pytest.raises(ValueError, match="class 2 in row 5"):
        average_precision(scores_NK, soft_NK)


@pytest.mark.parametrize("shape", [(5, 3), (4, 2), (5,), (5, 2, 1)])
def test_shapes_that_differ_are_refused(shape):
    with pytest.raises(ValueError, match=r"must both be \[frames, classes\]"):
        average_precision(np.zeros((5, 2)), np.zeros(shape))


def test_unknown_rule_for_ties():
    with pytest.raises(ValueError, match="stable, sklearn"):
        average_precision(np.zeros((1, 1)), np.zeros((1, 1)), ties="random")


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_histogram_equals_scikit_learn_in_any_chunking_and_merge(offset):
    scores_NK, targets_NK = sample(5000, 7, levels=20)
    scores_NK = (scores_NK - offset).astype(np.float16)
    parts = [HistogramAP(7) for _ in range(3)]
    for first in range(0, 5000, 617):
        rows = slice(first, first + 617)
        parts[first % 3].add(scores_NK[rows], targets_NK[rows])
    for other in parts[1:]:
        parts[0].merge(other)
    expected = columns(sklearn, scores_NK.astype(float), targets_NK)
    assert parts[0].frames == 5000
    assert np.allclose(parts[0].average_precision(), expected, rtol=0, atol=1e-12)


def test_histogram_takes_blocks_longer_than_its_own_and_tensors():
    scores_NK, targets_NK = sample(4999, 3)
    half = torch.tensor(scores_NK).half()
    histogram = HistogramAP(3)
    histogram.add(half, torch.tensor(targets_NK))
    expected = columns(sklearn, half.double().numpy(), targets_NK)
    assert np.allclose(histogram.average_precision(), expected, rtol=0, atol=1e-12)


def test_histogram_of_nothing_and_of_a_class_without_a_positive():
    histogram = HistogramAP(2)
    assert np.isnan(histogram.average_precision()).all()
    histogram.add(np.ones((3, 2), np.float16), np.array([[0, 1]] * 3))
    assert np.isnan(histogram.average_precision()[0]) and histogram.average_precision()[1] == 1


def test_histogram_refuses_what_it_cannot_count():
    histogram = HistogramAP(2)
    with pytest.raises(ValueError, match="float32 scores"):
        histogram.add(np.zeros((3, 2), np.float32), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="5 classes, expected float16 of 2"):
        histogram.add(np.zeros((3, 5), np.float16), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="NaN"):
        histogram.add(np.full((3, 2), np.nan, np.float16), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="3 classes into 2"):
        histogram.merge(HistogramAP(3))
    histogram.frames = 2**31 - 2
    with pytest.raises(OverflowError, match="32-bit"):
        histogram.add(np.zeros((3, 2), np.float16), np.zeros((3, 2)))
