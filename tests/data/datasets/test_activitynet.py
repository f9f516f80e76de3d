"""Annotations in the layout of ActivityNet, and what every reader of segments refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Segment

Clips = Callable[..., Path]
TAXONOMY = [
    {"nodeId": 0, "nodeName": "Root", "parentId": None, "parentName": None},
    {"nodeId": 1, "nodeName": "Sports", "parentId": 0, "parentName": "Root"},
    {"nodeId": 3, "nodeName": "Zumba", "parentId": 1, "parentName": "Sports"},
    {"nodeId": 2, "nodeName": "Archery", "parentId": 1, "parentName": "Sports"},
    {"nodeId": 4, "nodeName": "Never seen", "parentId": 1, "parentName": "Sports"},
]


def entry(*actions: Any, subset: Any = "training", duration: Any = 30.5) -> dict[str, Any]:
    annotations = [{"segment": [start, end], "label": label} for label, start, end in actions]
    return {"subset": subset, "duration": duration, "annotations": annotations, "url": "x"}


def write(folder: Path, database: Any, **more: Any) -> Path:
    path = folder / "anet.json"
    path.write_text(json.dumps({"version": "1.3", "database": database, **more}))
    return path


def test_activitynet(tmp_path: Path, clips: Clips) -> None:
    path = write(
        tmp_path,
        {
            "aaa": entry(("Zumba", 1, 4.5), ("Archery", 0, 31)),
            "bbb": entry(("Zumba", 5, 5), subset="validation"),
            "ccc": entry(subset="Testing"),
            "ddd": entry(subset="training"),
        },
        taxonomy=TAXONOMY,
    )
    videos = clips(tmp_path / "videos", "v_aaa.mp4", "bbb.mkv")
    found = load_manifest("activitynet", path, videos=videos)
    assert found.classes == ("Archery", "Never seen", "Zumba")
    assert [(v.id, v.split, v.duration, Path(v.path).name) for v in found.videos] == [
        ("aaa", "train", 30.5, "v_aaa.mp4"),
        ("bbb", "val", 30.5, "bbb.mkv"),
    ]
    assert found.videos[0].segments == (Segment(2, 1.0, 4.5), Segment(0, 0.0, 31.0))
    assert found.videos[1].segments == () and found.videos[1].left_out == 1
    assert found.missing == ("ddd",), "videos without actions stay, unlabelled test videos do not"
    assert sorted(found.notes.values()) == [1, 1, 1]


def test_classes_without_a_taxonomy(tmp_path: Path) -> None:
    labelled = entry(("b", 1, 2), subset="test")
    path = write(tmp_path, {"x": entry(("c", 1, 2), ("a", 1, 2)), "y": labelled})
    found = load_manifest("activitynet", path)
    assert found.classes == ("a", "b", "c")
    assert [v.split for v in found.videos] == ["train", "test"], "labelled test videos stay"
    (tmp_path / "classes.txt").write_text("c\nb\na\n")
    assert load_manifest("activitynet", path).videos[0].segments[0].label == 0


HOSTILE = [
    ({"v": 3}, "'v'.*int"),
    ({"v": entry(subset=3)}, "'v'.*subset 3"),
    ({"v": entry(subset="holdout")}, "'v'.*split 'holdout'"),
    ({"v": entry(duration=None)}, "'v'.*duration None"),
    ({"v": entry(duration=-1)}, "'v'.*duration -1"),
    ({"v": entry(duration=10**400)}, "'v'.*duration 1000"),
    ({"v": {"subset": "training", "duration": 3}}, "'v'.*annotations NoneType"),
    ({"v": {"subset": "training", "duration": 3, "annotations": [3]}}, "'v'.*annotation 3"),
    (
        {"v": {"subset": "training", "duration": 3, "annotations": [{"segment": [1, 2]}]}},
        "'v'.*expected segment and label",
    ),
    (
        {"v": {"subset": "training", "duration": 3, "annotations": [{"segment": 1, "label": "a"}]}},
        "'v'.*segment 1",
    ),
    ({"v": entry(("a", "1:30", 2))}, "'v'.*seconds"),
    ({"v": entry(("a", float("nan"), 2))}, "'v'.*seconds"),
    ({"v": entry(("a", -1.5, 2))}, "'v'.*start -1.5, expected 0 s or later"),
    ({"v": entry((3, 1, 2))}, "'v'.*label 3"),
    ({"v": entry(("fly", 1, 2))}, "'v'.*class 'fly'.*2 classes.*a to b"),
    ({"../v": entry()}, "inside the video folder"),
    ([], "database list"),
]


@pytest.mark.parametrize(("database", "words"), HOSTILE)
def test_hostile_entries(database: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=words) as caught:
        load_manifest("activitynet", write(tmp_path, database))
    assert "anet.json" in str(caught.value)


@pytest.mark.parametrize("taxonomy", ["Root", [3], [{"nodeName": 5}], {"a": 1}])
def test_hostile_taxonomies(taxonomy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"anet\.json: taxonomy"):
        load_manifest("activitynet", write(tmp_path, {}, taxonomy=taxonomy))


def test_no_action_begins_long_before_its_video(tmp_path: Path) -> None:
    """A little is allowed: borders are outside, and the first frame is shown at 0 s."""
    path = tmp_path / "a.json"
    video = {"subset": "training", "duration": 9, "actions": [[0, -3, 2]]}
    path.write_text(json.dumps({"v": video}))
    with pytest.raises(ValueError, match=r"a\.json: video 'v'.*start -3, expected 0 s or later"):
        load_manifest("segments", path)
    video["actions"] = [[0, -0.04, 2]]
    path.write_text(json.dumps({"v": video}))
    found = load_manifest("segments", path)
    assert found.frame_targets(found.videos[0], 4, 1.0).tolist() == [[True, True, False, False]]


def test_text_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("Öffnen\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt: not UTF-8"):
        load_manifest("segments", write(tmp_path, {}))


def test_charades_twins_and_lengths(tmp_path: Path) -> None:
    header = "id,actions,length\n"
    train, test = tmp_path / "Charades_v1_train.csv", tmp_path / "Charades_v1_test.csv"
    train.write_text(header + "AAAAA,c000 1 2,9\n")
    test.write_text(header + "AAAAA,,9\n")
    with pytest.raises(ValueError, match=r"test\.csv: video 'AAAAA' is there twice.*train\.csv"):
        load_manifest("charades", tmp_path)
    test.write_text(header + "BBBBB,,-9\n")
    with pytest.raises(ValueError, match=r"test\.csv: video 'BBBBB': length -9\.0"):
        load_manifest("charades", [train, test])
    test.write_text(header + "BBBBB,c157 0 1,9\n")
    with pytest.raises(ValueError, match=r"'BBBBB': class 'c157'.*157 classes.*c000 to c156"):
        load_manifest("charades", [train, test])
