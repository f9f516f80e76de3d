import json
import pickle
import weakref
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssdet.data import Manifest, Segment, Video
from ssdet.data.storage.build_once import process_pool
from ssdet.evaluation import (
    PredictionSet,
    PredictionWriter,
    dense_map,
    dense_map_in_parts,
    dense_map_min162,
)
from ssdet.evaluation.lazy_rows import LazyRows, frame_labels
from ssdet.evaluation.protocols.dense import counted


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


def test_the_mean_of_non_zero_scores_has_an_id_of_its_own():
    scores, targets = videos()
    for hits_TK in targets.values():
        hits_TK[:, 3] = False
    found = dense_map(scores, targets, empty_classes="nonzero")
    assert (found.protocol, found.empty_class_rule) == ("dense_map_pdan/v1", "nonzero")
    nonzero = [ap for ap in found.per_class if ap]
    assert found.value == pytest.approx(sum(nonzero) / len(nonzero), abs=1e-12)
    assert len(nonzero) == found.classes_scored == 19


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_short_videos_are_left_out(dtype):
    scores, targets = videos((161, 162, 300, 20))
    scores = {video: rows.astype(dtype) for video, rows in scores.items()}
    targets["gone"] = np.zeros((0, 20), bool)
    found = dense_map_min162(scores, targets)
    assert found.per_class == dense_map({v: scores[v] for v in ("v1", "v2")}, targets).per_class
    assert (found.protocol, found.frames) == ("dense_map_min162/v1", 462)
    assert (found.videos_scored, found.videos_expected) == (2, 3)
    with pytest.raises(ValueError, match="162 frames or more"):
        dense_map_min162({"v0": scores["v0"]}, {"v0": targets["v0"]})
    with pytest.raises(ValueError, match=r"not in the targets \(x\)"):
        dense_map_min162({**scores, "x": scores["v1"]}, targets)


def test_labels_are_made_when_they_are_asked_for(tmp_path):
    spans = (Segment(0, 0.0, 1.0), Segment(1, 0.5, 0.75))
    made = [
        Video(f"v{n}", "", "test", segments=spans, duration=d) for n, d in ((0, 2.0), (1, None))
    ]
    manifest = Manifest("toy", ("a", "b"), tuple(made), ("gone",), ("test",))
    with PredictionWriter(tmp_path, 2) as writer:
        writer.add("v1", np.random.default_rng(0).random((8, 2)), 4.0)
        writer.add("v0", np.random.default_rng(1).random((20, 2)), 12.0)  # annotated as 2 seconds
    labels = frame_labels(manifest, PredictionSet.open(tmp_path))
    assert [*labels] == ["v0", "v1", "gone"] and labels["gone"].shape == (0, 2)
    assert np.flatnonzero(labels["v0"][:, 0]).tolist() == list(range(1, 10))  # 0 < f / 10 < 1
    assert np.flatnonzero(labels["v0"][:, 1]).tolist() == [6, 7]
    assert np.flatnonzero(labels["v1"][:, 0]).tolist() == [1, 2, 3]
    found = dense_map(PredictionSet.open(tmp_path), labels)
    assert (found.videos_scored, found.videos_expected, found.frames) == (2, 3, 28)


def test_states_of_workers_merge_into_the_score_of_all(tmp_path):
    scores, targets = videos((40, 11, 75, 30, 64))
    with PredictionWriter(tmp_path, 20) as writer:
        for video, rows in scores.items():
            writer.add(video, 1 / (1 + np.exp(-rows)), 24)
    predictions = PredictionSet.open(tmp_path)
    whole = dense_map(predictions, targets)
    parts = [["v0", "v3"], ["v4"], ["v1", "v2"]]
    states = [pickle.loads(pickle.dumps(counted(predictions, targets, part))) for part in parts]
    for state in states[1:]:
        states[0].merge(state)
    assert tuple(states[0].average_precision()) == whole.per_class
    assert states[0].frames == whole.frames == 220


@pytest.fixture
def labelled(tmp_path):
    """Predictions in a folder, and labels made from annotation."""
    made = []
    rng = np.random.default_rng(0)
    with PredictionWriter(tmp_path, 5) as writer:
        for n, duration in enumerate((4.0, 7.5, 3.0, 9.0)):
            starts = rng.uniform(0, duration / 2, 5)
            spans = tuple(Segment(k, s, s + 2) for k, s in enumerate(starts.tolist()))
            made.append(Video(f"v{n}", "", "test", segments=spans, duration=duration))
            writer.add(f"v{n}", rng.random((round(duration * 24), 5)), 24.0)
    manifest = Manifest("toy", tuple("abcde"), (*made, Video("gone", "", "test", duration=1.0)))
    predictions = PredictionSet.open(tmp_path)
    return predictions, frame_labels(manifest, predictions)


@pytest.mark.parametrize("parts", [1, 3, 9])
def test_parts_give_the_score_of_the_whole(labelled, parts):
    assert dense_map_in_parts(*labelled, parts) == dense_map(*labelled)
    apmeter = dense_map_in_parts(*labelled, parts, empty_classes="zero")
    assert apmeter == dense_map(*labelled, empty_classes="zero")


def test_processes_count_parts(labelled):
    with process_pool(2) as pool:
        assert dense_map_in_parts(*labelled, 4, pool.map) == dense_map(*labelled)


def test_states_that_cannot_be_written_to_merge(labelled):
    """Ray hands out arrays that lie in its store, read-only."""

    def over(count, parts):
        for part in parts:
            state = count(part)
            for counts in state._counts.values():
                counts.setflags(write=False)
            yield state

    assert dense_map_in_parts(*labelled, 2, over) == dense_map(*labelled)


def test_a_prediction_set_is_sent_by_its_folder(labelled):
    predictions, _ = labelled
    sent = pickle.dumps(predictions)
    again = pickle.loads(sent)
    assert len(sent) < 500 and again.videos == predictions.videos
    assert (again["v1"] == predictions["v1"]).all()
    predictions.release()
    assert (again["v2"] == predictions["v2"]).all()


def test_scores_stream_one_video_at_a_time():
    """No row is held: each is made when its turn comes, and the one before has gone by then."""
    rng = np.random.default_rng(0)
    watched, most = [], 0

    class Half(np.ndarray):
        """Rows that can be watched."""

    def rows(video):
        nonlocal most
        made = rng.random((50, 3)).astype(np.float16).view(Half)
        watched.append(weakref.ref(made))
        most = max(most, sum(one() is not None for one in watched))
        return made

    names = [f"v{n}" for n in range(30)]
    labels = LazyRows(names, lambda video: rng.random((50, 3)) < 0.5)
    found = dense_map(LazyRows(names, rows, half=True), labels)
    assert found.frames == 1500 and most <= 2
