"""Counts of annotations: by hand, against the protocols, and of the real data sets."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssdet.cli.__main__ import main
from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.data.datasets.statistics import (
    FrameRule,
    SplitStatistics,
    count_labels,
    point_targets,
    split_statistics,
)
from ssdet.data.video.clock import Clock
from ssdet.evaluation.protocols.strata import boundary

CLASSES = ("sit", "stand", "walk")
LONG = Video("a", "", "train", None, (Segment(0, 0.4, 2.0), Segment(2, 1.0, 1.5)), 2.5, 1)
SHORT = Video("b", "", "train", None, (Segment(0, 0.5, 1.5), Segment(0, 0.7, 0.8)), 1.0)
EMPTY = Video("c", "", "train", None, (), 0.5)
TOY = Manifest("toy", CLASSES, (LONG, SHORT, EMPTY), ("d", "e"), ("train", "train"), {"e": "cut"})


def test_a_data_set_by_hand() -> None:
    """At 4 a second: `a` has 10 frames, class 0 in 2-7 (0.5-1.75 s; 2.0 is the border), class 2 in
    5 (1.25 s); `b` has 4 frames, class 0 in 3 (0.75 s is in both its actions); `c` has 2."""
    found = split_statistics(TOY, FrameRule(4))
    counts = (found.videos, found.missing, found.quarantined, found.unlabelled)
    assert counts == (3, 2, 1, 1)
    assert (found.instances, found.left_out, found.late) == (5, 1, 1)
    assert found.mean_length == pytest.approx(4 / 3)
    assert found.classes_per_video == pytest.approx(1.0)
    assert found.instances_per_class.tolist() == [3, 0, 1]
    assert found.videos_per_class.tolist() == [2, 0, 1]
    assert found.dense is not None
    assert (found.dense.videos, found.dense.frames) == (3, 16)
    assert found.dense.labels.tolist() == [9, 6, 1]
    assert found.dense.positives.tolist() == [7, 0, 1]
    # Changes at 2, 5, 6, 8 of `a` and 3 of `b`; one frame off: 1-9 and 2-3; three: all but none.
    assert found.dense.near.tolist() == [5, 11, 14]
    told = found.summary()
    assert told["dense"]["share_by_labels"] == {"none": 9 / 16, "one": 6 / 16, "several": 1 / 16}
    assert told["dense"]["labels_per_frame"] == 0.5
    assert told["dense"]["share_near_change"] == {"0": 5 / 16, "1": 11 / 16, "3": 14 / 16}
    json.dumps(told)


def test_short_videos_and_files() -> None:
    assert split_statistics(TOY, FrameRule(4, min_frames=4)).dense.videos == 2  # type: ignore[union-attr]
    real = split_statistics(
        TOY, FrameRule(4), clocks={"a": Clock.regular(20, 8), "c": Clock.regular(3, 6)}
    ).dense
    assert real is not None and (real.videos, real.frames) == (2, 23), "`b` cannot be read"
    assert real.positives.tolist() == [12, 0, 3], "8 frames a second"
    grid = split_statistics(TOY, FrameRule(4, "grid"), clocks={"a": Clock.regular(20, 8)}).dense
    assert grid is not None and grid.frames == 10, "a grid does not depend on the file's rate"
    empty = split_statistics(Manifest("none", CLASSES, ()))
    assert empty.summary()["mean_length"] is None and empty.videos == 0


def test_frames_and_grid_differ_where_the_duration_is_no_multiple() -> None:
    video = Video("v", "", "test", None, (Segment(0, 0.2, 0.4),), 1.04)
    one = Manifest("one", CLASSES, (video,))
    frames, grid = FrameRule(10), FrameRule(10, "grid")
    assert frames.frames(video) == grid.frames(video) == 10
    assert np.flatnonzero(grid.targets(one, video, 10)[0]).tolist() == [3], "0.3 alone is inside"
    assert np.flatnonzero(frames.targets(one, video, 10)[0]).tolist() == [2, 3], "at 0.208, 0.312"


def test_points_include_the_borders() -> None:
    video = Video("v", "", "test", None, (Segment(1, 0.8, 1.6), Segment(1, 1.7, 2.1)), 10.0)
    targets = point_targets(Manifest("one", CLASSES, (video,)), video)
    assert targets.shape == (3, 25)
    assert np.flatnonzero(targets[1]).tolist() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="'w' has no duration"):
        point_targets(Manifest("none", CLASSES, ()), Video("w", "", "test"))


def test_clips_have_classes_but_no_frames() -> None:
    videos = tuple(Video(str(k), "", "train", k % 2, duration=10.0) for k in range(5))
    found = split_statistics(Manifest("clips", CLASSES, videos))
    assert (found.videos, found.instances, found.unlabelled) == (5, 5, 0)
    assert found.instances_per_class.tolist() == [3, 2, 0]
    assert found.points is None and found.dense is None and found.mean_length == 10


@pytest.mark.parametrize(("fps", "frames"), [(0, 0), (-1, 0), (float("nan"), 0), (24, -1)])
def test_rules_that_are_none(fps: float, frames: int) -> None:
    with pytest.raises(ValueError, match="frames a second"):
        FrameRule(fps, min_frames=frames)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 30))))
def test_boundaries_are_those_of_the_strata(targets_KT: np.ndarray) -> None:
    found = count_labels(targets_KT)
    for place, radius in enumerate((0, 1, 3)):
        masks = {s.name: s.mask(targets_KT.T) for s in boundary(radius)}
        assert int(found.near[place]) in {int(mask.sum()) for mask in masks.values()}
    twice = found + found
    assert twice.videos == 2 and twice.frames == 2 * targets_KT.shape[1]


def test_boundaries_of_the_golden_file(golden: Callable[[str], Mapping[str, np.ndarray]]) -> None:
    stats = golden("stats_a1g")
    labels_TK = stats["labels"].astype(bool)
    found = count_labels(labels_TK.T)
    assert found.near.tolist() == [int(stats[f"boundary_r{r}"].sum()) for r in (0, 1, 3)]
    assert found.labels[1:].tolist() == [int(stats[name].sum()) for name in ("eq1", "gt1")]


# The real thing


def shares(found: SplitStatistics, part: str, digits: int) -> list[float]:
    """Percentage of frames with no, one and several labels, with the specification's digits."""
    counts = found.points if part == "points" else found.dense
    assert counts is not None
    return [round(float(share), digits) for share in 100 * counts.labels / counts.frames]


def test_charades_train(shared_data: Path) -> None:
    """Specification, sections 1.5 and 9, and MODELS.md 4 (7,909 videos from 162 frames on)."""
    found = split_statistics(
        load_manifest("charades", shared_data / "annotations", split="train"),
        FrameRule(min_frames=162),
    )
    assert (found.videos, found.unlabelled, found.instances) == (7985, 174, 49_809)
    assert found.mean_length == pytest.approx(29.89, abs=0.005)
    assert found.points is not None and found.dense is not None
    assert int(found.points.positives.sum()) == 530_129
    assert shares(found, "points", 1) == [10.5, 18.3, 71.2]
    assert found.dense.videos == 7909


def test_charades_test(shared_data: Path) -> None:
    """Specification, sections 1.5, 3, 6 and 9."""
    folder = shared_data / "annotations"
    json_file = load_manifest("charades", folder / "charades.json", split="test")
    table = load_manifest("charades", folder / "Charades_v1_test.csv")
    found = split_statistics(json_file, FrameRule(min_frames=162))
    same = split_statistics(table, clocks={})
    assert found.points is not None and found.dense is not None and same.points is not None
    for one in (found, same):
        assert (one.videos, one.unlabelled, one.instances) == (1863, 49, 16_691)
        assert one.mean_length == pytest.approx(28.71, abs=0.005)
    assert same.points.positives.tolist() == found.points.positives.tolist()
    assert (found.points.frames, int(found.points.positives.sum())) == (46_575, 175_341)
    assert int(found.points.positives.min()) == 50
    assert shares(found, "points", 2) == [7.55, 9.99, 82.45]
    assert (found.dense.videos, found.dense.frames) == (1851, 1_282_247)
    assert shares(found, "dense", 2) == [7.81, 10.26, 81.93]
    near = (100 * found.dense.near / found.dense.frames).tolist()
    assert [round(near[0], 2), round(near[1], 2), round(near[2], 1)] == [1.74, 5.16, 11.1]


def test_multithumos(shared_data: Path) -> None:
    """Specification, section 5: the grid of 10 points a second."""
    whole = load_manifest("multithumos", shared_data / "annotations" / "multithumos.json")
    train = split_statistics(whole.split("train"), FrameRule(10, "grid"))
    test = split_statistics(whole.split("test"), FrameRule(10, "grid"))
    assert (train.videos, train.instances, train.left_out) == (200, 18_482, 3)
    assert (test.videos, test.instances, test.left_out) == (213, 20_208, 4)
    assert train.late + test.late == 65
    assert train.dense is not None and test.dense is not None
    assert test.dense.frames == 461_853
    assert shares(test, "dense", 1) == [20.9, 33.1, 46.0]
    per_frame = [s.dense.positives.sum() / s.dense.frames for s in (train, test) if s.dense]
    assert [round(float(n), 3) for n in per_frame] == [1.429, 1.539]
    assert [round(s.classes_per_video, 2) for s in (train, test)] == [10.73, 10.32]


# The command


def annotation(folder: Path) -> Path:
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    path = folder / "toy.json"
    entries = {
        "a": {"subset": "training", "duration": 2.5, "actions": [[0, 0.4, 2], [2, 1, 1.5]]},
        "b": {"subset": "testing", "duration": 1, "actions": [["stand", 0.5, 0.4]]},
    }
    path.write_text(json.dumps(entries))
    return path


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(annotation(tmp_path))
    assert main(["data", "stats", path, "--format", "segments", "--fps", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["splits"]["train"]["dense"]["frames"] == 10
    assert told["splits"]["test"]["left_out"] == 1 and "val" not in told["splits"]
    train = {"instances": 1, "videos": 1, "points": 17, "frames": 6}
    assert told["classes"][0] == {"name": "sit", "train": train, "test": dict.fromkeys(train, 0)}
    assert main(["data", "stats", path, "--format", "segments", "--fps", "4"]) == 0
    shown = capsys.readouterr().out
    assert "40.00 %" in shown and "train" in shown and "walk" in shown
    assert "instances left out: end <= start: 1" in shown


def test_command_with_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"no video")
    path = str(annotation(tmp_path))
    arguments = [path, "--format", "segments", "--videos", str(videos)]
    assert main(["data", "stats", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["splits"]["test"]["missing"] == 1 and told["splits"]["train"]["missing"] == 0
    assert "not an MP4" in told["broken"]["a"]
    assert told["splits"]["train"]["dense"]["frames"] == 0
    assert main(["data", "stats", *arguments]) == 0
    assert "a: not an MP4" in capsys.readouterr().err


def test_command_of_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(tmp_path / "none.json"), "--format", "segments"]) == 1
    assert "none.json" in capsys.readouterr().err
    assert main(["data", "stats", str(tmp_path), "--format", "avi"]) == 2
    assert "segments" in capsys.readouterr().err  # says what there is
    with pytest.raises(SystemExit) as caught:
        main(["data", "stats", "--format", "segments"])
    assert caught.value.code == 2
