"""Manifests: what holds for every one, and how segments are read from JSON."""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest, Segment, Video

NAMES = ("sit", "stand", "walk")
Clips = Callable[..., Path]
"""Of a folder and names: writes empty files, gives the folder back."""


def manifest(videos: Sequence[Video], classes: tuple[str, ...] = NAMES, **more: Any) -> Manifest:
    return Manifest("toy", classes, tuple(videos), **more)


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def entry(actions: object = (), subset: object = "training", duration: object = 10.0) -> dict:
    return {"subset": subset, "duration": duration, "actions": actions}


# What holds for every manifest


@given(
    segments=st.lists(
        st.tuples(st.integers(0, 2), st.floats(-2, 12), st.floats(0.01, 9)), max_size=6
    ),
    frames=st.integers(1, 60),
    fps=st.sampled_from([1.0, 5.0, 24.0, 29.97]),
)
def test_frame_targets_follow_the_dense_rule(
    segments: list[tuple[int, float, float]], frames: int, fps: float
) -> None:
    found = tuple(Segment(label, start, start + more) for label, start, more in segments)
    video = Video("v", "", "train", segments=found)
    expected = [
        [any(s.label == k and s.start < f / fps < s.end for s in found) for f in range(frames)]
        for k in range(3)
    ]
    targets = manifest([video]).frame_targets(video, frames, fps)
    assert targets.dtype == bool
    assert targets.tolist() == expected


def test_borders_are_outside_and_clip_labels_everywhere() -> None:
    long = Video("a", "", "train", segments=(Segment(1, 0.2, 0.6),))
    clip = Video("b", "", "train", label=2)
    both = manifest([long, clip])
    assert np.flatnonzero(both.frame_targets(long, 10, 10.0)[1]).tolist() == [3, 4, 5]
    assert both.frame_targets(clip, 4, 25.0).tolist() == [[False] * 4, [False] * 4, [True] * 4]


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([Video("a", "", "train"), Video("a", "", "test")], "'a' is there twice"),
        ([Video("a", "", "train", label=3)], "class 3, expected 0 to 2"),
        ([Video("a", "", "train", label=-1)], "class -1"),
        ([Video("a", "", "train", segments=(Segment(7, 0, 1),))], "'a': class 7"),
        ([Video("a", "", "train", duration=float("nan"))], "'a': duration nan"),
        ([Video("a", "", "train", duration=0.0)], "duration 0.0"),
    ],
)
def test_inconsistent_manifests_are_refused(videos: list[Video], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifest(videos)


@pytest.mark.parametrize("times", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_segments_have_a_length(times: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="start < end"):
        Segment(0, *times)


def test_split_keeps_what_belongs_to_it() -> None:
    videos = [Video("a", "", "train"), Video("b", "", "test"), Video("c", "", "train")]
    whole = manifest(videos, missing=("d", "e"), missing_splits=("test", "train"))
    assert [video.id for video in whole.split("training").videos] == ["a", "c"]
    assert whole.split("test").missing == ("d",)
    assert whole.split("val").videos == ()
    with pytest.raises(ValueError, match="'holdout'"):
        whole.split("holdout")
    assert pickle.loads(pickle.dumps(whole)) == whole


def test_fingerprint_is_of_the_data_not_of_the_place(tmp_path: Path, clips: Clips) -> None:
    prints = []
    for name in ("here", "there"):
        folder = clips(tmp_path / name, "sit/a.mp4", "walk/b.mp4")
        prints.append(load_manifest("kinetics", folder).fingerprint)
    assert prints[0] == prints[1]
    (tmp_path / "there" / "sit" / "a.mp4").write_bytes(b"longer than it was")
    assert load_manifest("kinetics", tmp_path / "there").fingerprint != prints[0]


BASE = Video("a", "", "train", 1, (Segment(0, 0.0, 1.0),), 5.0)
CHANGES = [
    ([Video("b", "", "train", 1, (Segment(0, 0.0, 1.0),), 5.0)], NAMES),
    ([Video("a", "", "test", 1, (Segment(0, 0.0, 1.0),), 5.0)], NAMES),
    ([Video("a", "", "train", 0, (Segment(0, 0.0, 1.0),), 5.0)], NAMES),
    ([Video("a", "", "train", 1, (Segment(0, 0.0, 1.01),), 5.0)], NAMES),
    ([Video("a", "", "train", 1, (), 5.0)], NAMES),
    ([Video("a", "", "train", 1, (Segment(0, 0.0, 1.0),))], NAMES),
    ([BASE], ("sit", "stand", "run")),
    ([BASE, Video("b", "", "train")], NAMES),
]


@pytest.mark.parametrize(("videos", "classes"), CHANGES)
def test_fingerprint_changes_with_every_part(videos: list[Video], classes: tuple[str, ...]) -> None:
    assert manifest(videos, classes).fingerprint != manifest([BASE]).fingerprint


# Segments in JSON


def test_segments(tmp_path: Path, clips: Clips) -> None:
    path = write_json(
        tmp_path / "notes.json",
        {
            "b": entry([[1, 0, 2.5], ["walk", 1, 12]]),
            "a.1": entry([], "testing", 4),
            "gone": entry([[0, 3, 3], [0, 4, 2], [0, 1, 2]], "validation"),
        },
    )
    (tmp_path / "classes.txt").write_text("sit\nstand\nwalk\n")
    folder = clips(tmp_path / "videos", "b.webm", "b.avi", "b.txt", "a.1.MP4", "other.mp4")
    found = load_manifest("segments", path, videos=folder)
    assert found.name == "notes"
    assert found.classes == NAMES and found.num_classes == 3
    assert [(v.id, v.split, v.duration) for v in found.videos] == [
        ("b", "train", 10.0),
        ("a.1", "test", 4.0),
    ]
    assert found.videos[0].segments == (Segment(1, 0.0, 2.5), Segment(2, 1.0, 12.0))
    assert [Path(v.path).relative_to(folder).as_posix() for v in found.videos] == [
        "b.avi",
        "a.1.MP4",
    ]
    assert found.missing == ("gone",)
    assert sorted(found.notes.values()) == [1, 2]
    assert load_manifest("segments", path, folder, split="val").missing == ("gone",)
    alone = load_manifest("segments", path)
    assert len(alone.videos) == 3 and not alone.missing and alone.videos[2].path == ""
    assert alone.videos[2].segments == (Segment(0, 1.0, 2.0),)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sit\nstand up\n", ("sit", "stand up")),
        ("c000 sit\nc001 stand up\n", ("sit", "stand up")),
        ("0 sit\n1 stand up\n\n", ("sit", "stand up")),
        ("1 sit\n2 stand up", ("sit", "stand up")),
        ("3 point shot\n2 hands", ("3 point shot", "2 hands")),
    ],
)
def test_class_names(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    path = write_json(tmp_path / "a.json", {"a": entry([[1, 0, 1]])})
    assert load_manifest("segments", path).classes == names


@pytest.mark.parametrize("text", ["", "a\n\nb", "a\na\n"])
def test_class_names_must_be_distinct(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.txt"):
        load_manifest("segments", write_json(tmp_path / "a.json", {}))


def test_numbered_classes_are_noted(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": entry([[2, 0, 1]]), "b": entry([[0, 0, 1]])})
    found = load_manifest("segments", path)
    assert found.num_classes == 3
    assert list(found.notes.values()) == [3]


NAN = float("nan")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "list"),
        ({"v": 3}, "'v'.*int"),
        ({"v": entry(subset="train") | {"subset": 3}}, "'v'.*subset"),
        ({"v": entry(subset="other")}, "'v'.*split 'other'"),
        ({"v": entry(duration="long")}, "'v'.*duration"),
        ({"v": entry(duration=NAN)}, "'v'.*duration"),
        ({"v": entry(duration=-1)}, "'v'.*duration"),
        ({"v": entry(duration=True)}, "'v'.*duration"),
        ({"v": entry(duration=10**400)}, "'v'.*duration"),
        ({"v": {"subset": "train", "duration": 1}}, "'v'.*actions"),
        ({"v": entry({"a": 1})}, "'v'.*actions"),
        ({"v": entry([[0, 1]])}, "'v'.*action"),
        ({"v": entry([5])}, "'v'.*action"),
        ({"v": entry([[0, "1,5", 2]])}, "'v'.*action"),
        ({"v": entry([[0, NAN, 2]])}, "'v'.*action"),
        ({"v": entry([[0, 1, None]])}, "'v'.*action"),
        ({"v": entry([[9, 1, 2]])}, "'v'.*class 9"),
        ({"v": entry([[-1, 1, 2]])}, "'v'.*class -1"),
        ({"v": entry([[True, 1, 2]])}, "'v'.*class True"),
        ({"v": entry([[0.5, 1, 2]])}, "'v'.*class 0.5"),
        ({"v": entry([[[], 1, 2]])}, r"'v'.*class \[\]"),
        ({"v": entry([["fly", 1, 2]])}, "'v'.*class 'fly'"),
    ],
)
def test_hostile_json_names_video_and_field(content: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match=words) as caught:
        load_manifest("segments", path)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\udcff", '{"v": ' * 99_999]
)
def test_broken_json_names_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.json"):
        load_manifest("segments", path)


def test_class_numbers_without_names_are_bounded(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": entry([[10**12, 0, 1]])})
    with pytest.raises(ValueError, match="class 1000000000000"):
        load_manifest("segments", path)
    path = write_json(tmp_path / "b.json", {"a": entry([["sit", 0, 1]])})
    with pytest.raises(ValueError, match=r"classes\.txt"):
        load_manifest("segments", path)


ESCAPES = ["../../etc/x", "/etc/x", "..", "", "a/../../b", "C:\\x", "..\\x", "a\0b"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("given_folder", [True, False])
def test_ids_stay_in_the_video_folder(name: str, given_folder: bool, tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {name: entry([[0, 0, 1]])})
    with pytest.raises(ValueError, match="inside the video folder"):
        load_manifest("segments", path, videos=tmp_path if given_folder else None)


def test_no_video_folder(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"v": entry([[0, 0, 1]])})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_manifest("segments", path, videos=tmp_path / "nowhere")


def test_multithumos_counts_from_one(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.json", {"v": entry([[1, 0, 1], [65, 0, 1]])})
    found = load_manifest("multithumos", path)
    assert [segment.label for segment in found.videos[0].segments] == [0, 64]
    assert found.num_classes == 65
    for wrong in (0, 66):
        with pytest.raises(ValueError, match=f"class {wrong}"):
            load_manifest("multithumos", write_json(path, {"v": entry([[wrong, 0, 1]])}))


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'avi'.*charades"):
        load_manifest("avi", tmp_path)
