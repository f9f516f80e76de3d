import json
import weakref
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from ssdet.data import load_manifest
from ssdet.evaluation import PredictionSet, PredictionWriter, acts, boundary, dense_map
from ssdet.evaluation.protocols.strata import (
    PUBLISHED,
    strata,
    stratum_masks,
    stratum_scores,
    stratum_targets,
)
from ssdet.evaluation.statistics.bootstrap import paired_bootstrap


def videos(lengths=(60, 1, 90, 45), classes=6, seed=0):
    """Labels that hold for some frames, as actions do, and noisy scores of them."""
    rng = np.random.default_rng(seed)
    targets = {
        f"v{i}": np.repeat(rng.random((frames // 5 + 1, classes)) < 0.2, 5, axis=0)[:frames]
        for i, frames in enumerate(lengths)
    }
    scores = {v: (t + rng.normal(size=t.shape)).astype(np.float32) for v, t in targets.items()}
    return scores, targets


def frames_of(name, labels, radius=3):
    """Frames of a published stratum of one video, one after the other."""
    changes = [t for t in range(1, len(labels)) if list(labels[t]) != list(labels[t - 1])]
    near = [any(abs(t - change) <= radius for change in changes) for t in range(len(labels))]
    counts = [sum(map(int, row)) for row in labels]
    return {
        "acts=0": [t for t, n in enumerate(counts) if n == 0],
        "acts=1": [t for t, n in enumerate(counts) if n == 1],
        "acts>1": [t for t, n in enumerate(counts) if n > 1],
        "non_boundary_r3": [t for t, hit in enumerate(near) if not hit],
        "boundary_r3": [t for t, hit in enumerate(near) if hit],
    }[name]


def by_hand(pairs):
    """scikit-learn's average precision by class from (class, score, label)."""
    found = {}
    for k in sorted({k for k, _, _ in pairs}):
        labels = [label for c, _, label in pairs if c == k]
        if any(labels):
            scores = [float(score) for c, score, _ in pairs if c == k]
            found[k] = average_precision_score(labels, scores)
    return found


def test_reference_values(golden):
    toy = golden("stats_a1g")
    found = strata({"v": toy["scores"]}, {"v": toy["labels"]})
    for name, key in {
        "acts=1": "ap_eq1", "acts>1": "ap_gt1",
        "boundary_r3": "ap_boundary_r3", "non_boundary_r3": "ap_nonboundary_r3",
    }.items():  # fmt: skip
        expected = [None if np.isnan(ap) else ap for ap in toy[key]]
        assert found[name].value == pytest.approx(expected[0], abs=1e-6)
        assert list(found[name].per_class) == [
            ap if ap is None else pytest.approx(ap, abs=1e-6) for ap in expected[1:]
        ]


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("both_sides", [False, True])
def test_reference_masks(golden, radius, both_sides):
    toy = golden("stats_a1g")
    labels = toy["labels"].astype(bool)
    far, near = (stratum.mask(labels) for stratum in boundary(radius, both_sides))
    expected = toy[f"boundary_{'sym_' * both_sides}r{radius}"]
    np.testing.assert_array_equal(near, expected)
    np.testing.assert_array_equal(far, ~expected)
    none, one, more = (stratum.mask(labels) for stratum in acts())
    np.testing.assert_array_equal(one, toy["eq1"])
    np.testing.assert_array_equal(more, toy["gt1"])
    np.testing.assert_array_equal(none, toy["count"] == 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", [stratum.name for stratum in PUBLISHED])
def test_a_stratum_is_scored_on_its_frames_alone(name, dtype):
    scores, targets = videos()
    typed = {v: s.astype(dtype) for v, s in scores.items()}
    found = strata(typed, targets)[name]
    chosen = [(v, t) for v in targets for t in frames_of(name, targets[v])]
    expected = by_hand([(k, typed[v][t, k], targets[v][t, k]) for v, t in chosen for k in range(6)])
    assert found.frames == len(chosen) and found.pairs == 6 * len(chosen)
    assert found.positives == sum(targets[v][t].sum() for v, t in chosen)
    assert found.classes_scored == len(expected)
    assert {k: ap for k, ap in enumerate(found.per_class) if ap is not None} == pytest.approx(
        expected, abs=1e-12
    )
    value = np.mean(list(expected.values())) if expected else None
    assert found.value == (value if value is None else pytest.approx(value, abs=1e-12))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_class_may_have_boundaries_of_its_own(dtype):
    scores, targets = videos()
    typed = {v: s.astype(dtype) for v, s in scores.items()}
    far, near = strata(typed, targets, boundary(2, per_class=True)).values()
    inside, outside = [], []
    for v in targets:
        for k in range(6):
            own = targets[v][:, k : k + 1]
            changes = [t for t in range(1, len(own)) if own[t] != own[t - 1]]
            for t in range(len(own)):
                hit = any(abs(t - change) <= 2 for change in changes)
                (inside if hit else outside).append((k, typed[v][t, k], own[t, 0]))
    for found, pairs in ((near, inside), (far, outside)):
        expected = by_hand(pairs)
        assert {k: ap for k, ap in enumerate(found.per_class) if ap is not None} == pytest.approx(
            expected, abs=1e-12
        )
        assert found.pairs == len(pairs)
        assert found.positives == sum(label for _, _, label in pairs)


LABELS = st.integers(0, 25).flatmap(
    lambda frames: st.integers(1, 4).flatmap(lambda classes: arrays(bool, (frames, classes)))
)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, apart=st.integers(1, 4), radius=st.integers(0, 30))
def test_every_frame_is_in_one_stratum(labels, apart, radius):
    for per_class in (False, True):
        for parts in (acts(apart), boundary(radius, per_class=per_class)):
            times = sum(stratum.mask(labels).astype(int) for stratum in parts)
            assert (times == 1).all()
    near, wider = (boundary(r)[1].mask(labels) for r in (radius, radius + 1))
    assert not (near & ~wider).any() and near.any() == wider.any()


def test_videos_that_could_not_be_read_are_counted():
    scores, targets = videos()
    del scores["v2"]
    targets["gone"] = np.zeros((0, 6), bool)
    found = strata(scores, targets)
    assert {(s.videos_scored, s.videos_expected) for s in found.values()} == {(3, 5)}
    frames = [found[stratum.name].frames for stratum in acts()]
    assert sum(frames) == 60 + 1 + 45
    readable = {v: targets[v] for v in scores}
    assert [s.value for s in strata(scores, readable).values()] == [s.value for s in found.values()]


def test_the_start_of_a_video_is_no_boundary():
    rows = {"a": np.array([[1, 0]] * 8, bool), "b": np.array([[0, 1]] * 8, bool)}
    found = strata({v: np.eye(8, 2) for v in rows}, rows)
    assert found["boundary_r3"].frames == 0 and found["boundary_r3"].value is None
    assert found["non_boundary_r3"].value == dense_map({v: np.eye(8, 2) for v in rows}, rows).value


def test_every_definition_has_a_protocol_of_its_own():
    found = [*PUBLISHED, *acts(2), *boundary(1), *boundary(both_sides=True)]
    found += [*boundary(per_class=True), *boundary(both_sides=True, per_class=True)]
    ids = {stratum.protocol for stratum in found}
    assert len(ids) == len(found) - 2  # acts=0 and acts=1 are the same frames in both partitions
    scores, targets = videos()
    fine = strata(scores, targets, acts(2))
    assert list(fine) == ["acts=0", "acts=1", "acts=2", "acts>2"]
    assert fine["acts=2"].protocol == "dense_map.acts=2/v1"


class Fresh(Mapping):
    """float16 scores made anew whenever they are asked for; knows how many were held at once."""

    def __init__(self, rows):
        self.rows, self.given, self.most = rows, [], 0

    def __getitem__(self, video):
        scores_TK = self.rows[video].astype(np.float16)
        self.given.append(weakref.ref(scores_TK))
        self.most = max(self.most, sum(ref() is not None for ref in self.given))
        return scores_TK

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)


@pytest.mark.parametrize("by", [PUBLISHED, boundary(per_class=True)], ids=["frames", "per class"])
def test_half_precision_scores_are_never_held_together(by):
    scores, targets = videos(lengths=(20,) * 30)
    fresh = Fresh(scores)
    found = strata(fresh, targets, by)
    assert fresh.most <= 2
    assert found == strata({v: s.astype(np.float16) for v, s in scores.items()}, targets, by)


def test_prediction_sets_are_scored_as_their_arrays(tmp_path):
    scores, targets = videos()
    with PredictionWriter(tmp_path, 6) as writer:
        for video in reversed(scores):
            writer.add(video, scores[video], 24)
    half = {video: rows.astype(np.float16) for video, rows in scores.items()}
    assert strata(PredictionSet.open(tmp_path), targets) == strata(half, targets)


@pytest.mark.parametrize("per_class", [False, True])
def test_the_bootstrap_sees_the_frames_of_a_stratum(per_class):
    """On the data themselves it must find the difference of the two scores."""
    a, targets = videos(lengths=(60,) * 12)
    b = {v: rows + 0.5 * targets[v] for v, rows in a.items()}
    for stratum in (*acts()[1:], *boundary(per_class=per_class)):
        masks = stratum_masks(stratum, targets)
        truth = stratum_targets(targets, masks)
        found = paired_bootstrap(stratum_scores(a, masks), stratum_scores(b, masks), truth, 50)
        values = [strata(rows, targets, [stratum])[stratum.name].value for rows in (a, b)]
        assert found.difference == pytest.approx(values[1] - values[0], abs=2e-6)
        assert found.low < found.difference < found.high


def test_a_score_is_strict_json():
    for score in strata(*videos()).values():
        loaded = json.loads(json.dumps(asdict(score), allow_nan=False))
        assert loaded["value"] == score.value and loaded["frames"] == score.frames


def test_what_cannot_be_scored_is_named():
    scores, targets = videos()
    with pytest.raises(ValueError, match=r"not in the targets \(x\)"):
        strata(scores | {"x": scores["v0"]}, targets)
    with pytest.raises(ValueError, match=r"'v2'.*\(89, 6\).*\(90, 6\)"):
        strata(scores | {"v2": scores["v2"][:-1]}, targets)
    with pytest.raises(ValueError, match="'v1': 4 classes, videos before it have 6"):
        strata(scores | {"v1": scores["v1"][:, :4]}, targets | {"v1": targets["v1"][:, :4]})
    with pytest.raises(ValueError, match="share a name"):
        strata(scores, targets, [*acts(), *acts()])
    with pytest.raises(ValueError, match="'v2': a score is -inf"):
        scores["v2"][3, 2] = -np.inf
        strata(scores, targets, boundary(per_class=True))
    with pytest.raises(ValueError, match="up_to=0"):
        acts(0)
    with pytest.raises(ValueError, match="radius=-1"):
        boundary(-1)


def test_charades_shares(shared_data):
    """Test frames at 24 fps near a change of the labels, in percent (specs/EVAL.md 6)."""
    path = shared_data / "annotations" / "charades.json"
    test = load_manifest("charades", path, split="test")
    near = {radius: boundary(radius)[1] for radius in (0, 1, 3)}
    frames, counts = 0, dict.fromkeys(near, 0)
    for video in test.videos:
        number = int(video.duration * 24)
        if number >= 162:
            labels = test.frame_targets(video, number, number / video.duration).T
            frames += number
            for radius, stratum in near.items():
                counts[radius] += stratum.mask(labels).sum()
    shares = [100 * count / frames for count in counts.values()]
    assert shares == pytest.approx([1.74, 5.16, 11.1], abs=0.05)
