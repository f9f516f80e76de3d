import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssdet.evaluation import dense_map, mean_and_sd, paired_bootstrap
from ssdet.evaluation.statistics import bootstrap as significance


def arms(videos=12, frames=15, classes=4, gains=(1.0, 1.3), seeds=1, rate=0.2, seed=0):
    rng = np.random.default_rng(seed)
    targets = {f"v{i}": rng.random((frames, classes)) < rate for i in range(videos)}
    return [
        [
            {
                v: (gain * t + rng.normal(size=t.shape)).astype(np.float32)
                for v, t in targets.items()
            }
            for _ in range(seeds)
        ]
        for gain in gains
    ], targets


def slow_map(scores, targets, videos):
    """mAP after concatenating the drawn videos, repeats and all, by scikit-learn."""
    rows, hits = (np.concatenate([part[v] for v in videos]) for part in (scores, targets))
    positive = hits.any(axis=0)
    pairs = zip(hits.T[positive], rows.T[positive], strict=True)
    return np.mean([average_precision_score(t, s) for t, s in pairs])


def slow_differences(seeds_a, seeds_b, targets, resamples, seed):
    generator = torch.Generator().manual_seed(seed)
    names = list(targets)
    drawn_RV = torch.randint(len(names), (resamples, len(names)), generator=generator)
    seeds_RS = torch.randint(len(seeds_a), (resamples, len(seeds_a)), generator=generator)
    for drawn_V, seeds_S in zip(drawn_RV.tolist(), seeds_RS.tolist(), strict=True):
        videos = [names[i] for i in drawn_V]
        yield np.mean(
            [
                slow_map(seeds_b[s], targets, videos) - slow_map(seeds_a[s], targets, videos)
                for s in seeds_S
            ]
        )


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("digits", [8, 0])
def test_equal_to_concatenating_the_drawn_videos(seeds, digits):
    (seeds_a, seeds_b), targets = arms(seeds=seeds)
    seeds_a = [{v: s.round(digits) for v, s in scores.items()} for scores in seeds_a]
    result = paired_bootstrap(
        seeds_a, seeds_b, targets, resamples=80, generator=torch.Generator().manual_seed(5)
    )
    drawn = np.array(list(slow_differences(seeds_a, seeds_b, targets, 80, 5)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert result.low == pytest.approx(low, abs=1e-6)
    assert result.high == pytest.approx(high, abs=1e-6)
    expected = 2 * (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / 81
    assert result.p_value == pytest.approx(min(1, expected))


def test_the_difference_is_that_of_the_protocol_averaged_over_seeds():
    (seeds_a, seeds_b), targets = arms(seeds=2)
    result = paired_bootstrap(seeds_a, seeds_b, targets, resamples=10)
    values = [[dense_map(s, targets).value for s in seeds] for seeds in (seeds_a, seeds_b)]
    assert result.difference == pytest.approx(np.mean(values[1]) - np.mean(values[0]), abs=1e-6)


def test_classes_whose_positives_vanish_leave_both_arms():
    ((a,), (b,)), targets = arms(videos=6)
    for i, hits_TK in enumerate(targets.values()):
        hits_TK[:, 0] = False
        hits_TK[:, 1] &= i == 0
    result = paired_bootstrap(a, b, targets, 60, torch.Generator().manual_seed(2))
    drawn = list(slow_differences([a], [b], targets, 60, 2))
    assert result.low == pytest.approx(np.quantile(drawn, 0.025), abs=1e-6)


@pytest.mark.parametrize("clustered", [False, True])
def test_as_many_distinct_positives_as_at_the_size_of_charades(clustered):
    ((a,), (b,)), targets = arms(videos=30, frames=3000, classes=1, rate=0.3, gains=(0.6, 0.7))
    if clustered:  # neighbours in the ranking come from one video
        for i, video in enumerate(targets):
            b[video] = b[video] * 0.05 + i % 7
    result = paired_bootstrap(a, b, targets, 12, torch.Generator().manual_seed(3))
    drawn = list(slow_differences([a], [b], targets, 12, 3))
    whole = slow_map(b, targets, targets) - slow_map(a, targets, targets)
    assert result.difference == pytest.approx(whole, abs=result.error_bound)
    assert result.low == pytest.approx(np.quantile(drawn, 0.025), abs=result.error_bound)
    assert result.high == pytest.approx(np.quantile(drawn, 0.975), abs=result.error_bound)


def squeezed(scores, values):
    """The same ranking on few values, on one, or on neighbours that differ in the last bit."""
    if values == "one":
        return np.full_like(scores, 0.5)
    if values == "neighbours":
        return (np.float32(0.5) + np.floor(scores * 1e4) * np.float32(2**-24)).astype(np.float32)
    if values == "half":
        return (1 / (1 + np.exp(6 - scores))).astype(np.float16)
    return np.floor(scores).clip(0, 2)


@pytest.mark.parametrize("values", ["one", "few", "half", "neighbours"])
@pytest.mark.parametrize("counts", [10, None], ids=["float64", "float32"])
def test_every_resample_is_within_the_stated_bound(values, counts, monkeypatch):
    """One resample at a time, on ties, on all frames at one score and on the least of gaps."""
    if counts:
        monkeypatch.setattr(significance, "EXACT_COUNTS", counts)
    ((a,), (b,)), targets = arms(videos=9, frames=700, classes=2, gains=(0.3, 0.9))
    b = {v: squeezed(s, values) for v, s in b.items()}
    for seed in range(6):
        result = paired_bootstrap(a, b, targets, 1, torch.Generator().manual_seed(seed))
        (drawn,) = slow_differences([a], [b], targets, 1, seed)
        assert result.error_bound <= 1e-6
        assert result.low == result.high == pytest.approx(drawn, abs=result.error_bound)


def test_positives_ranked_last_count_every_frame():
    """An average precision by hand: the positives are the last k of n, one of them tied."""
    n, k = 5000, 2000
    targets = {"u": np.arange(n + 1)[:, None] >= n + 1 - k}
    targets["u"][n] = False
    scores = {"u": np.append(np.linspace(1, 0, n), 0)[:, None]}  # the last two frames score 0
    perfect = {"u": targets["u"].astype(np.float32)}
    hits, ranks = np.arange(1, k), np.arange(n - k + 2, n + 1)
    ranks[-1] += 1  # of a tie, the end counts
    expected = (hits / ranks).mean() - 1
    result = paired_bootstrap(perfect, scores, targets, 3)
    assert result.difference == pytest.approx(expected, abs=result.error_bound)
    assert result.low == result.high == result.difference  # one video, drawn every time


def test_equal_arms_differ_by_nothing():
    ((a, _), _), targets = arms(seeds=2)
    result = paired_bootstrap(a, a, targets, resamples=50)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_a_clear_gain_is_significant_and_reverses_with_the_arms():
    ((a,), (b,)), targets = arms(videos=30, gains=(0.0, 3.0))
    gain, loss = paired_bootstrap(a, b, targets), paired_bootstrap(b, a, targets)
    assert gain.low > 0 and gain.p_value == pytest.approx(2 / 1001)
    assert loss.difference == -gain.difference
    assert loss.low == pytest.approx(-gain.high) and loss.p_value == gain.p_value


def test_chance_differences_are_called_significant_as_often_as_stated():
    calls = []
    for seed in range(60):
        ((a,), (b,)), targets = arms(videos=25, gains=(1, 1), rate=0.3, seed=seed)
        calls.append(paired_bootstrap(a, b, targets, resamples=200).p_value < 0.05)
    assert sum(calls) <= 9  # 3 expected; 10 or more has a probability below 0.001


def test_the_generator_decides_and_the_default_is_fixed():
    ((a,), (b,)), targets = arms()
    runs = [paired_bootstrap(a, b, targets, 50) for _ in range(2)]
    other = paired_bootstrap(a, b, targets, 50, torch.Generator().manual_seed(1))
    assert runs[0] == runs[1] and runs[0].low != other.low
    torch.manual_seed(99)
    assert paired_bootstrap(a, b, targets, 50) == runs[0]


def test_threads_change_nothing_and_are_given_back():
    ((a,), (b,)), targets = arms(classes=20)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(paired_bootstrap(a, b, targets, 70))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_a_wider_confidence_gives_a_wider_interval():
    ((a,), (b,)), targets = arms()
    narrow, wide = (paired_bootstrap(a, b, targets, confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high and wide.confidence == 0.99


def test_half_precision_and_mappings_in_another_order():
    ((a,), (b,)), targets = arms()
    half = [{v: torch.tensor(s[v]).half() for v in reversed(s)} for s in (a, b)]
    widened = [{v: s[v].double().numpy() for v in targets} for s in half]
    assert paired_bootstrap(*half, targets, 40) == paired_bootstrap(*widened, targets, 40)


def test_what_cannot_be_compared_is_named():
    ((a,), (b,)), targets = arms()
    short = {v: s for v, s in b.items() if v != "v3"}
    with pytest.raises(ValueError, match=r"scores_b, seed 0: 1 videos .*\(v3\)"):
        paired_bootstrap(a, short, targets)
    with pytest.raises(ValueError, match=r"scores_a, seed 1: .*\(extra\)"):
        paired_bootstrap([a, a | {"extra": a["v0"]}], [b, b], targets)
    with pytest.raises(ValueError, match="2 seeds of one arm and 1 of the other"):
        paired_bootstrap([a, a], [b], targets)
    with pytest.raises(ValueError, match=r"'v2'.*\(14, 4\)"):
        paired_bootstrap(a, b | {"v2": b["v2"][1:]}, targets)
    with pytest.raises(ValueError, match="no video"):
        paired_bootstrap({}, {}, {})
    with pytest.raises(ValueError, match="resamples=0"):
        paired_bootstrap(a, b, targets, resamples=0)


def test_too_few_videos_with_positives():
    ((a,), (b,)), targets = arms(videos=4)
    for video in ("v1", "v2", "v3"):
        targets[video][:] = False
    with pytest.raises(ValueError, match="too few videos"):
        paired_bootstrap(a, b, targets)


def test_mean_and_sd():
    assert mean_and_sd([1.0, 2.0, 4.0]) == (
        pytest.approx(7 / 3),
        pytest.approx(np.sqrt((16 + 1 + 25) / 9 / 2)),
    )
    assert mean_and_sd([0.25]) == (0.25, None)
    with pytest.raises(ValueError, match="no value"):
        mean_and_sd([])
