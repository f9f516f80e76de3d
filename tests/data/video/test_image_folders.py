"""Videos that are folders of numbered JPEG files, read as any other video."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Video
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.frame_readers import Decoder, dense_targets
from ssdet.data.video.image_folders import decode_jpeg
from ssdet.data.video.reader import CorruptVideo, probe, read_clip


def picture(number: int, size: tuple[int, int] = (40, 64)) -> Image.Image:
    """A grey that tells the number, with a light left edge."""
    pixels = np.full((*size, 3), 6 * number + 10, np.uint8)
    pixels[:, : size[1] // 4] = 250
    return Image.fromarray(pixels)


def folder_of(
    path: Path, numbers: Sequence[int] = range(1, 31), form: str = "YSKX3-{:06d}.jpg"
) -> Path:
    path.mkdir(parents=True)
    for number in numbers:
        picture(number).save(path / form.format(number), quality=95)
    return path


def numbers_in(clip_THWC: np.ndarray) -> list[int]:
    return [round((float(frame[:, -8:].mean()) - 10) / 6) for frame in clip_THWC]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("rgb") / "YSKX3")


def test_frames_are_told_by_their_numbers(frames: Path) -> None:
    clip = read_clip(frames, [4, 0, 29, 0])
    assert clip.shape == (4, 40, 64, 3) and clip.dtype == np.uint8
    assert numbers_in(clip) == [5, 1, 30, 1]
    stored = [np.asarray(Image.open(frames / f"YSKX3-{n:06d}.jpg")) for n in (5, 1, 30, 1)]
    assert np.abs(clip.astype(int) - np.stack(stored)).max() <= 3
    assert read_clip(str(frames), []).shape == (0, 40, 64, 3)
    assert read_clip(frames, [7], size=20).shape == (1, 20, 32, 3)
    assert numbers_in(read_clip(frames, [7], size=(16, 16))) == [8]


@pytest.mark.parametrize("number", [-1, 30])
def test_frames_that_are_not_there(number: int, frames: Path) -> None:
    with pytest.raises(IndexError, match=str(number)):
        read_clip(frames, [0, number])


def test_probe(frames: Path) -> None:
    info = probe(frames)
    assert (info.frames, info.fps, info.duration) == (30, 24.0, 1.25)
    assert (info.height, info.width, info.rotation, info.codec) == (40, 64, 0, "mjpeg")
    slow = probe(frames, picture_fps=10)
    assert (slow.fps, slow.duration) == (10, 3.0)
    assert probe(frames).fps == 24
    assert Decoder(picture_fps=10).fps(Video("YSKX3", str(frames), "train")) == 10


@pytest.mark.parametrize("form", ["img_{:05d}.jpg", "{}.jpeg", "{:03d}.JPG"])
@pytest.mark.parametrize("first", [0, 1])
def test_names_of_pictures(form: str, first: int, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "v", range(first, first + 12), form)
    (path / "Thumbs.db").write_bytes(b"x")
    (path / "cover.jpg").write_bytes(b"x")
    assert numbers_in(read_clip(path, [0, 11])) == [first, first + 11]


def test_new_pictures_are_seen(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "v", range(1, 4))
    assert probe(path).frames == 3
    picture(4).save(path / "YSKX3-000004.jpg")
    os.utime(path, ns=(1, 1))
    assert probe(path).frames == 4


def test_pictures_stand_upright(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    picture(1).save(path / "1.jpg", quality=95, exif=exif)
    assert (probe(path).height, probe(path).width) == (64, 40)
    clip = read_clip(path, [0])
    assert clip.shape == (1, 64, 40, 3)
    assert clip[0, :8].mean() > 240 > clip[0, -8:].mean(), "the left edge is now the upper one"


def test_gaps_twins_and_other_series(tmp_path: Path) -> None:
    gap = folder_of(tmp_path / "gap", [1, 2, 4, 5])
    late = folder_of(tmp_path / "late", [5, 6])
    twice = folder_of(tmp_path / "twice", [1, 2])
    picture(2).save(twice / "YSKX3-2.jpg")
    flow = folder_of(tmp_path / "flow", [1, 2], "YSKX3-{:06d}x.jpg")
    series = folder_of(tmp_path / "series", [1, 2], "x-{}.jpg")
    picture(1).save(series / "y-1.jpg")
    empty = folder_of(tmp_path / "empty", [])
    reasons = {
        gap: "picture 3 is missing (4 files, the next is 'YSKX3-000004.jpg')",
        late: "picture 1 is missing (2 files, the next is 'YSKX3-000005.jpg')",
        twice: "number 2 is there twice",
        flow: "no numbered JPEG files",
        series: "several series of pictures: 'x-', 'y-'",
        empty: "no numbered JPEG files",
    }
    for path, reason in reasons.items():
        for read in (probe, lambda path: read_clip(path, [0])):
            with pytest.raises(CorruptVideo) as caught:
                read(path)
            assert reason in caught.value.reason and caught.value.path == str(path)


def whole(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=95)
    return (tmp_path / "noise.jpg").read_bytes()


@pytest.mark.parametrize("damage", ["empty", "text", "half", "end", "png", "folder"])
def test_pictures_that_cannot_be_decoded(damage: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "v", range(1, 6))
    bad = path / "YSKX3-000003.jpg"
    content = whole(tmp_path)
    bad.unlink()
    if damage == "folder":
        bad.mkdir()
    elif damage == "png":
        picture(3).save(bad, format="png")
    else:
        kept = {"empty": b"", "text": b"no picture" * 9, "half": content[: len(content) // 2]}
        bad.write_bytes(kept.get(damage, content[:-40]))
    assert numbers_in(read_clip(path, [0, 1, 3, 4])) == [1, 2, 4, 5]
    with pytest.raises(CorruptVideo) as caught:
        read_clip(path, [1, 2])
    assert "picture 'YSKX3-000003.jpg'" in caught.value.reason


def test_jpeg_of_too_many_pixels(tmp_path: Path) -> None:
    Image.new("L", (9000, 9000)).save(tmp_path / "huge.jpg")
    with pytest.raises(ValueError, match="not a readable JPEG"):
        decode_jpeg((tmp_path / "huge.jpg").read_bytes())


def charades(root: Path) -> Path:
    header = "id,actions,length\n"
    rows = "YSKX3,c077 0.50 0.80;c001 1.00 1.25,1.25\nAAAAA,c001 0 1,1.25\n46GP8,,2\n"
    (root / "Charades_v1_train.csv").write_text(header + rows)
    (root / "Charades_v1_test.csv").write_text(header)
    return root


def test_charades_in_frames(tmp_path: Path) -> None:
    """Annotation, files, labels and training clips of the layout in which frames are published."""
    rgb = tmp_path / "Charades_v1_rgb"
    folder_of(rgb / "YSKX3")
    folder_of(rgb / "AAAAA", [])
    manifest = load_manifest("charades", charades(tmp_path), videos=rgb)
    assert [v.id for v in manifest.videos] == ["YSKX3", "AAAAA"] and manifest.missing == ("46GP8",)
    whole = manifest.videos[0]
    targets = dense_targets(manifest, whole, Decoder())
    assert targets.shape == (157, 30)
    assert np.flatnonzero(targets[77]).tolist() == list(range(13, 20)), "0.5 < f / 24 < 0.8"
    clips = Clips(manifest, Decoder(), ClipRecipe(8, 2, size=24, short_side=(24, 24)), seed=0)
    sample = clips[0] if not clips[0]["replaced"] else clips[1]
    assert sample["clip"].shape == (8, 24, 24, 3)
    broken = {name for place in range(8) for name in clips[place]["replaced"]}
    assert broken == {"AAAAA"}


def test_files_before_folders(tmp_path: Path) -> None:
    rgb = tmp_path / "videos"
    folder_of(rgb / "YSKX3", [1])
    (rgb / "YSKX3.mp4").write_bytes(b"x")
    found = load_manifest("charades", charades(tmp_path), videos=rgb)
    assert [Path(v.path).name for v in found.videos] == ["YSKX3.mp4"]


def test_fingerprint_of_folders(tmp_path: Path) -> None:
    entry = {"v": {"subset": "training", "duration": 1, "actions": [[0, 0, 1]]}}
    (tmp_path / "a.json").write_text(json.dumps(entry))
    prints = []
    for name, numbers in (("here", range(1, 5)), ("there", range(1, 5)), ("more", range(1, 6))):
        folder_of(tmp_path / name / "v", numbers)
        found = load_manifest("segments", tmp_path / "a.json", videos=tmp_path / name)
        prints.append(found.fingerprint)
    assert prints[0] == prints[1] != prints[2]
