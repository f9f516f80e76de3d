"""Manifests read from tables and folders, and those of data sets as they are published."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Segment

Clips = Callable[..., Path]
"""Of a folder and names: writes empty files, gives the folder back."""


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[object]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# Charades

CHARADES = ["id", "subject", "script", "actions", "length"]


def test_charades_csv(tmp_path: Path, clips: Clips) -> None:
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


def test_kinetics_published(tmp_path: Path, clips: Clips) -> None:
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


def test_kinetics_folders(tmp_path: Path, clips: Clips) -> None:
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


def test_kinetics_table_of_files(tmp_path: Path, clips: Clips) -> None:
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


def test_labels_that_are_numbers_keep_their_order(tmp_path: Path, clips: Clips) -> None:
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
