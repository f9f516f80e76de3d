"""Kinetics as it lies on disks: published lists, the common mirrors, text lists, hostile rows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest

Clips = Callable[..., Path]
HEADER = "label,youtube_id,time_start,time_end,split\n"
TRAIN = (
    HEADER
    + "zip lining,aaaaaaaaaaa,3,13,train\npassing American football (in game),b-_,0,10,train\n"
)
VAL = HEADER + "zip lining,ccccccccccc,0,10,validate\n"
FIRST, SECOND, THIRD = "aaaaaaaaaaa_000003_000013", "b-__000000_000010", "ccccccccccc_000000_000010"


def published(folder: Path, val: str = "validate.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_text(TRAIN)
    (folder / val).write_text(VAL)
    return folder


def places(manifest: Manifest, root: Path) -> list[tuple[str, str]]:
    return [(v.split, Path(v.path).relative_to(root).as_posix()) for v in manifest.videos]


def test_the_folder_of_published_lists_is_one_data_set(tmp_path: Path, clips: Clips) -> None:
    folder = published(tmp_path / "kinetics400")
    videos = clips(tmp_path / "clips", f"{FIRST}.mp4", f"{THIRD}.webm")
    found = load_manifest("kinetics", folder, videos=videos)
    assert found.name == "kinetics400"
    assert found.classes == ("passing American football (in game)", "zip lining")
    assert [(v.id, v.label, v.split) for v in found.videos] == [
        (FIRST, 1, "train"),
        (THIRD, 1, "val"),
    ]
    assert found.split("train").missing == (SECOND,) and found.split("val").missing == ()
    both = [folder / "validate.csv", folder / "train.csv"]
    again = load_manifest("kinetics", both, videos=videos)
    assert {v.id for v in again.videos} == {v.id for v in found.videos}
    assert again.classes == found.classes


def test_flat_mirror_with_annotations_beside_and_replacements(tmp_path: Path, clips: Clips) -> None:
    """The CVDF mirror: clips by split, broken ones once more in a folder of replacements."""
    published(tmp_path / "annotations", "val.csv")
    better = f"replacement/replacement_for_corrupted_k400/{SECOND}.mp4"
    clips(tmp_path, f"train/{FIRST}.mp4", f"train/{SECOND}.mp4", f"val/{THIRD}.mp4", better)
    expected = [("train", f"train/{FIRST}.mp4"), ("train", better), ("val", f"val/{THIRD}.mp4")]
    for path in (tmp_path, [tmp_path / "annotations" / f"{s}.csv" for s in ("train", "val")]):
        found = load_manifest("kinetics", path)
        assert places(found, tmp_path) == expected and not found.missing


@pytest.mark.parametrize("top", ["train", "videos_train", "train_256", ""])
@pytest.mark.parametrize(
    "named", [str, lambda c: c.replace(" ", "_"),
              lambda c: c.replace(" ", "_").replace("(", "-").replace(")", "-")]
)  # fmt: skip
def test_class_folders(top: str, named: Callable[[str], str], tmp_path: Path, clips: Clips) -> None:
    folder = published(tmp_path / "lists")
    football = named("passing American football (in game)")
    file = "/".join(filter(None, (top, football, f"{SECOND}.mp4")))
    videos = clips(tmp_path / "videos", file)
    found = load_manifest("kinetics", folder / "train.csv", videos=videos)
    assert places(found, videos) == [("train", file)] and found.missing == (FIRST,)


def test_class_folders_without_a_list(tmp_path: Path, clips: Clips) -> None:
    clips(tmp_path, "videos_train/zip_lining/1.mp4", "videos_val/abseiling/2.mp4", "annotations/x")
    found = load_manifest("kinetics", tmp_path)
    assert found.classes == ("abseiling", "zip_lining")
    assert [(v.split, v.label) for v in found.videos] == [("train", 1), ("val", 0)]


LISTS = {
    "kinetics400_train_list_videos.txt": "zip_lining/a.mp4 2\nabseiling/b c.mp4\t0\n",
    "kinetics400_val_list_videos.txt": "zip_lining/d.mp4 2\n\n",
}


def lists(folder: Path, **names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (LISTS | names).items():
        (folder / name).write_text(text)
    return folder


def test_text_lists(tmp_path: Path, clips: Clips) -> None:
    folder = lists(tmp_path / "kinetics400")
    clips(folder, "videos_train/zip_lining/a.mp4", "videos_train/abseiling/b c.mp4",
          "videos_val/zip_lining/d.mp4")  # fmt: skip
    found = load_manifest("kinetics", folder)
    assert [(v.id, v.split, v.label) for v in found.videos] == [
        ("zip_lining/a", "train", 2),
        ("abseiling/b c", "train", 0),
        ("zip_lining/d", "val", 2),
    ]
    assert found.classes == ("abseiling", "class 1", "zip_lining")
    names = folder / "label_map_k400.txt"
    names.write_text("abseiling\nair drumming\nzip lining\n")
    assert load_manifest("kinetics", folder).classes == ("abseiling", "air drumming", "zip lining")
    alone = load_manifest("kinetics", folder / "kinetics400_val_list_videos.txt")
    assert [v.label for v in alone.videos] == [2] and len(alone.classes) == 3
    names.unlink()
    (folder / "kinetics400_val_list_videos.txt").write_text("abseiling/d.mp4 2\n")
    assert load_manifest("kinetics", folder).classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "test.csv",
            "youtube_id,time_start,time_end,split\na,0,10,test\n",
            "test.csv.*without labels",
        ),
        ("test.csv", HEADER + ",aaaaaaaaaaa,3,13,test\n", "test.csv: line 2: no label"),
        ("k400_test_list.txt", "a/b.mp4\n", "k400_test_list.txt: line 1: no label.*leave it out"),
        ("k400_test_list.txt", "a/b.mp4 -1\n", "line 1: no label"),
        ("k400_test_list.txt", "a/b 300 4\n", "expected two columns"),
        ("k400_test_list.txt", "\n", "no line 'path number'"),
        ("k400_test_list.txt", "/data/b.mp4 4\n", "path '/data/b.mp4' leads out"),
        ("k400_test_list.txt", "../b.mp4 4\n", "leads out"),
        ("k400_test_list.txt", "b.mp4 99999999\n", "class 99999999"),
        ("k400_test_list.txt", b"\xff\xfe.mp4 4\n", "k400_test_list.txt: not UTF-8"),
        ("test.csv", b"file,label\n\xff.mp4,4\n", "test.csv: line"),
        ("test.csv", "file,label,file\na,b,c\n", "distinct names"),
        ("list.txt", "a.mp4 4\n", "train, val or test in the file's name"),
    ],
)
def test_lists_that_do_not_hold_together(
    name: str, text: str | bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        load_manifest("kinetics", path)


def test_an_unlabelled_list_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    folder = published(tmp_path)
    (folder / "test.csv").write_text("youtube_id,time_start,time_end,split\na,0,10,test\n")
    with pytest.raises(ValueError, match=r"test\.csv.*without labels.*leave it out"):
        load_manifest("kinetics", folder)
    assert (
        len(load_manifest("kinetics", [folder / "train.csv", folder / "validate.csv"]).missing) == 3
    )


def test_twins_are_named_with_both_places(tmp_path: Path) -> None:
    folder = published(tmp_path)
    (folder / "validate.csv").write_text(VAL + "zip lining,aaaaaaaaaaa,3,13,validate\n")
    words = r"validate\.csv: line 3: video 'aaaaaaaaaaa_000003_000013'.*train\.csv: line 2"
    with pytest.raises(ValueError, match=words):
        load_manifest("kinetics", folder)


def test_two_lists_of_a_split_are_not_guessed_between(tmp_path: Path) -> None:
    folder = lists(published(tmp_path))
    with pytest.raises(ValueError, match="two lists for train"):
        load_manifest("kinetics", folder)


def test_the_name_of_a_list_tells_its_split(tmp_path: Path, clips: Clips) -> None:
    (tmp_path / "my_val.csv").write_text("file,label\na.mp4,x\n")
    clips(tmp_path, "a.mp4")
    assert load_manifest("kinetics", tmp_path).videos[0].split == "val"
    (tmp_path / "my_val.csv").rename(tmp_path / "interval.csv")
    assert load_manifest("kinetics", tmp_path / "interval.csv").videos[0].split == "train"


def test_one_annotation_where_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 annotations given, multithumos is one file"):
        load_manifest("multithumos", [tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(ValueError, match="no annotation"):
        load_manifest("kinetics", [])
