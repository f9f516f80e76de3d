"""The official score against the published figures, scikit-learn and counting by hand."""

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssdet.data import load_manifest
from ssdet.evaluation import PredictionSet, PredictionWriter, charades_localization
from ssdet.evaluation.protocols.charades_official import (
    localization,
    official_points,
    points,
    read_truth,
    truth_of,
)

FIELDS = ("id", "scene", "actions", "length")


@pytest.fixture
def written(tmp_path):
    """Writes annotation with some of the official columns."""

    def write(rows, name="Charades_v1_test.csv"):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows({"scene": "a, b", **row} for row in rows)
        return tmp_path / name

    return write


def by_counting(order):
    """AP of hits in ranked order: mean of the precision at each positive."""
    found, precisions = 0, []
    for rank, hit in enumerate(order, 1):
        if hit:
            found += 1
            precisions.append(found / rank)
    return sum(precisions) / found


def test_published_figures(shared_data) -> None:
    path = shared_data / "annotations" / "Charades_v1_test.csv"
    truth = read_truth(path)
    hits = np.concatenate([*truth.hits.values()])
    assert hits.shape == (46_575, 157) and hits.sum() == 175_341
    assert sum(not rows.any() for rows in truth.hits.values()) >= 49
    labels = hits.sum(axis=1)
    assert [round(100 * float(np.mean(part)), 2) for part in (labels == 0, labels == 1)] == [
        7.55,
        9.99,
    ]
    rng = np.random.RandomState(123)
    random = rng.rand(46_575, 157)
    noisy = 0.3 * hits + rng.rand(46_575, 157)
    expected = {"random": (0.0242314, 0.0478879), "noisy": (0.3450221, 0.3820409)}
    for name, rows in (("random", random), ("noisy", noisy)):
        found = localization(by_video(truth, rows), truth)
        assert (found["map"], found["wap"]) == pytest.approx(expected[name], abs=5.1e-8)
        assert (found["videos_scored"], found["videos_expected"]) == (1863, 1863)
    oracle = charades_localization(by_video(truth, hits.astype(np.float16)), path)
    assert (oracle["map"], oracle["wap"]) == (1.0, 1.0)


def by_video(truth, rows_NK):
    return {
        video: rows_NK[25 * number : 25 * number + 25] for number, video in enumerate(truth.hits)
    }


def test_the_manifest_has_the_same_labels(shared_data) -> None:
    folder = shared_data / "annotations"
    exact = read_truth(folder)
    for path in (folder / "Charades_v1_test.csv", folder / "charades.json"):
        truth = truth_of(load_manifest("charades", path).split("test"))
        assert truth.hits.keys() == exact.hits.keys()
        assert all((truth.hits[video] == exact.hits[video]).all() for video in exact.hits)


def test_full_size_against_scikit_learn(written) -> None:
    """46,575 points x 157 classes of a made annotation, labels by loops, scores without ties."""
    rng = np.random.default_rng(0)
    rows, hits = [], np.zeros((1863 * 25, 157), bool)
    for number in range(1863):
        length = round(float(rng.uniform(5, 60)), 2)
        actions = []
        for _ in range(rng.integers(0, 14)):
            label, first = int(rng.integers(157)), round(float(rng.uniform(0, length)), 2)
            last = round(first + float(rng.uniform(0.5, 15)), 2)
            actions.append(f"c{label:03d} {first} {last}")
            for j in range(25):
                hits[25 * number + j, label] |= first <= j / 25 * length <= last
        rows.append({"id": f"V{number}", "actions": ";".join(actions), "length": length})
    scores = (0.2 * hits + rng.random(hits.shape)).astype(np.float64)
    path = written(rows)
    found = charades_localization(
        {f"V{n}": scores[25 * n : 25 * n + 25] for n in range(1863)}, path
    )
    expected = [average_precision_score(t, s) for t, s in zip(hits.T, scores.T, strict=True)]
    np.testing.assert_allclose(found["ap"], expected, rtol=0, atol=1e-12)
    assert found["map"] == pytest.approx(np.mean(expected), abs=1e-12)
    weights = hits.sum(axis=0)
    assert found["wap"] == pytest.approx(np.average(expected, weights=weights), abs=1e-12)
    assert (found["points_scored"], found["points_expected"]) == (46_575, 46_575)


def test_intervals_are_closed_and_points_begin_at_zero(written) -> None:
    rows = [
        {"id": "A", "actions": "c000 0.0 1.0;c001 2.0 2.0;c000 0.5 1.0;c002 -1 0", "length": "25"},
        {"id": "B", "actions": "", "length": "10"},
    ]
    truth = read_truth(written(rows), classes=3)
    assert points(25) == pytest.approx(np.arange(25))
    assert [np.flatnonzero(column).tolist() for column in truth.hits["A"].T] == [[0, 1], [2], [0]]
    assert not truth.hits["B"].any()


def test_equal_scores_rank_in_the_order_of_the_file(written) -> None:
    rows = [
        {"id": "B", "actions": "c000 5 100;c001 0 100", "length": "10"},
        {"id": "A", "actions": "c000 0 4;c001 0 1", "length": "10"},
    ]
    path = written(rows)
    rng = np.random.default_rng(1)
    scores = {video: rng.integers(0, 3, (25, 2)).astype(np.float32) for video in ("A", "B")}
    found = charades_localization(scores, path)
    truth = read_truth(path, 2)
    together = np.concatenate([scores["B"], scores["A"]])
    hits = np.concatenate([truth.hits["B"], truth.hits["A"]])
    for k in range(2):
        order = sorted(range(50), key=lambda row, k=k: -together[row, k])  # sorted is stable
        assert found["ap"][k] == pytest.approx(by_counting(hits[order, k]), abs=1e-15)


def test_missing_videos_rank_last_and_unknown_ones_are_ignored(written) -> None:
    rows = [
        {"id": name, "actions": f"c000 0 {end};c001 1 9", "length": "10"}
        for name, end in (("A", 3), ("B", 4), ("C", 5))
    ]
    path = written(rows)
    scores = {"C": torch.rand(25, 2), "X": np.ones((25, 2))}
    found = charades_localization(scores, path)
    assert (found["videos_scored"], found["videos_expected"], found["videos_ignored"]) == (1, 3, 1)
    assert (found["points_scored"], found["points_expected"]) == (25, 75)
    truth = read_truth(path, 2)
    ranked = np.argsort(-scores["C"][:, 0].numpy(), kind="stable")
    order = np.concatenate(
        [truth.hits["C"][ranked, 0], truth.hits["A"][:, 0], truth.hits["B"][:, 0]]
    )
    assert found["ap"][0] == pytest.approx(by_counting(order), abs=1e-15)
    none = charades_localization({}, path)
    assert none["videos_scored"] == 0 and none["ap"].shape == (157,)


def test_a_class_without_a_positive_leaves_no_value(written) -> None:
    path = written([{"id": "A", "actions": "c001 0 5", "length": "10"}])
    found = charades_localization({"A": np.zeros((25, 2))}, path)
    assert np.isnan(found["map"]) and np.isnan(found["wap"]) and np.isnan(found["ap"][0])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"actions": "c157 0 1"}, "video 'A'.*'c157 0 1'.*below 157"),
        ({"actions": "x01 0 1"}, "video 'A'.*'x01 0 1'"),
        ({"actions": "c001 0"}, "video 'A'.*'c001 0'"),
        ({"actions": "c001 zero 1"}, "video 'A'.*'zero'"),
        ({"length": "0"}, "length 0.0"),
        ({"length": "long"}, "length.*'long'"),
    ],
)
def test_bad_annotation_is_named(written, row, told) -> None:
    path = written([{"id": "A", "actions": "", "length": "1", **row}])
    with pytest.raises(ValueError, match=told):
        charades_localization({}, path)


def test_bad_scores_are_named(written, tmp_path) -> None:
    path = written([{"id": "A", "actions": "c000 0 1", "length": "1"}])
    with pytest.raises(ValueError, match=r"'A'.*\(24, 1\)"):
        charades_localization({"A": np.zeros((24, 1))}, path)
    with pytest.raises(ValueError, match=r"'A'.*row 0 is NaN"):
        charades_localization({"A": np.full((25, 1), np.nan)}, path)
    (tmp_path / "other.csv").write_text("id,start\nA,1\n")
    with pytest.raises(ValueError, match="actions, length"):
        charades_localization({}, tmp_path / "other.csv")
    twice = written([{"id": "A", "actions": "", "length": "1"}] * 2, "twice.csv")
    with pytest.raises(ValueError, match="'A' is there twice"):
        charades_localization({}, twice)


def test_points_of_frame_scores_lie_between_in_logits(written, tmp_path) -> None:
    path = written([{"id": "A", "actions": "c000 0 1", "length": "10"}])
    probs_TK = np.array([[0.5], [0.75], [0.125], [0.5]], np.float16)
    with PredictionWriter(tmp_path / "p", 1) as writer:
        writer.add("A", probs_TK, fps=1.0)
    found = official_points(PredictionSet.open(tmp_path / "p"), read_truth(path, 1))["A"][:, 0]
    logits = np.log(probs_TK[:, 0] / (1 - probs_TK[:, 0].astype(float)))
    for j in range(25):
        step = min(j / 25 * 10, 3)  # the last frame holds beyond the end
        low = int(step)
        near = logits[low] + (step - low) * (logits[min(low + 1, 3)] - logits[low])
        assert found[j] == pytest.approx(1 / (1 + np.exp(-near)), abs=1e-12)


def test_probabilities_of_zero_and_one_stay_in_order(written, tmp_path) -> None:
    path = written([{"id": "A", "actions": "c000 0 1", "length": "25"}])
    probs_TK = np.linspace(0, 1, 26, dtype=np.float16)[:, None]
    with PredictionWriter(tmp_path / "p", 1) as writer:
        writer.add("A", probs_TK, fps=1.0)
        writer.add("B", probs_TK + 1, fps=1.0)
    points_of = official_points(PredictionSet.open(tmp_path / "p"), read_truth(path, 1))
    assert [*points_of] == ["A"] and (np.diff(points_of["A"][:, 0]) > 0).all()
    other = written([{"id": "B", "actions": "c000 0 1", "length": "25"}], "b.csv")
    with pytest.raises(ValueError, match="probabilities from 0 to 1"):
        official_points(PredictionSet.open(tmp_path / "p"), read_truth(other, 1))["B"]
