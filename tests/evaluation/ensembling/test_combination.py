import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.evaluation.ensembling.alignment import ROW_BLOCK, Alignment, align
from ssdet.evaluation.ensembling.combination import Combiner, combine, mean_probability

EQUAL = ("mean_probability", "mean_logit", "rank_mean")


def member(folder, frames, classes=3, seed=0, fps=24.0):
    rng = np.random.default_rng(seed)
    return written(folder, {v: rng.random((count, classes)) for v, count in frames.items()}, fps)


def written(folder, scores, fps=24.0):
    with PredictionWriter(folder, next(iter(scores.values())).shape[1]) as writer:
        for video, scores_TK in scores.items():
            writer.add(video, scores_TK, fps)
    return PredictionSet.open(folder)


def stacked(scores):
    return np.concatenate([scores[video] for video in FRAMES]).astype(np.float64)


FRAMES = {"a": 5, "b": 5000, "c": 1}


def test_mean_of_the_members_whatever_their_order(tmp_path):
    members = [
        member(tmp_path / str(i), dict(reversed(FRAMES.items())) if i % 2 else FRAMES, seed=i)
        for i in range(5)
    ]
    ensemble = mean_probability(members, tmp_path / "mean")
    assert ensemble.videos == members[0].videos
    for video in FRAMES:
        expected = np.mean([m[video].astype(np.float64) for m in members], axis=0)
        assert ensemble.fps(video) == 24
        assert np.abs(ensemble[video] - expected).max() <= 2**-12  # half a step of float16


def test_the_mean_is_a_float32_sum_in_the_order_of_folders_then_divided(tmp_path):
    """Bit for bit, since finished ensemble stages rest on it."""
    rng = np.random.default_rng(0)
    spread = [{"a": rng.random((900, 3)) ** rng.integers(1, 30, (900, 3))} for _ in range(4)]
    members = [written(tmp_path / str(i), scores) for i, scores in enumerate(spread)]
    total = np.float32(0)
    for one in members:
        total = total + one["a"].astype(np.float32)
    expected = (total / np.float32(4)).astype(np.float16)
    assert np.array_equal(mean_probability(members, tmp_path / "mean")["a"], expected)
    assert np.array_equal(combine(members[::-1], tmp_path / "same")["a"], expected)


@pytest.mark.parametrize("method", EQUAL)
def test_order_of_members_changes_no_bit(tmp_path, method):
    # Sums of these in float32 depend on their order, and round to different float16.
    tops = [1.0, 2.0**-11, 2.0**-24, 2.0**-24]
    rng = np.random.default_rng(1)
    members = [
        written(tmp_path / str(i), {"a": np.vstack([np.full((1, 3), top), rng.random((300, 3))])})
        for i, top in enumerate(tops)
    ]
    one = combine(members, tmp_path / "one", method)
    for turn in ([3, 2, 1, 0], [2, 0, 3, 1]):
        other = combine([members[i] for i in turn], tmp_path / f"{turn}", method)
        assert np.array_equal(one["a"], other["a"])


def test_order_of_weighted_members_changes_no_bit(tmp_path):
    members = [member(tmp_path / str(i), FRAMES, seed=i) for i in range(3)]
    weights = [0.2, 0.5, 0.3]
    one = combine(members, tmp_path / "one", "weighted", weights)
    other = combine(members[::-1], tmp_path / "other", "weighted", weights[::-1])
    assert all(np.array_equal(one[video], other[video]) for video in FRAMES)


@pytest.mark.parametrize("method", EQUAL[:2])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_member_with_itself_is_itself(tmp_path, method, copies):
    every = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # every float16 from 0 to 1
    single = written(tmp_path / "a", {"a": every[:, None]})
    ensemble = combine([single] * copies, tmp_path / "mean", method)
    assert np.array_equal(ensemble["a"], single["a"])


def test_a_duplicate_changes_no_mean(tmp_path):
    members = [member(tmp_path / str(i), FRAMES, seed=i) for i in range(2)]
    for method in EQUAL:
        once = combine(members, tmp_path / f"{method}-1", method)
        twice = combine(members * 2, tmp_path / f"{method}-2", method)
        step = np.spacing(np.abs(once["b"]))
        assert (np.abs(once["b"].astype(float) - twice["b"]) <= step).all()


def test_weights_that_are_equal_are_no_weights(tmp_path):
    members = [member(tmp_path / str(i), FRAMES, seed=i) for i in range(3)]
    mean = combine(members, tmp_path / "mean")
    third = combine(members, tmp_path / "third", "weighted", [1 / 3] * 3)
    pair = combine(members, tmp_path / "pair", "weighted", [0.5, 0, 0.5])
    assert np.array_equal(third["b"], mean["b"])
    assert np.array_equal(pair["b"], combine(members[::2], tmp_path / "two")["b"])


def test_weighted_mean(tmp_path):
    members = [member(tmp_path / str(i), FRAMES, seed=i) for i in range(3)]
    weights = [0.7, 0.1, 0.2]
    found = combine(members, tmp_path / "weighted", "weighted", weights)
    expected = sum(w * stacked(m) for w, m in zip(weights, members, strict=True))
    assert np.abs(stacked(found) - expected).max() <= 2**-12 + 1e-7


@pytest.mark.parametrize("weights", [None, [0.7, 0.3]])
def test_mean_logit_is_the_odds_of_the_geometric_mean(tmp_path, weights):
    members = [member(tmp_path / str(i), FRAMES, seed=i) for i in range(2)]
    found = combine(members, tmp_path / "logit", "mean_logit", weights)
    a, b = (stacked(m).clip(2**-26, 1 - 2**-13) for m in members)
    u, v = weights or (0.5, 0.5)
    for_it, against = a**u * b**v, (1 - a) ** u * (1 - b) ** v
    assert np.abs(stacked(found) - for_it / (for_it + against)).max() <= 2**-12 + 1e-6


def test_certain_members_stay_finite_in_logits(tmp_path):
    members = [written(tmp_path / str(p), {"a": np.full((2, 1), float(p))}) for p in (0, 1)]
    found = combine(members, tmp_path / "logit", "mean_logit")["a"]
    # logits of 2**-26 and 1 - 2**-13 are -26 ln 2 and 13 ln 2
    assert found == pytest.approx(1 / (1 + math.exp(6.5 * math.log(2))), rel=1e-3)


@pytest.mark.parametrize("weights", [None, [0.6, 0.4, 0.0]])
def test_rank_mean_is_that_of_scipy_over_the_split(tmp_path, weights):
    rng = np.random.default_rng(5)
    members = [
        written(
            tmp_path / str(i), {v: np.round(rng.random((n, 3)), i + 1) for v, n in FRAMES.items()}
        )
        for i in range(3)
    ]  # rounded: many ties
    found = stacked(combine(members, tmp_path / "rank", "rank_mean", weights))
    falling = [rankdata(-stacked(m), axis=0) for m in members]
    expected = -np.average(falling, axis=0, weights=weights) / sum(FRAMES.values())
    assert np.abs(found / expected - 1).max() <= 2**-10


def test_one_member_keeps_its_order_in_ranks(tmp_path):
    rng = np.random.default_rng(6)
    scores = {v: rng.beta(0.3, 3, (n, 3)) for v, n in FRAMES.items()}
    targets = {v: rng.random(s.shape) < s for v, s in scores.items()}
    single = written(tmp_path / "a", scores)
    ranks = combine([single], tmp_path / "rank", "rank_mean")
    assert dense_map(ranks, targets).value == pytest.approx(
        dense_map(single, targets).value, abs=1e-5
    )


def test_minus_zero_ranks_with_zero(tmp_path):
    single = written(tmp_path / "a", {"a": np.array([[0.0], [-0.0], [0.5]])})
    found = combine([single], tmp_path / "rank", "rank_mean")["a"][:, 0]
    assert found == pytest.approx([-2.5 / 3, -2.5 / 3, -1 / 3], rel=1e-3)


@pytest.mark.parametrize("method", ["mean_logit", "rank_mean"])
@pytest.mark.parametrize("score", [1.001, -0.5, np.inf, -np.inf])
def test_logits_and_ranks_are_of_probabilities(tmp_path, method, score):
    single = written(tmp_path / "a", {"v7": np.array([[0.5], [score]])})
    with pytest.raises(ValueError, match=r"video 'v7': a score is outside 0"):
        combine([single], tmp_path / "out", method)


@settings(max_examples=20, deadline=None)
@given(
    frames=st.integers(1, 40),
    ratio=st.sampled_from([0.1, 0.4, 0.5, 2.0, 2.5, 10.0]),
    seed=st.integers(0, 99),
)
def test_other_rates_are_interpolated_in_time(tmp_path_factory, frames, ratio, seed):
    """Against numpy's interp on the seconds of the frames."""
    folder, rng = tmp_path_factory.mktemp("rates"), np.random.default_rng(seed)
    fps, count = 24.0, max(1, round(frames * ratio))
    if abs(count / (fps * ratio) - frames / fps) > 1 / min(fps, fps * ratio):
        return
    first = written(folder / "a", {"v": rng.random((frames, 2))}, fps)
    other = written(folder / "b", {"v": rng.random((count, 2))}, fps * ratio)
    aligned = align([first, other])
    (found,) = aligned.blocks("v", 1)
    seconds, own = np.arange(frames) / fps, np.arange(count) / (fps * ratio)
    for k in range(2):
        expected = np.interp(seconds, own, other["v"][:, k].astype(float))
        assert np.abs(found[:, k].numpy() - expected).max() <= 2**-11
    (same,) = aligned.blocks("v", 0)
    assert np.array_equal(same.numpy(), first["v"])


def test_blocks_of_another_rate_fit_together(tmp_path):
    count = 2 * ROW_BLOCK + 77
    ramp = np.linspace(0, 1, count // 2 + 1)[:, None]
    half = written(tmp_path / "half", {"v": ramp}, 12.0)
    full = member(tmp_path / "full", {"v": count}, classes=1)
    parts = list(align([full, half]).blocks("v", 1))
    assert [len(part) for part in parts] == [ROW_BLOCK, ROW_BLOCK, 77]
    expected = np.interp(np.arange(count) / 24, np.arange(len(ramp)) / 12, ramp[:, 0])
    assert np.abs(torch.cat(parts)[:, 0].numpy() - expected).max() <= 2**-11


def test_a_grid_of_ones_own(tmp_path):
    slow, fast = (
        member(tmp_path / "s", {"v": 10}, fps=2.0),
        member(tmp_path / "f", {"v": 50}, fps=10.0),
    )
    found = combine([slow, fast], tmp_path / "out", grid={"v": (20, 4.0)})
    assert (found.frames("v"), found.fps("v")) == (20, 4.0)
    assert combine([slow, fast], tmp_path / "slow").frames("v") == 10
    assert combine([fast, slow], tmp_path / "fast").frames("v") == 50
    with pytest.raises(ValueError, match=r"the grid lacks 1 videos \(v\)"):
        combine([slow, fast], tmp_path / "none", grid={"w": (20, 4.0)})


def test_common_videos_are_combined_and_the_others_counted(tmp_path):
    members = [member(tmp_path / "0", {"a": 5, "b": 6}), member(tmp_path / "1", {"b": 6, "c": 7})]
    found = combine(members, tmp_path / "out", videos="common")
    assert found.videos == ("b",)
    assert align(members, videos="common").left_out == ("a", "c")
    targets = {v: np.ones((n, 3), bool) for v, n in (("a", 5), ("b", 6), ("c", 7))}
    score = dense_map(found, targets)
    assert (score.videos_scored, score.videos_expected) == (1, 3)
    apart = [member(tmp_path / "2", {"a": 5}), member(tmp_path / "3", {"c": 7})]
    with pytest.raises(ValueError, match="differ in 2 videos"):
        combine(apart, tmp_path / "none", videos="common")


@pytest.mark.parametrize("method", [*EQUAL, "weighted"])
def test_the_score_without_writing_is_that_of_what_is_written(tmp_path, method):
    rng = np.random.default_rng(2)
    targets = {v: rng.random((n, 3)) < 0.2 for v, n in FRAMES.items()}
    members = [
        written(tmp_path / str(i), {v: (t + rng.random(t.shape)) / 2 for v, t in targets.items()})
        for i in range(3)
    ]
    weights = [0.5, 0.3, 0.2] if method == "weighted" else None
    ensemble = combine(members, tmp_path / "out", method, weights)
    found = Combiner(align(members), method).dense_map(targets, weights)
    assert found == dense_map(ensemble, targets).value
    scores, truth = stacked(ensemble), np.concatenate([targets[v] for v in FRAMES])
    assert found == pytest.approx(average_precision_score(truth, scores, average="macro"), abs=1e-9)


@pytest.mark.parametrize("method", [*EQUAL, "weighted"])
def test_memory_does_not_grow_with_the_split(tmp_path, method, monkeypatch):
    """Peak of numpy's allocations, and rows in flight, for one and for thirty times the videos."""
    peaks, rows = [], []
    blocks = Alignment.blocks
    monkeypatch.setattr(
        Alignment,
        "blocks",
        lambda *a: (rows.append(len(part)) or part for part in blocks(*a)),
    )
    weights = [0.6, 0.4] if method == "weighted" else None
    for videos in (1, 30):
        frames = {f"v{i}": 3000 for i in range(videos)}
        targets = {video: np.eye(3, dtype=bool)[np.arange(3000) % 3] for video in frames}
        members = [member(tmp_path / f"{videos}-{i}", frames, seed=i) for i in range(2)]
        tracemalloc.start()
        Combiner(align(members), method).dense_map(targets, weights)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(rows) <= ROW_BLOCK
    assert peaks[1] <= 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"frames": FRAMES | {"d": 1}}, r"differ in 1 videos \(d\)"),
        ({"frames": {"a": 5, "c": 1}}, r"differ in 1 videos \(b\)"),
        ({"frames": FRAMES | {"a": 6}}, r"video 'a' has \(frames, fps\) \(6, 24.0\)"),
        ({"frames": FRAMES, "fps": 10.0}, r"video 'a' has \(frames, fps\) \(5, 10.0\)"),
        ({"frames": FRAMES, "classes": 4}, "4 classes"),
    ],
)
def test_members_that_do_not_fit_are_named(tmp_path, other, message):
    members = [member(tmp_path / "a", FRAMES), member(tmp_path / "b", **other)]
    with pytest.raises(ValueError, match=message):
        mean_probability(members, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("method", [*EQUAL, "weighted"])
def test_members_are_never_overwritten(tmp_path, method):
    single = member(tmp_path / "a", FRAMES)
    with pytest.raises(ValueError, match="elsewhere"):
        combine(
            [single], tmp_path / "x" / ".." / "a", method, [1] if method == "weighted" else None
        )
    assert PredictionSet.open(tmp_path / "a").videos == single.videos


@pytest.mark.parametrize("method", EQUAL)
def test_altered_members_are_refused(tmp_path, method):
    single = member(tmp_path / "a", FRAMES)
    content = bytearray((tmp_path / "a" / "0.f16").read_bytes())
    content[100] ^= 1
    (tmp_path / "a" / "0.f16").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.f16: its checksum"):
        combine([single], tmp_path / "mean", method)
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "method='median': choose one of"),
        ({"method": "weighted"}, "needs weights"),
        ({"weights": [0.5, 0.5]}, "use method='weighted'"),
        ({"method": "weighted", "weights": [1.0]}, "expected one a member"),
        ({"method": "weighted", "weights": [1.5, -0.5]}, "none below 0"),
        ({"method": "rank_mean", "weights": [0.5, 0.6]}, "sum 1"),
        ({"method": "mean_logit", "weights": [math.nan, 1]}, "none below 0"),
        ({"videos": "some"}, "choose 'equal' or 'common'"),
    ],
)
def test_wrong_requests_say_so(tmp_path, options, message):
    members = [member(tmp_path / str(i), {"a": 3}, seed=i) for i in range(2)]
    with pytest.raises(ValueError, match=message):
        combine(members, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_member(tmp_path):
    for write in (combine, mean_probability):
        with pytest.raises(ValueError, match="at least one member"):
            write([], tmp_path)
