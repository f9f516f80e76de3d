import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.evaluation.ensembling.selection import (
    error_correlation,
    fit_weights,
    marginal_gains,
    select_greedily,
)

FRAMES = {"a": 300, "b": 500, "c": 200}
NOISES = (1.0, 1.2, 1.5, 6.0)


def written(folder, scores):
    with PredictionWriter(folder, next(iter(scores.values())).shape[1]) as writer:
        for video, scores_TK in scores.items():
            writer.add(video, scores_TK, 24.0)
    return PredictionSet.open(folder)


def split(folder, prefix="", seed=0, noises=NOISES):
    """Members with errors of their own and of these sizes, and the truth."""
    rng = np.random.default_rng(seed)
    targets = {prefix + v: rng.random((n, 4)) < 0.2 for v, n in FRAMES.items()}
    members = [
        written(
            folder / f"{prefix}{i}",
            {
                v: 1 / (1 + np.exp(1 - t - noise * rng.normal(size=t.shape)))
                for v, t in targets.items()
            },
        )
        for i, noise in enumerate(noises)
    ]
    return members, targets


def flat(scores):
    return np.concatenate([scores[video] for video in scores]).astype(np.float64)


def macro_ap(scores, targets):
    """scikit-learn's, of scores rounded as they are stored."""
    return average_precision_score(flat(targets), scores.astype(np.float16), average="macro")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return split(tmp_path_factory.mktemp("held_out"))


def mean_map(held_out, weights):
    members, targets = held_out
    mean = np.average([flat(m) for m in members], axis=0, weights=weights)
    return macro_ap(mean, targets)


def test_fitted_weights_beat_equal_ones_and_every_member(held_out):
    fit = fit_weights(*held_out)
    assert min(fit.weights) >= 0 and sum(fit.weights) == pytest.approx(1)
    assert fit.score == pytest.approx(mean_map(held_out, fit.weights), abs=1e-4)
    assert fit.score >= mean_map(held_out, [1] * 4) + 1e-3
    assert fit.score >= max(macro_ap(flat(m), held_out[1]) for m in held_out[0])
    assert fit.weights[3] < min(fit.weights[:3])  # noise of 6 is worth nothing


def test_fitted_weights_are_near_the_best_of_a_grid(held_out):
    members, targets = held_out
    pair = members[:2], targets
    fit = fit_weights(*pair)
    grid = [mean_map(pair, [w, 1 - w]) for w in np.linspace(0, 1, 41)]
    assert fit.score >= max(grid) - 5e-4


def test_a_member_that_knows_it_all_gets_all_weight(tmp_path, held_out):
    members, targets = held_out
    oracle = written(tmp_path / "oracle", {v: t.astype(float) for v, t in targets.items()})
    wrong = written(tmp_path / "wrong", {v: 1.0 - t for v, t in targets.items()})
    for fit in (fit_weights, select_greedily):
        found = fit([wrong, members[3], oracle], targets)
        assert found.weights == (0, 0, 1) and found.score == 1


def test_greedy_selection_by_hand(held_out):
    """Each step against all sums of one more member, by scikit-learn."""
    members, targets = held_out
    scores, chosen, best = [flat(m) for m in members], [], 0.0
    fit = select_greedily(members, targets)
    for step, member in enumerate(fit.chosen):
        tried = [
            macro_ap(np.mean([scores[i] for i in [*chosen, other]], axis=0), targets)
            for other in range(len(members))
        ]
        assert tried[member] >= max(tried) - 1e-6, f"step {step}"
        assert tried[member] > best
        chosen, best = [*chosen, member], tried[member]
    assert fit.score == pytest.approx(best, abs=1e-6)
    assert fit.weights == tuple(chosen.count(i) / len(chosen) for i in range(4))
    more = [macro_ap(np.mean([scores[i] for i in [*chosen, o]], axis=0), targets) for o in range(4)]
    assert max(more) <= best + 1.1e-5


def test_greedy_stops_at_the_rounds_it_is_given(held_out):
    assert len(select_greedily(*held_out, rounds=2).chosen) == 2


def test_equal_members_go_to_the_earlier(tmp_path, held_out):
    members, targets = held_out
    copy = written(tmp_path / "copy", dict(members[0]))
    assert select_greedily([copy, members[0], members[3]], targets).chosen[0] == 0
    assert fit_weights([copy, members[0]], targets).weights == (0.5, 0.5)


@pytest.mark.parametrize("method", ["mean_probability", "mean_logit", "rank_mean"])
@pytest.mark.parametrize("find", [fit_weights, select_greedily])
def test_fits_repeat_and_carry_over_to_unseen_videos(tmp_path, find, method):
    held_out, (members, targets) = split(tmp_path), split(tmp_path, "test-", seed=1)
    fit = find(*held_out, method)
    assert fit == find(*held_out, method)
    found = fit.apply(members, tmp_path / "out")
    single = max(dense_map(m, targets).value for m in members)
    assert dense_map(found, targets).value > single + 0.01


def test_what_was_fitted_is_never_reported(tmp_path, held_out):
    members, targets = held_out
    fit = fit_weights(members, targets)
    with pytest.raises(ValueError, match=r"3 of 3 videos were fitted \(a, b, c\)"):
        fit.apply(members, tmp_path / "out")
    others, _ = split(tmp_path, "test-", seed=1)
    mixed = [written(tmp_path / f"m{i}", {**o, "a": m["a"]}) for i, (o, m) in
             enumerate(zip(others, members, strict=True))]  # fmt: skip
    with pytest.raises(ValueError, match=r"1 of 4 videos were fitted \(a\)"):
        fit.apply(mixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.2, 0.1)])
def test_marginal_gains_by_hand(held_out, weights):
    members, targets = held_out
    method = "mean_probability" if weights is None else "weighted"
    gains = marginal_gains(members, targets, method, weights)
    scores = [flat(m) for m in members]
    alone = [macro_ap(s, targets) for s in scores]
    best = int(np.argmax(alone))
    shares = np.array(weights or [0.25] * 4)
    whole = macro_ap(np.average(scores, axis=0, weights=shares), targets)
    for i, gain in enumerate(gains):
        rest = macro_ap(np.average(scores, axis=0, weights=shares * (np.arange(4) != i)), targets)
        beside = macro_ap((scores[i] + scores[best]) / 2, targets)
        assert gain.single == pytest.approx(alone[i], abs=1e-9)
        assert gain.leave_one_out == pytest.approx(whole - rest, abs=2e-4)
        assert gain.added_to_best == pytest.approx(beside - alone[best], abs=2e-4)
    assert gains[best].added_to_best == 0


def test_the_only_member_has_nothing_to_be_left_out_of(held_out):
    members, targets = held_out
    (gain,) = marginal_gains(members[:1], targets)
    assert gain.leave_one_out is None and gain.added_to_best == 0
    dropped = marginal_gains(members[:2], targets, "weighted", (1.0, 0.0))
    assert [gain.leave_one_out for gain in dropped] == [None, 0]


def test_error_correlation_is_that_of_numpy(held_out):
    members, targets = held_out
    found = error_correlation(members, targets)
    residuals = [(flat(m) - flat(targets)).ravel() for m in members]
    assert found == pytest.approx(np.corrcoef(residuals), abs=1e-9)


def test_errors_that_are_shared_show(tmp_path, held_out):
    members, targets = held_out
    copy = written(tmp_path / "copy", dict(members[0]))
    opposite = written(
        tmp_path / "opposite", {v: 2 * t - members[0][v] for v, t in targets.items()}
    )
    found = error_correlation([members[0], copy, opposite], targets)
    assert found[0] == pytest.approx([1, 1, -1], abs=1e-3)


def test_a_constant_error_has_no_correlation(tmp_path, held_out):
    members, targets = held_out
    oracle = written(tmp_path / "oracle", {v: t.astype(float) for v, t in targets.items()})
    found = error_correlation([members[0], oracle], targets)
    assert np.isnan(found[0, 1]) and found[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("judge", [fit_weights, select_greedily, marginal_gains, error_correlation])
def test_what_does_not_fit_is_named(tmp_path, held_out, judge):
    members, targets = held_out
    with pytest.raises(ValueError, match="video 'b': targets None"):
        judge(members, {v: t for v, t in targets.items() if v != "b"})
    with pytest.raises(ValueError, match=r"video 'a': targets \(300, 4\)"):
        judge([written(tmp_path / "short", {"a": members[0]["a"][:-1]})], targets)
    broken = written(tmp_path / "broken", dict(members[1]))
    content = bytearray((tmp_path / "broken" / "0.f16").read_bytes())
    content[7] ^= 1
    (tmp_path / "broken" / "0.f16").write_bytes(content)
    with pytest.raises(ValueError, match="its checksum"):
        judge([members[0], broken], targets)
    none = {v: np.zeros_like(t) for v, t in targets.items()}
    if judge is not error_correlation:
        with pytest.raises(ValueError, match="no class has a positive"):
            judge(members, none)


def test_the_best_pair_is_found_among_all(held_out):
    """Greedy of two rounds starts at the best single, which here belongs to the best pair."""
    members, targets = held_out
    chosen = set(select_greedily(members, targets, rounds=2).chosen)
    scores = [flat(m) for m in members]
    pairs = {p: macro_ap((scores[p[0]] + scores[p[1]]) / 2, targets)
             for p in itertools.combinations(range(4), 2)}  # fmt: skip
    assert chosen == set(max(pairs, key=lambda p: pairs[p]))
