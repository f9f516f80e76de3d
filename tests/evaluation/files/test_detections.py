"""Names of videos and classes in files of detections, against those of an annotation."""

import json

import pytest

from ssdet.data import Manifest, Segment, Video
from ssdet.evaluation.files.class_numbers import THUMOS14, class_codes
from ssdet.evaluation.files.detections import match_detections
from ssdet.evaluation.files.kinds import UnusableFile, recognise

NAMES = ("jump", "run", "Taichi chuan")


def manifest(classes=NAMES):
    return Manifest(
        "m",
        classes,
        tuple(Video(v, "", "test", segments=(Segment(0, 1, 2),), duration=9.0) for v in "abc"),
    )


def read(path, content, **options):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return match_detections(path, recognise(path, 3), manifest(), **options)


@pytest.mark.parametrize(
    ("labels", "classes", "format", "expected"),
    [
        ({"run", "jump"}, NAMES, "", {"run": 1, "jump": 0}),
        ({"run", "walk", "0"}, NAMES, "", {"run": 1}),
        ({"0", "2"}, NAMES, "", {"0": 0, "2": 2}),
        ({"1", "3"}, NAMES, "", {"1": 0, "3": 2}),
        ({"0", "999"}, NAMES, "charades", {"0": 0}),
        ({"1", "2"}, NAMES, "charades", {"1": 1, "2": 2}),
        ({"1", "2"}, NAMES, "multithumos", {"1": 0, "2": 1}),
        ({"0", "2"}, NAMES, "multithumos", {"0": 0, "2": 2}),
        ({"1", "3"}, NAMES, "charades", {"1": 0, "3": 2}),
        ({"c001", "c002"}, NAMES, "charades", {"c001": 1, "c002": 2}),
        ({"1.0", "0.0"}, NAMES, "", {"0.0": 0, "1.0": 1}),
        ({"0", "1", "10", "2"}, ("0", "1", "10", "2"), "", {"0": 0, "1": 1, "10": 2, "2": 3}),
        ({"walk"}, NAMES, "charades", {}),
        (set(), NAMES, "", {}),
    ],
)
def test_labels_are_names_or_numbers(labels, classes, format, expected) -> None:
    assert class_codes(labels, classes, format).codes == expected


def test_numbers_of_the_thumos_kit() -> None:
    classes = sorted(THUMOS14.values())
    codes = class_codes({"7", "9", "97", "5"}, classes).codes
    assert codes == {"7": 0, "9": 1, "97": classes.index("VolleyballSpiking")}
    assert class_codes({"0", "7", "9"}, classes).codes["7"] == 7
    with pytest.raises(UnusableFile, match="neither 0 nor 20 among them, of 20 classes"):
        class_codes({"7", "9", "12"}, classes)


@pytest.mark.parametrize("labels", [{"1", "2"}, {"0", "1", "3"}])
def test_numbers_that_can_be_read_both_ways_are_refused(labels) -> None:
    with pytest.raises(UnusableFile, match=r"from 0 or from 1 with --first-class"):
        class_codes(labels, NAMES, "activitynet")
    assert class_codes(labels, NAMES, "activitynet", first=0).codes["1"] == 1
    assert class_codes(labels, NAMES, "activitynet", first=1).codes["1"] == 0


def test_lines_with_extensions_spaces_and_unknown_names(tmp_path) -> None:
    lines = [
        "a.webm 1 2 run 0.5", "v_a 3 4 Taichi chuan 0.25", "b\t5\t6\tTaichi chuan\t1e-3",
        "other video.mp4 1 2 run 0.9", "c 1 2 walk 0.1",
    ]  # fmt: skip
    found = read(tmp_path / "det.txt", "\ufeff" + "\r\n".join(lines))
    assert {v: rows.tolist() for v, rows in found.detections.items()} == {
        "a": [[1, 1, 2, 0.5], [2, 3, 4, 0.25]],
        "b": [[2, 5, 6, 0.001]],
        "other video.mp4": [[1, 1, 2, 0.9]],
    }
    assert found.notes == {"lines": 5, "lines_ignored": 1}
    assert (found.unknown_videos, found.unknown_classes) == (("other video.mp4",), ("walk",))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_any_system(tmp_path, newline, encoding) -> None:
    path = tmp_path / "det.txt"
    path.write_bytes(newline.join(["a 1 2 run 0.5", "", "b 3 4 jump 0.25", ""]).encode(encoding))
    found = match_detections(path, recognise(path, 3), manifest())
    assert {v: rows.tolist() for v, rows in found.detections.items()} == {
        "a": [[1, 1, 2, 0.5]], "b": [[0, 3, 4, 0.25]],
    }  # fmt: skip


def item(label="run", segment=(1, 2), score=0.5):
    return {"label": label, "segment": list(segment), "score": score}


def test_results_by_prefix_with_numbers_and_without_detections(tmp_path) -> None:
    content = {"results": {"v_a": [item(0), item(2, (3, 3), 7)], "b": [], "z": [item(0)]}}
    found = read(tmp_path / "r.json", content)
    assert {v: rows.tolist() for v, rows in found.detections.items()} == {
        "a": [[0, 1, 2, 0.5], [2, 3, 3, 7]], "b": [], "z": [[0, 1, 2, 0.5]],
    }  # fmt: skip
    assert found.rule == "numbers from 0" and found.unknown_videos == ("z",)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (item(segment=(3, 2)), r"segment \[3, 2\], expected \[start, end\]"),
        (item(segment=(3,)), "segment"),
        (item(segment=("1", 2)), "segment"),
        (item(segment=(1, float("nan"))), "segment"),
        (item(score=float("nan")), "score nan, expected a finite number"),
        (item(score="0.5"), "score '0.5'"),
        (item(score=True), "score True"),
        (item(label=None), "label None, expected the name or number"),
        (item(label=True), "label True"),
        ({"label": "run"}, "expected label, score and segment"),
        (7, "expected label, score and segment"),
    ],
)
def test_a_wrong_detection_is_named(tmp_path, wrong, said) -> None:
    with pytest.raises(ValueError, match=rf"r\.json: video 'b': detection 1: .*{said}"):
        read(tmp_path / "r.json", {"results": {"a": [item()], "b": [item(), wrong]}})


def test_two_entries_of_one_video_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="'a' and 'v_a' are one video, 'a'"):
        read(tmp_path / "r.json", {"results": {"v_a": [item()], "a": [item()]}})
