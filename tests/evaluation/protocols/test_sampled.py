"""Protocols that rank some steps, or steps on a grid, against what they say by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssdet.data import Manifest, Segment, Video, load_manifest
from ssdet.evaluation import (
    PredictionSet,
    PredictionWriter,
    dense_map,
    multithumos_map,
    sampled25_map,
)
from ssdet.evaluation.protocols.sampled import on_grid, sampled25_indices


def videos(lengths, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    targets = {f"v{n}": rng.random((frames, classes)) < 0.3 for n, frames in enumerate(lengths)}
    scores = {v: (t + rng.normal(size=t.shape)).astype(np.float32) for v, t in targets.items()}
    return scores, targets


def sklearn_map(scores, targets):
    return [average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)]


@pytest.mark.parametrize(
    ("valid", "expected"),
    [
        (26, range(1, 26)),
        (30, range(1, 26)),
        (49, range(1, 26)),  # the end of the video is never ranked
        (63, range(1, 51, 2)),
        (1000, range(1, 1000, 40)),
    ],
)
def test_steps_begin_at_the_second(valid, expected) -> None:
    assert sampled25_indices(valid) == sampled25_indices(valid, "cf") == expected
    assert len(expected) == 25


def test_the_variants_differ_in_short_videos() -> None:
    assert not sampled25_indices(25) and not sampled25_indices(3)
    assert sampled25_indices(25, "cf") == range(1, 25)
    with pytest.raises(ValueError, match="24 steps: the cf variant needs 25"):
        sampled25_indices(24, "cf")
    with pytest.raises(ValueError, match="choose 'mstct' or 'cf'"):
        sampled25_indices(30, "pdan")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sampled_score(dtype) -> None:
    scores, targets = videos((60, 25, 140, 10))
    scores = {video: rows.astype(dtype) for video, rows in scores.items()}
    found = sampled25_map(scores, targets)
    rows, hits = (
        np.concatenate([part["v0"][1::2][:25], part["v2"][1::5][:25]]) for part in (scores, targets)
    )
    assert found.per_class == pytest.approx(sklearn_map(rows, hits), abs=1e-12)
    assert (found.protocol, found.empty_class_rule) == ("sampled25_map_mstct/v1", "zero")
    assert (found.videos_scored, found.videos_expected, found.frames) == (2, 4, 50)
    with pytest.raises(ValueError, match="'v3': 10 steps: the cf variant"):
        sampled25_map(scores, targets, "cf")
    del scores["v3"]
    other = sampled25_map(scores, targets, "cf", empty_classes="nonzero")
    assert other.protocol == "sampled25_map_cf_pdan/v1"
    assert (other.videos_scored, other.videos_expected, other.frames) == (3, 4, 74)


def test_what_cannot_be_sampled_is_named() -> None:
    scores, targets = videos((30, 31))
    with pytest.raises(ValueError, match="'v1': 30 steps, labels 31"):
        sampled25_map({**scores, "v1": scores["v1"][:-1]}, targets)
    with pytest.raises(ValueError, match=r"not in the targets \(x\)"):
        sampled25_map({**scores, "x": scores["v1"]}, targets)
    with pytest.raises(ValueError, match="more than 25 steps"):
        sampled25_map({"v0": scores["v0"][:20]}, {"v0": targets["v0"][:20]})


def toy(tmp_path, fps=25.0, durations=(4.0, 7.04)):
    spans = [Segment(0, 0.5, 2.0), Segment(1, 1.0, 9.0), Segment(1, 0.0, 0.3)]
    manifest = Manifest(
        "toy",
        ("a", "b", "c"),
        tuple(
            Video(f"v{n}", "", "test", segments=tuple(spans[: n + 2]), duration=duration)
            for n, duration in enumerate(durations)
        ),
    )
    rng = np.random.default_rng(0)
    with PredictionWriter(tmp_path, 3) as writer:
        for video in manifest.videos:
            writer.add(video.id, rng.random((round(video.duration * fps), 3)), fps)
    return manifest, PredictionSet.open(tmp_path)


def test_multithumos_grid(tmp_path) -> None:
    manifest, predictions = toy(tmp_path)
    found = multithumos_map(predictions, manifest)
    assert found.protocol == "multithumos_map_10fps/v1" and found.frames == 40 + 70
    rows, hits = [], []
    for video in manifest.videos:
        own = predictions[video.id].astype(float)
        logits = np.log(own / (1 - own))
        for step in range(round(video.duration * 10)):
            at = min(step / 10 * 25, len(own) - 1)
            low, high = int(at), min(int(at) + 1, len(own) - 1)
            between = logits[low] + (at - low) * (logits[high] - logits[low])
            rows.append(np.float16(1 / (1 + np.exp(-between))))
            hits.append(
                [
                    any(s.label == k and s.start < step / 10 < s.end for s in video.segments)
                    for k in range(3)
                ]
            )
    expected = sklearn_map(np.array(rows, float)[:, :2], np.array(hits)[:, :2])
    assert found.per_class[:2] == pytest.approx(expected[:2], abs=1e-12)
    assert found.per_class[2] is None  # and it counts 0
    assert found.value == pytest.approx(sum(expected[:2]) / 3, abs=1e-12)


def test_multithumos_rates_have_ids_of_their_own(tmp_path) -> None:
    manifest, predictions = toy(tmp_path / "even", fps=3.125)
    steps = multithumos_map(predictions, manifest, rate=None)
    assert steps.protocol == "multithumos_map_steps_3.125fps/v1"
    assert steps.frames == sum(predictions.frames(video) for video in predictions)
    scores, labels = on_grid(predictions, manifest, None)
    assert multithumos_map(scores, labels, None).value == steps.value
    assert multithumos_map(scores, labels, None).protocol == "multithumos_map_steps/v1"
    assert multithumos_map(scores, labels, 24).protocol == "multithumos_map_24fps/v1"
    assert dense_map(scores, labels, "zero").value == steps.value
    with pytest.raises(ValueError, match="rate=0"):
        multithumos_map(predictions, manifest, 0)
    with pytest.raises(ValueError, match="a manifest goes with a PredictionSet"):
        multithumos_map(scores, manifest)


def test_multithumos_counts(shared_data) -> None:
    manifest = load_manifest("multithumos", shared_data / "annotations" / "multithumos.json")
    test = manifest.split("test")
    frames, labels = 0, np.zeros(3, int)
    for video in test.videos:
        count = round(video.duration * 10)
        hits = manifest.frame_targets(video, count, 10.0).sum(axis=0)
        frames += count
        labels += np.bincount(np.minimum(hits, 2), minlength=3)
    assert len(test.videos) == 213 and frames == 461_853
    assert (100 * labels / frames).round(1).tolist() == [20.9, 33.1, 46.0]
