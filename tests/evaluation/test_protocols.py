import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map


def videos(lengths=(40, 1, 75, 30), classes=20, seed=0):
    rng = np.random.default_rng(seed)
    targets = {f"v{i}": rng.random((frames, classes)) < 0.3 for i, frames in enumerate(lengths)}
    scores = {
        video: (hits_TK + rng.normal(size=hits_TK.shape)).astype(np.float32)
        for video, hits_TK in targets.items()
    }
    return scores, targets


def sklearn_map(scores, targets):
    rows, hits = (np.concatenate([part[v] for v in scores]) for part in (scores, targets))
    return [average_precision_score(t, s) for t, s in zip(hits.T, rows.T, strict=True)]


def test_reference_values(golden):
    toy = golden("stats_a1g")
    score = dense_map({"v": toy["scores"]}, {"v": toy["labels"]})
    assert score.value == pytest.approx(toy["ap_all"][0], abs=1e-6)
    assert score.per_class == pytest.approx(toy["ap_all"][1:], abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_frame_of_all_videos_is_ranked_together(dtype):
    scores, targets = videos()
    typed = {video: scores_TK.astype(dtype) for video, scores_TK in scores.items()}
    score = dense_map(typed, targets)
    expected = sklearn_map({v: s.astype(float) for v, s in typed.items()}, targets)
    assert score.per_class == pytest.approx(expected, abs=1e-12)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert (score.protocol, score.frames, score.classes_scored) == ("dense_map/v1", 146, 20)


def test_prediction_sets_tensors_and_arrays_agree_in_any_order(tmp_path):
    scores, targets = videos()
    with PredictionWriter(tmp_path, 20) as writer:
        for video in reversed(scores):
            writer.add(video, scores[video], 24)
    half = {video: torch.tensor(scores_TK).half() for video, scores_TK in scores.items()}
    widened = {video: scores_TK.float() for video, scores_TK in half.items()}
    assert dense_map(PredictionSet.open(tmp_path), targets) == dense_map(half, targets)
    exact = dense_map(widened, {v: torch.tensor(t).int() for v, t in targets.items()})
    assert dense_map(half, targets).per_class == pytest.approx(exact.per_class, abs=1e-12)


def test_a_class_without_a_positive_is_left_out_or_counts_zero():
    scores, targets = videos()
    for hits_TK in targets.values():
        hits_TK[:, 3] = False
    left_out = dense_map(scores, targets)
    apmeter = dense_map(scores, targets, empty_classes="zero")
    assert left_out.per_class[3] is None and left_out.classes_scored == 19
    assert (left_out.protocol, apmeter.protocol) == ("dense_map/v1", "dense_map_apmeter/v1")
    assert (left_out.empty_class_rule, apmeter.empty_class_rule) == ("left_out", "zero")
    assert apmeter.value == pytest.approx(left_out.value * 19 / 20)


def test_videos_without_predictions_are_counted_but_not_ranked():
    scores, targets = videos()
    del scores["v2"]
    score = dense_map(scores, targets)
    assert (score.videos_scored, score.videos_expected, score.frames) == (3, 4, 71)
    assert score.value == pytest.approx(np.mean(sklearn_map(scores, targets)))


def test_a_score_is_strict_json():
    scores, targets = videos()
    for hits_TK in targets.values():
        hits_TK[:, 0] = False
    score = dense_map(scores, targets)
    loaded = json.loads(json.dumps(asdict(score), allow_nan=False))
    assert loaded["value"] == score.value and loaded["per_class"][0] is None


def test_what_cannot_be_scored_is_named():
    scores, targets = videos()
    with pytest.raises(ValueError, match=r"not in the targets \(x\)"):
        dense_map(scores | {"x": scores["v0"]}, targets)
    with pytest.raises(ValueError, match=r"'v2'.*\(74, 20\).*\(75, 20\)"):
        dense_map(scores | {"v2": scores["v2"][:-1]}, targets)
    with pytest.raises(ValueError, match=r"'v1'.*class 4 in row 0 is NaN"):
        bad = scores["v1"].copy()
        bad[0, 4] = np.nan
        dense_map(scores | {"v1": bad}, targets)
    with pytest.raises(ValueError, match="none of the 4 expected videos"):
        dense_map({}, targets)
    with pytest.raises(ValueError, match="no class has a positive"):
        dense_map(scores, {video: np.zeros_like(t) for video, t in targets.items()})
    with pytest.raises(ValueError, match="left_out"):
        dense_map(scores, targets, empty_classes="skip")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_videos_of_other_classes(dtype):
    scores = {"a": np.zeros((3, 2), dtype), "b": np.zeros((3, 4), dtype)}
    targets = {"a": np.ones((3, 2)), "b": np.ones((3, 4))}
    with pytest.raises(ValueError, match="classes"):
        dense_map(scores, targets)
