"""Manifests: what holds for every one, and how each annotation format is read."""

import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdet.data.manifest import Manifest, Segment, Video, load_manifest

NAMES = ("sit", "stand", "walk")


def manifest(videos: Sequence[Video], classes: tuple[str, ...] = NAMES, **more: Any) -> Manifest:
    return Manifest("toy", classes, tuple(videos), **more)


def clips(folder: Path, *names: str) -> Path:
    """Empty stand-ins: readers find files, they do not open them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[object]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
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


def test_fingerprint_is_of_the_data_not_of_the_place(tmp_path: Path) -> None:
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


def test_segments(tmp_path: Path) -> None:
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
        ({"v": entry([[0, "1", 2]])}, "'v'.*action"),
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


# Charades

CHARADES = ["id", "subject", "script", "actions", "length"]


def test_charades_csv(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "Charades_v1_train.csv",
        CHARADES,
        ["AAAAA", "S1", 'says "hi", leaves', "c092 11.90 21.20;c147 0.00 12.60", "24.83"],
    )
    test = write_csv(tmp_path / "Charades_v1_test.csv", CHARADES, ["BBBBB", "S2", "", "", "10"])
    both = load_manifest("charades", tmp_path)
    assert [(v.id, v.split, v.duration) for v in both.videos] == [
        ("AAAAA", "train", 24.83),
        ("BBBBB", "test", 10.0),
    ]
    assert both.videos[0].segments == (Segment(92, 11.9, 21.2), Segment(147, 0.0, 12.6))
    assert both.num_classes == 157 and both.classes[3] == "c003"
    assert load_manifest("charades", test).videos == both.split("test").videos
    folder = clips(tmp_path / "videos", "BBBBB.mp4")
    assert load_manifest("charades", tmp_path, videos=folder).missing == ("AAAAA",)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["A", "", "", "c200 1 2", "9"], "'A'.*c200"),
        (["A", "", "", "c001 1", "9"], "'A'.*c001 1"),
        (["A", "", "", "c001 one 2", "9"], "'A': start: 'one'"),
        (["A", "", "", "c001 1 inf", "9"], "'A'"),
        (["A", "", "", "", "nan"], "'A'"),
        (["A", "", "", "", ""], "'A': length"),
        (["../A", "", "", "", "9"], "inside the video folder"),
        (["A", "", ""], "line 2"),
    ],
)
def test_hostile_charades_csv(row: list[str], words: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "my_train.csv", CHARADES, row)
    with pytest.raises(ValueError, match=words):
        load_manifest("charades", path)


def test_charades_csv_tells_its_split_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train or test"):
        load_manifest("charades", write_csv(tmp_path / "x.csv", CHARADES))


# Clips with one label

PUBLISHED = ["label", "youtube_id", "time_start", "time_end", "split"]


def test_kinetics_published(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "kinetics.csv",
        PUBLISHED,
        ["zip lining", "aaaaaaaaaaa", 3, 13, "train"],
        ["abseiling", "bbbbbbbbbbb", 0, 10, "validate"],
        ["abseiling", "-ccccccccc_", 5, 15, "train"],
        ["abseiling", "-ccccccccc_", 90, 100, "test"],
        ["abseiling", "ddddddddddd", 0, 10, "train"],
    )
    folder = clips(
        tmp_path / "videos",
        "train/zip_lining/aaaaaaaaaaa_000003_000013.mp4",
        "bbbbbbbbbbb.mkv",
        "abseiling/-ccccccccc__000005_000015.mp4",
        "test/-ccccccccc__000090_000100.mp4",
    )
    found = load_manifest("kinetics", path, videos=folder)
    assert found.classes == ("abseiling", "zip lining")
    names = [(Path(v.path).relative_to(folder).as_posix(), v.label, v.split) for v in found.videos]
    assert names == [
        ("train/zip_lining/aaaaaaaaaaa_000003_000013.mp4", 1, "train"),
        ("bbbbbbbbbbb.mkv", 0, "val"),
        ("abseiling/-ccccccccc__000005_000015.mp4", 0, "train"),
        ("test/-ccccccccc__000090_000100.mp4", 0, "test"),
    ]
    assert found.missing == ("ddddddddddd_000000_000010",)
    assert load_manifest("kinetics", path, folder, split="val").missing == ()
    assert {video.duration for video in found.videos} == {10.0}


def test_kinetics_folders(tmp_path: Path) -> None:
    folder = clips(tmp_path / "k", "walk/1.mp4", "walk/2.avi", "sit/1.mp4", "sit/note.txt")
    (folder / ".cache").mkdir()
    found = load_manifest("kinetics", folder)
    assert found.classes == ("sit", "walk")
    assert [(v.id, v.label, v.split) for v in found.videos] == [
        ("sit/1", 0, "train"),
        ("walk/1", 1, "train"),
        ("walk/2", 1, "train"),
    ]
    deep = clips(tmp_path / "d", "train/walk/1.mp4", "validation/sit/1.mp4")
    found = load_manifest("kinetics", deep)
    assert [(v.id, v.label, v.split) for v in found.videos] == [
        ("train/walk/1", 1, "train"),
        ("validation/sit/1", 0, "val"),
    ]
    (tmp_path / "none" / "class").mkdir(parents=True)
    with pytest.raises(ValueError, match="no videos"):
        load_manifest("kinetics", tmp_path / "none")


def test_kinetics_table_of_files(tmp_path: Path) -> None:
    folder = clips(tmp_path / "videos", "0_1_4.avi", "0_1_4.mp4", "x/1.mp4")
    path = write_csv(
        tmp_path / "clips.csv",
        ["file", "label", "split"],
        ["0_1_4.avi", "punch", "train"],
        ["x/1.mp4", "kick", "test"],
        ["x/2.mp4", "kick", "test"],
    )
    found = load_manifest("kinetics", path, videos=folder)
    assert found.classes == ("kick", "punch")
    assert [(v.id, v.label, v.split, Path(v.path).name) for v in found.videos] == [
        ("0_1_4", 1, "train", "0_1_4.avi"),
        ("x/1", 0, "test", "1.mp4"),
    ]
    assert found.missing == ("x/2",)
    (tmp_path / "classes.txt").write_text("punch\nkick\n")
    write_csv(path, ["file", "label"], ["0_1_4.avi", "1"], ["x/1.mp4", "punch"])
    found = load_manifest("kinetics", path, videos=folder)
    assert [(v.label, v.split) for v in found.videos] == [(1, "train"), (0, "train")]


def test_labels_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    rows = [[f"{k}.mp4", k] for k in (10, 9, 0)]
    clips(tmp_path, *(row[0] for row in rows))
    found = load_manifest("kinetics", write_csv(tmp_path / "a.csv", ["file", "label"], *rows))
    assert found.classes == ("0", "9", "10")


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        (PUBLISHED, ["a", "../x", 0, 10, "train"], "inside the video folder"),
        (PUBLISHED, ["../a", "x", 0, 10, "train"], "inside the video folder"),
        (PUBLISHED, ["a", "x", "", 10, "train"], "line 2: time_start"),
        (PUBLISHED, ["a", "x", 10, 0, "train"], "line 2"),
        (PUBLISHED, ["a", "x", "nan", 3, "train"], "line 2"),
        (PUBLISHED, ["a", "x", 0, 10, "more"], "line 2.*split 'more'"),
        (["file", "label"], ["/etc/passwd", "a"], "inside the video folder"),
        (["file", "label"], ["a.mp4"], "line 2"),
        (["name", "label"], ["a.mp4", "a"], "columns"),
        ([], [], "columns"),
    ],
)
def test_hostile_tables(header: list, row: list, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        load_manifest("kinetics", write_csv(tmp_path / "a.csv", header, row))


def test_label_without_class(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("punch\nkick\n")
    path = write_csv(tmp_path / "a.csv", ["file", "label"], ["a.mp4", "hug"])
    with pytest.raises(ValueError, match="line 2: class 'hug'"):
        load_manifest("kinetics", path)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'avi'.*charades"):
        load_manifest("avi", tmp_path)


# The real thing


def test_charades_as_published(shared_data: Path) -> None:
    """Counts of the specification, sections 1.5 and 9; JSON and CSV say the same."""
    folder = shared_data / "annotations"
    found = load_manifest("charades", folder / "charades.json")
    assert found.num_classes == 157 and found.classes[156] == "Someone is eating something"
    assert [len(found.split(name).videos) for name in ("train", "test")] == [7985, 1863]
    assert sorted(found.notes.values()) == [7, 19623]
    instances = [sum(len(v.segments) for v in found.split(s).videos) for s in ("train", "test")]
    assert sum(instances) == 49_809 + 16_691 - 7
    without = [sum(not v.segments for v in found.split(s).videos) for s in ("train", "test")]
    assert without == [174, 49]
    tables = load_manifest("charades", folder)
    by_id = {video.id: video for video in tables.videos}
    assert len(by_id) == len(found.videos)
    for video in found.videos:
        twin = by_id[video.id]
        assert (video.split, video.duration) == (twin.split, twin.duration)
        assert sorted(map(repr, video.segments)) == sorted(map(repr, twin.segments))


def test_charades_dense_labels(shared_data: Path) -> None:
    """Share of test frames with no, one, several labels at 24 fps (specification, section 3)."""
    test = load_manifest("charades", shared_data / "annotations" / "charades.json", split="test")
    counts = np.zeros(3, int)
    for video in test.videos:
        assert video.duration is not None
        frames = int(video.duration * 24)
        if frames >= 162:
            labels = test.frame_targets(video, frames, frames / video.duration).sum(0)
            counts += np.bincount(np.minimum(labels, 2), minlength=3)
    assert counts.sum() == pytest.approx(1_282_247, rel=1e-3)
    assert 100 * counts / counts.sum() == pytest.approx([7.81, 10.26, 81.93], abs=0.05)


def test_multithumos_as_published(shared_data: Path) -> None:
    found = load_manifest("multithumos", shared_data / "annotations" / "multithumos.json")
    assert [len(found.split(name).videos) for name in ("train", "test")] == [200, 213]
    assert sum(len(video.segments) for video in found.videos) == 18_482 + 20_208 - 7
    assert sorted(found.notes.values()) == [7, 65]
    labels = {segment.label for video in found.videos for segment in video.segments}
    assert labels == set(range(65))


def test_fir_action(shared_data: Path) -> None:
    folder = shared_data / "video" / "fir-action"
    found = load_manifest("segments", folder / "annotations.json", videos=folder)
    assert [len(found.split(name).videos) for name in ("train", "test")] == [6, 2]
    assert found.num_classes == 9 and not found.missing and not found.notes


def test_ut_interaction_by_a_table(shared_data: Path, tmp_path: Path) -> None:
    """Clips named INDEX_SEQUENCE_CLASS.avi, split by sequence, left where they are."""
    folder = shared_data / "video" / "ut-interaction"
    rows = [
        [
            file.name,
            file.stem.split("_")[2],
            "test" if int(file.stem.split("_")[1]) > 8 else "train",
        ]
        for file in sorted(folder.glob("*.avi"))
    ]
    path = write_csv(tmp_path / "ut.csv", ["file", "label", "split"], *rows)
    found = load_manifest("kinetics", path, videos=folder)
    assert len(found.videos) == 158 and not found.missing
    assert found.classes == tuple("0123456")
    assert np.bincount([video.label or 0 for video in found.videos]).tolist() == [10] * 6 + [98]
