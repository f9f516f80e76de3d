"""Folders as systems and downloaders leave them: what is found in them, and what is passed over."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from ssdet.data import Manifest, load_manifest
from ssdet.data.storage.folders import VideoFolder, is_noise, video_stems
from ssdet.data.video.image_folders import image_folder, stored_size

NOISE = ("._a.mp4", ".DS_Store", "Thumbs.db", "desktop.ini", "a.mp4.part", "b.mkv.crdownload", ".a")
NOISE_FOLDERS = ("@eaDir", "__MACOSX", ".git", "lost+found", "#recycle")


def kinetics(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("jump", "run"):
            (root / split / name).mkdir(parents=True)
            for clip in ("0.mp4", "1.MP4"):
                (root / split / name / clip).write_bytes(b"x")
    return root


def content(found: Manifest) -> list[tuple[str, str, int | None]]:
    return [(video.id, video.split, video.label) for video in found.videos]


def test_noise_changes_nothing(tmp_path: Path) -> None:
    root = kinetics(tmp_path)
    clean = load_manifest("kinetics", root)
    for folder in (root, root / "train", root / "train" / "run"):
        for name in NOISE:
            (folder / name).write_bytes(b"\0\5\x16\7")
        for name in NOISE_FOLDERS:
            (folder / name / "train").mkdir(parents=True)
            (folder / name / "0.mp4").mkdir()
    noisy = load_manifest("kinetics", root)
    assert noisy.classes == clean.classes and content(noisy) == content(clean)
    assert noisy.fingerprint == clean.fingerprint
    assert sum(noisy.notes.values()) == len(NOISE), "those beside clips are counted"
    files = VideoFolder(root / "train" / "run")
    assert files.find(["0"]) and not files.find(["a", "._a", "b", "@eaDir"])


def test_noise_beside_annotated_videos_is_counted(tmp_path: Path) -> None:
    for name in (*NOISE, "v.mp4"):
        (tmp_path / name).touch()
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"v": {"subset": "train", "duration": 1, "actions": []}}))
    found = load_manifest("segments", path, videos=tmp_path)
    assert found.notes["files passed over that systems and downloaders leave in folders"] == len(
        NOISE
    )


def test_folders_of_pictures(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"v-{number}.jpg").write_bytes(b"jpeg")
        (tmp_path / f"._v-{number}.jpg").write_bytes(b"\0\5\x16\7")
    assert len(image_folder(tmp_path).files) == 3
    assert stored_size(str(tmp_path)) == [3, 4, 4]


@pytest.mark.parametrize(
    "name",
    ["v.mp4", "v.MP4", "v.mp4.mkv", "v.mp4.webm", "v.m4v", "v.3gp", "v.mpg", "v.mpeg", "v.ts",
     "v.webm", "v.mov"],
)  # fmt: skip
def test_names_that_downloaders_give(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert VideoFolder(tmp_path).find(["v"]) == str(tmp_path / name)


def test_of_several_files_one_is_chosen_by_rule(tmp_path: Path) -> None:
    for name in ("v.webm", "v.mp4.mkv", "v.mkv", "v.mp4"):
        (tmp_path / name).touch()
    assert VideoFolder(tmp_path).find(["v"]).endswith("v.mp4")
    (tmp_path / "v.mp4").unlink()
    assert VideoFolder(tmp_path).find(["v"]).endswith("v.mkv")
    assert VideoFolder(tmp_path).find(["v.mp4"]).endswith("v.mp4.mkv")
    assert video_stems("v.tar.mp4") == ["v.tar"]


@pytest.mark.parametrize("here", ["NFC", "NFD"])
@pytest.mark.parametrize("annotated", ["NFC", "NFD"])
def test_either_form_of_unicode(here: str, annotated: str, tmp_path: Path) -> None:
    def form(text: str, kind: str) -> str:
        return unicodedata.normalize(kind, text)  # type: ignore[arg-type]

    names = ["걷기_01", "café_02", "ガラス_03", "plain_04"]
    videos = tmp_path / "v"
    videos.mkdir()
    for name in names:
        (videos / f"{form(name, here)}.mp4").touch()
    entry = {"subset": "training", "duration": 1, "actions": [[0, 0.2, 0.6]]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({form(name, annotated): entry for name in names}))
    found = load_manifest("segments", path, videos=videos)
    assert not found.missing and [v.id for v in found.videos] == names
    for split, kind in (("train", here), ("val", annotated)):
        (tmp_path / "k" / split / form("걷기", kind)).mkdir(parents=True)
        (tmp_path / "k" / split / form("걷기", kind) / f"{split}.mp4").touch()
    clips = load_manifest("kinetics", tmp_path / "k")
    assert clips.classes == ("걷기",) and [v.label for v in clips.videos] == [0, 0]


def test_dangling_links_are_missing_with_a_reason(tmp_path: Path) -> None:
    videos = tmp_path / "v"
    videos.mkdir()
    (videos / "a.mp4").touch()
    os.symlink("../.git/annex/objects/MD5E-s1.mp4", videos / "b.mp4")
    entry = {"subset": "training", "duration": 1, "actions": [[0, 0.2, 0.6]]}
    (tmp_path / "a.json").write_text(json.dumps(dict.fromkeys("abc", entry)))
    found = load_manifest("segments", tmp_path / "a.json", videos=videos)
    assert found.missing == ("b", "c") and found.fingerprint
    assert set(found.missing_reasons) == {"b"} and "link" in found.missing_reasons["b"]
    root = kinetics(tmp_path / "k")
    os.symlink("nowhere.mp4", root / "val" / "run" / "9.mp4")
    clips = load_manifest("kinetics", root)
    assert clips.missing == ("val/run/9",) and clips.missing_splits == ("val",)
    assert len(clips.videos) == 8


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    root = kinetics(tmp_path)
    odd = os.fsencode(root / "train" / "run") + b"/Stra\xdfe.mp4"
    Path(os.fsdecode(odd)).touch()
    found = load_manifest("kinetics", root)
    assert len(found.videos) == 9 and found.fingerprint
    assert any(os.fsencode(video.path) == odd for video in found.videos)


@pytest.mark.parametrize("name", ["a.mp4", "-ab_c.mp4", "_x.mkv", "partial.mp4", "lost.mp4"])
def test_data_are_no_noise(name: str) -> None:
    assert not is_noise(name)
