"""Protocols by name: what each needs, and that every number has an id and its coverage."""

import json
import re

import numpy as np
import pytest

from ssdet.data import Manifest, Segment, Video
from ssdet.evaluation import (
    PROTOCOLS,
    Material,
    PredictionSet,
    PredictionWriter,
    charades_localization,
    dense_map,
    score_all,
    write_submission,
)
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.protocols.charades_official import official_points, truth_of
from ssdet.evaluation.protocols.registry import to_json
from ssdet.evaluation.protocols.segments import truth_segments

FPS = 24.0


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    rng = np.random.default_rng(0)
    videos = []
    for n, duration in enumerate((8.0, 12.5, 30.0, 9.0)):
        spans = []
        for k in range(3):
            start = float(rng.uniform(0, duration - 2))
            spans.append(Segment(k, start, start + float(rng.uniform(1, 6))))
        videos.append(Video(f"v{n}", "", "test", segments=tuple(spans), duration=duration))
    return Manifest("toy", ("a", "b", "c"), tuple(videos))


@pytest.fixture(scope="module")
def predictions(manifest, tmp_path_factory) -> PredictionSet:
    """Of all videos but the last."""
    folder, rng = tmp_path_factory.mktemp("predictions"), np.random.default_rng(1)
    with PredictionWriter(folder, 3) as writer:
        for video in manifest.videos[:3]:
            frames = round(video.duration * FPS)
            truth = manifest.frame_targets(video, frames, FPS).T
            writer.add(
                video.id, 1 / (1 + np.exp(1 - 2 * truth + rng.normal(size=truth.shape))), FPS
            )
    return PredictionSet.open(folder)


@pytest.fixture
def material(manifest, predictions) -> Material:
    return Material(frame_labels(manifest, predictions), predictions, manifest)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_gives_numbers_with_id_and_coverage(name, material) -> None:
    readings, refused = score_all(material, [name])
    assert readings and not refused
    for reading in readings:
        assert re.fullmatch(r"[a-z0-9_.=>-]+/v\d+", reading.protocol)
        assert reading.column == reading.protocol.removesuffix("/v1")
        assert (reading.videos_scored, reading.videos_expected) == (3, 4)
        assert reading.frames > 0
        if reading.value is not None:  # no positive where no act is
            assert 0 < reading.value <= 1 and reading.classes_scored == 3
        assert json.loads(json.dumps(to_json(reading), allow_nan=False))["protocol"]


def test_no_two_numbers_share_an_id(material) -> None:
    readings, refused = score_all(material)
    columns = [reading.column for reading in readings]
    assert not refused and len(columns) == len({*columns})
    assert columns[0] == "dense_map" and readings[0].value == dense_map(*material.dense).value
    assert {"charades_official_map", "charades_official_wap", "multithumos_map_10fps"} < {*columns}


def test_protocols_of_other_data_sets_are_left_out_unless_asked_for(manifest, predictions) -> None:
    labels = frame_labels(manifest, predictions)
    for format, absent in (("charades", "multithumos"), ("multithumos", "charades")):
        material = Material(labels, predictions, manifest, format=format)
        readings, refused = score_all(material)
        assert not refused and not any(r.protocol.startswith(absent) for r in readings)
    assert score_all(Material(labels, predictions, manifest, format="charades"), ["multithumos"])[0]


def test_why_a_protocol_does_not_apply_is_said(manifest) -> None:
    readings, refused = score_all(Material(manifest=manifest))
    named = {name for name, protocol in PROTOCOLS.items() if protocol.only_named}
    assert not readings and refused.keys() == PROTOCOLS.keys() - named
    assert named == {"activitynet", "activitynet_thumos"}
    assert {*refused.values()} == {"needs the scores of every frame"}
    assert score_all(Material(), ["segments"])[1] == {"segments": "needs the annotation"}
    with pytest.raises(ValueError, match="protocol densest: choose from dense, "):
        score_all(Material(), ["densest"])


def test_official_numbers_of_a_submission_and_of_the_frames_are_one(
    material, manifest, predictions, tmp_path
) -> None:
    """Frame scores, the points made of them, and the same against a CSV of the annotation."""
    points = official_points(predictions, truth_of(manifest))
    frames = score_all(material, ["charades_official"])[0]
    submitted = score_all(Material(manifest=manifest, submitted=points), ["charades_official"])[0]
    assert frames == submitted and frames[0].notes["points_missing"] == 25
    rows = ["id,actions,length"]
    for video in manifest.videos:
        actions = ";".join(f"c{s.label:03d} {s.start!r} {s.end!r}" for s in video.segments)
        rows.append(f"{video.id},{actions},{video.duration}")
    (tmp_path / "Charades_v1_test.csv").write_text("\n".join(rows) + "\n")
    found = charades_localization(points, tmp_path / "Charades_v1_test.csv")
    assert [reading.value for reading in frames] == [found["map"], found["wap"]]
    assert write_submission(tmp_path / "out.txt", points) == 75


def test_detections_in_place_of_frame_scores(manifest) -> None:
    truth = truth_segments(manifest)
    perfect = {v: np.c_[rows, np.ones(len(rows))] for v, rows in truth.items()}
    perfect["unknown"] = perfect["v0"]
    readings, _ = score_all(Material(manifest=manifest, detections=perfect), ["segments"])
    assert [reading.value for reading in readings] == [1.0] * 6
    assert readings[0].protocol == "segment_map_file_tiou0.3/v1"
    assert readings[0].notes["videos_ignored"] == 1 and readings[0].videos_scored == 4
