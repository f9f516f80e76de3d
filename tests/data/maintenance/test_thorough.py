"""Damage that is found by decoding everything, and what a check believes of files seen before."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import ssdet.data.maintenance.check as module
from ssdet.cli.__main__ import main
from ssdet.data import CorruptVideo, Manifest, Video
from ssdet.data.maintenance.check import CheckReport, check
from ssdet.data.maintenance.convert import ConvertOptions, convert
from ssdet.data.maintenance.digests import PART, PARTS, parts_digest, whole_digest
from ssdet.data.maintenance.thorough import examine_whole, find_hole
from ssdet.data.video.packs import write_pack

CODECS: dict[str, dict[str, Any]] = {
    "h264.mp4": dict(options={"g": "50", "crf": "10"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"g": "50", "qmin": "2", "qmax": "2"}),
    "vp8.webm": dict(codec="libvpx", options={"b": "4M", "auto-alt-ref": "0"}),
    "mjpeg.avi": dict(codec="mjpeg", pixels="yuvj420p", options={"qmin": "1", "qmax": "1"}),
    "mjpeg.mov": dict(codec="mjpeg", pixels="yuvj420p", options={"qmin": "1", "qmax": "1"}),
    "ffv1.mkv": dict(codec="ffv1", options={"level": "1"}),
    "ffv1_crc.mkv": dict(codec="ffv1", options={"level": "3", "slicecrc": "1"}),
    "raw.avi": dict(codec="rawvideo"),
    "rgb.mov": dict(codec="rawvideo", pixels="rgb24"),
    "huffyuv.avi": dict(codec="huffyuv", pixels="yuv422p"),
    "png.mov": dict(codec="png", pixels="rgb24"),
}
SIZE = (240, 320)


def listed(*files: Path) -> Manifest:
    return Manifest("some", ("a",), tuple(Video(f.name, str(f), "train") for f in files))


@pytest.fixture(scope="module")
def whole(videos: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A healthy file of each codec, of 30 frames."""
    folder = tmp_path_factory.mktemp("whole")

    def made(name: str) -> Path:
        if not (folder / name).is_file():
            videos.write(folder / name, frames=30, size=SIZE, **CODECS[name])
        return folder / name

    return made


def zeroed(path: Path, copy: Path, start: int, length: int) -> Path:
    """A copy with a hole, of the same size and date."""
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(length)
    copy.write_bytes(content)
    shutil.copystat(path, copy)
    return copy


@pytest.mark.parametrize("place", ["begin", "middle", "end", "across"])
@pytest.mark.parametrize("name", sorted(CODECS.keys() - {"rgb.mov"}))
def test_a_hole_between_the_sampled_frames_is_found(name, place, whole, videos, tmp_path) -> None:
    path = whole(name)
    packets = videos.packets(path)
    number = max(range(4, 12), key=lambda n: packets[n][1])
    begin, size = packets[number]
    length = min(512, size - 12)
    assert length > 64
    start = {"begin": begin + 10, "middle": begin + (size - length) // 2,
             "end": begin + size - length, "across": begin + size // 2}[place]  # fmt: skip
    if place == "across":  # several frames, as where an extent is lost
        length = sum(size for _, size in packets[number : number + 3])
    bad = zeroed(path, tmp_path / name, start, length)
    report = check(listed(bad), tmp_path / "q.json", 1, thorough=True)
    assert report.fine == 0 and not report.unchecked, name


@pytest.mark.parametrize("name", CODECS)
def test_healthy_files_are_fine(name, whole, tmp_path) -> None:
    report = check(listed(whole(name)), tmp_path / "q.json", 1, thorough=True)
    assert report.fine == 1, (report.unreadable, report.suspicious)


def scene(kind: str, number: int) -> np.ndarray:
    """Black, black with bars or a moving square, or black for one frame only; uint8 [H, W, 3]."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    if kind == "bars" or (kind == "flash" and number != 5):
        noise = np.random.default_rng(number).integers(0, 256, (120, 320, 3))
        picture[60:180] = noise
    if kind == "flash" and number != 5:
        picture[:] = np.maximum(picture, 20)
    if kind == "square":
        picture[100:140, 10 * number : 10 * number + 40] = 255
    return picture


@pytest.mark.parametrize("kind", ["black", "bars", "square", "flash"])
@pytest.mark.parametrize("name", [n for n in CODECS if n not in ("vp8.webm", "mpeg4.avi")])
def test_dark_pictures_are_no_holes(name, kind, tmp_path) -> None:
    given = CODECS[name]
    pixels = given.get("pixels", "yuv420p")
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream(given.get("codec", "libx264"), rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = pixels
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(scene(kind, number), "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert not find_hole(tmp_path / name)


def test_folders_and_packs(videos, tmp_path) -> None:
    pictures = videos.decode(videos.write(tmp_path / "v.mp4", frames=6, size=SIZE))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        with av.open(str(folder / f"{number}.jpg"), "w", format="image2") as file:
            stream = file.add_stream("mjpeg", rate=1, options={"update": "1"})
            stream.height, stream.width = SIZE
            stream.pix_fmt = "yuvj420p"
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p")
            file.mux([*stream.encode(frame), *stream.encode()])
    frames = (av.VideoFrame.from_ndarray(p, "rgb24").reformat(format="yuvj420p") for p in pictures)
    write_pack(tmp_path / "v.pack", frames, 1.0)
    for place in (folder, tmp_path / "v.pack"):
        found = examine_whole(Video("v", str(place), "train"))
        assert found["frames"] == 6 and found["whole"] == whole_digest(str(place))
        assert not found["hole"]
    half = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(half[: len(half) // 2] + bytes(len(half) // 2))
    with pytest.raises(CorruptVideo) as caught:
        found = examine_whole(Video("v", str(folder), "train"))
        raise CorruptVideo("v", found["hole"])
    assert "3.jpg" in caught.value.reason


def middle(path: Path, copy: Path) -> Path:
    """A copy with a hole where a plain check does not look."""
    size = path.stat().st_size
    return zeroed(path, copy, size * 3 // 10, size // 20)


def refuse(video: Video) -> dict[str, Any]:
    raise AssertionError("looked at again")


def again(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> CheckReport:
    """A check that may decode nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "examine", refuse)
        patched.setattr(module, "examine_whole", refuse)
        return check(*arguments, **options)


def test_what_was_found_thoroughly_stays_found(whole, tmp_path, monkeypatch) -> None:
    bad, good = middle(whole("png.mov"), tmp_path / "a.mov"), whole("mjpeg.avi")
    files, place = listed(bad, good), tmp_path / "q.json"
    assert check(files, place, 1).fine == 2
    thorough = check(files, place, 1, thorough=True)
    assert list(thorough.unreadable) == ["a.mov"] and thorough.fine == 1
    assert again(monkeypatch, files, place, 1) == thorough
    assert again(monkeypatch, listed(good), place, 1, thorough=True).fine == 1


def test_the_same_names_elsewhere_are_other_files(whole, tmp_path, monkeypatch) -> None:
    """A copy beside the first, of the same size and date; and the first one again."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    shutil.copy2(whole("ffv1.mkv"), first / "v.mkv")
    zeroed(whole("ffv1.mkv"), second / "v.mkv", 0, 4096)
    place = tmp_path / "q.json"
    assert check(listed(first / "v.mkv"), place, 1).fine == 1
    assert check(listed(second / "v.mkv"), place, 1).fine == 0
    assert check(listed(first / "v.mkv"), place, 1).fine == 1
    assert again(monkeypatch, listed(first / "v.mkv"), place, 1).fine == 1


def test_other_content_of_the_same_size_and_date_is_checked(whole, tmp_path) -> None:
    path = tmp_path / "v.mkv"
    shutil.copy2(whole("ffv1.mkv"), path)
    place = tmp_path / "q.json"
    assert check(listed(path), place, 1).fine == 1
    zeroed(path, path, 0, 4096)
    os.utime(path, ns=(1, whole("ffv1.mkv").stat().st_mtime_ns))
    assert check(listed(path), place, 1).fine == 0


def test_a_thorough_check_notices_any_byte(whole, tmp_path) -> None:
    """Also one between the parts whose digest a plain check compares."""
    path = tmp_path / "v.avi"
    shutil.copy2(whole("raw.avi"), path)
    status, place = path.stat(), tmp_path / "q.json"
    assert status.st_size > PARTS * PART
    assert check(listed(path), place, 1, thorough=True).fine == 1
    before = parts_digest(str(path)), whole_digest(str(path))
    with open(path, "r+b") as file:
        file.seek(PART + 4096)
        file.write(bytes(4096))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert parts_digest(str(path)) == before[0] and whole_digest(str(path)) != before[1]
    assert check(listed(path), place, 1).fine == 1
    assert list(check(listed(path), place, 1, thorough=True).suspicious) == ["v.avi"]


def test_a_second_source_is_converted_into_the_same_folder(whole, videos, tmp_path) -> None:
    """Files of the same names, sizes and dates are not the ones that were converted."""
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    first.mkdir(), second.mkdir()
    videos.write(first / "v.avi", "rawvideo", frames=10)
    content = bytearray((first / "v.avi").read_bytes())
    place, size = videos.packets(first / "v.avi")[0]
    content[place : place + size] = bytes([90]) * size
    (second / "v.avi").write_bytes(content)
    shutil.copystat(first / "v.avi", second / "v.avi")
    options = ConvertOptions(short_side=32, crf=0)
    plain = []
    for folder in (first, second):
        done = convert(listed(folder / "v.avi"), folder, out, options, 1)
        assert done.converted == 1
        plain.append(videos.decode(out / "v.mp4")[0].std(axis=(0, 1)).max() < 1)
    assert plain == [False, True]


def test_digests_of_parts(tmp_path) -> None:
    path = tmp_path / "v"
    content = bytearray(os.urandom(40 * PART))
    path.write_bytes(content)
    first = parts_digest(str(path))
    for place, seen in ((0, True), (len(content) - 1, True), (PART + 10, False)):
        changed = bytearray(content)
        changed[place] ^= 1
        status = path.stat()
        path.write_bytes(changed)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (parts_digest(str(path)) != first) == seen
    assert parts_digest("s3://bucket/v.mp4") == ""
    os.mkfifo(tmp_path / "pipe")
    assert parts_digest(str(tmp_path / "pipe"))  # without waiting for a writer
    with pytest.raises(FileNotFoundError):
        parts_digest(str(tmp_path / "absent"))


def test_the_option(whole, tmp_path, capsys) -> None:
    (tmp_path / "v").mkdir()
    middle(whole("png.mov"), tmp_path / "v" / "a.mov")
    (tmp_path / "a.json").write_text(
        '{"a": {"subset": "training", "duration": 1.0, "actions": [[0, 0.1, 0.5]]}}'
    )
    words = ["data", "check", str(tmp_path / "a.json"), "--format", "segments",
             "--videos", str(tmp_path / "v"), "--strict"]  # fmt: skip
    assert main(words) == 0
    assert main([*words, "--thorough"]) == 1
    assert "unreadable" in capsys.readouterr().out
