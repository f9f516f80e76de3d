"""Converted videos: same frames at the same times; finished once, whatever happens on the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import ssdet.data.maintenance.convert as module
from ssdet.data import Manifest, Video, load_manifest, probe, read_clip
from ssdet.data.maintenance.convert import ConvertOptions, convert

ROOT = Path(__file__).resolve().parents[3]
H264 = {"bf": "3", "g": "25", "crf": "10"}
SMALL = ConvertOptions(short_side=32, gop=5)


def listed(folder: Path, *names: str) -> Manifest:
    """Data set of these files, with their folders, by name."""
    entries = [Video(os.path.splitext(name)[0], str(folder / name), "train") for name in names]
    return Manifest("some", ("a",), tuple(entries))


def times(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    return np.array(shown) - shown[0]


@pytest.fixture(scope="module")
def source(videos: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "a class").mkdir()
    videos.write(folder / "a class" / "é 1.mp4", options=H264)
    videos.write(folder / "variable.mkv", options=H264, times=lambda n: n * n + 3)
    videos.write(folder / "old.avi", "mpeg4", options={"bf": "2", "g": "12"}, frames=30)
    videos.write(folder / "hidden.webm", "libvpx", options={"auto-alt-ref": "1"}, frames=20)
    videos.write(folder / "one.mp4", frames=1)
    videos.write(folder / "odd.mp4", size=(47, 61), pixels="yuv444p", frames=5)
    return folder


NAMES = ("a class/é 1.mp4", "variable.mkv", "old.avi", "hidden.webm", "one.mp4", "odd.mp4")


@pytest.mark.parametrize("packed", [False, True])
def test_copies_have_the_frames_and_times_of_the_originals(packed, source, videos, tmp_path):
    out, counts = tmp_path / "out", []
    options = ConvertOptions(short_side=500, crf=5, packed=packed)
    manifest = listed(source, *NAMES)
    told = convert(manifest, source, out, options, 2, progress=lambda *c: counts.append(c))
    assert (told.converted, dict(told.failed), dict(told.unread)) == (len(NAMES), {}, {})
    assert counts == [(done, len(NAMES)) for done in range(len(NAMES) + 1)]
    for name in NAMES:
        copy = out / (os.path.splitext(name)[0] + (".pack" if packed else ".mp4"))
        ours, theirs = probe(copy), probe(source / name)
        assert (ours.frames, ours.rotation) == (theirs.frames, 0)
        assert ours.duration == pytest.approx(theirs.duration, abs=0.02)
        truth = read_clip(source / name, range(theirs.frames), size=(ours.height, ours.width))
        error = read_clip(copy, range(theirs.frames)).astype(float) - truth
        assert np.sqrt((error**2).mean((1, 2, 3))).max() < (20 if name == "odd.mp4" else 6)
        assert name == "one.mp4" or np.abs(np.diff(truth.astype(int), axis=0)).mean() > 7
    if not packed:
        shown = [n * n / 30 for n in range(50)]  # Matroska rounds to milliseconds
        assert np.abs(times(out / "variable.mp4") - shown).max() < 0.002


def test_files_are_friendly_to_training(source, tmp_path) -> None:
    convert(listed(source, "a class/é 1.mp4"), source, tmp_path / "out", SMALL, 1)
    copy = tmp_path / "out" / "a class" / "é 1.mp4"
    content = copy.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(copy)) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
        stream = container.streams.video[0]
        assert not container.streams.audio and stream.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (42, 32)  # of 64 x 48
        assert keys == [number % 5 == 0 for number in range(50)]


def test_own_types_of_pictures_do_not_leak_through(source, tmp_path) -> None:
    options = ConvertOptions(short_side=500, gop=10)  # the size stays: frames could pass untouched
    convert(listed(source, "a class/é 1.mp4"), source, tmp_path / "out", options, 1)
    with av.open(str(tmp_path / "out" / "a class" / "é 1.mp4")) as container:
        shown = [frame.key_frame for frame in container.decode(video=0)]
    assert shown == [number % 10 == 0 for number in range(50)]


@pytest.mark.parametrize("packed", [False, True])
def test_rotation_is_applied(packed, source, videos, tmp_path) -> None:
    def rotate(content: bytearray) -> None:
        matrix = content.index(b"tkhd") + 4 + 40
        for place, value in zip((0, 4, 12, 16), (0, 1, -1, 0), strict=True):
            fixed = (value << 16).to_bytes(4, "big", signed=True)
            content[matrix + place : matrix + place + 4] = fixed

    folder = tmp_path / "turned"
    folder.mkdir()
    path = videos.patched(source / "a class" / "é 1.mp4", "turned.mp4", rotate)
    path.rename(folder / "turned.mp4")
    assert probe(folder / "turned.mp4").rotation in (90, 270)
    options = ConvertOptions(short_side=500, crf=5, packed=packed)
    convert(listed(folder, "turned.mp4"), folder, tmp_path / "out", options, 1)
    copy = tmp_path / "out" / ("turned.pack" if packed else "turned.mp4")
    assert (probe(copy).height, probe(copy).width, probe(copy).rotation) == (64, 48, 0)
    error = read_clip(copy, [4, 30]).astype(float) - read_clip(folder / "turned.mp4", [4, 30])
    assert np.sqrt((error**2).mean()) < 7


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_annotation_finds_the_copies(packed, source, tmp_path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("file,label\n" + "".join(f"{name},x\n" for name in NAMES))
    before = load_manifest("kinetics", table, videos=source)
    convert(before, source, tmp_path / "out", ConvertOptions(32, packed=packed), 2)
    after = load_manifest("kinetics", table, videos=tmp_path / "out")
    assert [video.id for video in after.videos] == [video.id for video in before.videos]
    assert after.missing == ()
    assert all(video.path.startswith(str(tmp_path / "out")) for video in after.videos)


def test_pictures_in_a_folder_become_one_file(source, videos, tmp_path) -> None:
    truth = videos.decode(source / "a class" / "é 1.mp4")[:10]
    folder = tmp_path / "frames" / "V1"
    folder.mkdir(parents=True)
    for number, picture in enumerate(truth, 1):
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame.save(folder / f"V1-{number:06d}.jpg")
    for packed in (False, True):
        out = tmp_path / f"out{packed}"
        convert(
            listed(folder.parent, "V1"),
            folder.parent,
            out,
            ConvertOptions(500, crf=5, packed=packed),
        )
        copy = out / ("V1.pack" if packed else "V1.mp4")
        assert (probe(copy).frames, round(probe(copy).fps, 6)) == (10, 24)
        assert np.sqrt(((read_clip(copy, range(10)) - truth.astype(float)) ** 2).mean()) < 12


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*.mp4")}


def test_only_what_changed_is_done_again(source, videos, tmp_path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        videos.write(folder / name, frames=4)
    manifest = listed(folder, "a.mp4", "b.mp4", "c.mp4")
    convert(manifest, folder, out, SMALL, 1)
    first = stamps(out)
    convert(manifest, folder, out, SMALL, 1)
    assert stamps(out) == first and len(first) == 3
    videos.write(folder / "b.mp4", frames=6)
    (out / "c.mp4").write_bytes(b"cut")
    convert(manifest, folder, out, SMALL, 1)
    second = stamps(out)
    assert {Path(p).name for p in first if second[p] != first[p]} == {"b.mp4", "c.mp4"}
    assert probe(out / "b.mp4").frames == 6
    convert(manifest, folder, out, ConvertOptions(32, gop=6), 1)
    assert all(stamps(out)[path] != second[path] for path in second)
    (folder / "a.mp4").write_bytes(b"")
    assert dict(convert(manifest, folder, out, SMALL, 1).failed) == {"a": "empty file"}
    assert not (out / "a.mp4").exists()  # no copy of what is no more


def test_failures_are_counted_and_the_rest_goes_on(source, tmp_path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    whole = (source / "a class" / "é 1.mp4").read_bytes()
    (folder / "whole.mp4").write_bytes(whole)
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("a text")
    told = convert(
        listed(folder, "cut.mp4", "gone.mp4", "text.mp4", "whole.mp4"), folder, out, SMALL
    )
    assert (
        told.converted == 1 and set(told.failed) == {"cut", "text"} and set(told.unread) == {"gone"}
    )
    summary = json.loads((out / "conversion.json").read_text())
    assert summary["finished"] and summary["failed"] == dict(told.failed)
    assert summary["options"]["gop"] == 5 and summary["versions"]["av"] == av.__version__
    assert sorted(path.name for path in out.iterdir()) == [
        "conversion.json", "converted.jsonl", "whole.mp4"
    ]  # fmt: skip


def test_a_copy_that_is_not_equal_is_a_failure(source, tmp_path, monkeypatch) -> None:
    def lossy(path: Path, pictures: Any, info: Any, options: ConvertOptions) -> None:
        whole(path, (picture for picture in pictures if picture.pts != 0), info, options)

    whole = module._encode
    monkeypatch.setattr(module, "_encode", lossy)
    told = convert(listed(source, "a class/é 1.mp4"), source, tmp_path / "out", SMALL, 1)
    assert "its copy has 49 frames, it has 50" in told.failed["a class/é 1"]
    assert not list((tmp_path / "out").rglob("*.mp4"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_stops_it_and_it_goes_on_later(code, source, tmp_path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    out, manifest = tmp_path / "out", listed(source, "one.mp4", "odd.mp4")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match=os.strerror(code)):
            convert(manifest, source, out, SMALL, 1)
    assert not json.loads((out / "conversion.json").read_text())["finished"]
    assert not list(out.rglob("*.mp4"))
    assert convert(manifest, source, out, SMALL, 1).converted == 2


def test_other_input_output_errors_are_tried_again(source, tmp_path, monkeypatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    out, manifest = tmp_path / "out", listed(source, "one.mp4", "odd.mp4")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fail)
        told = convert(manifest, source, out, SMALL, 1)
    assert set(told.unread) == {"one", "odd"} and not told.converted
    assert convert(manifest, source, out, SMALL, 1).converted == 2


def test_folders_that_would_not_do(source, tmp_path) -> None:
    manifest = listed(source, "one.mp4")
    for out in (source, source / "small"):
        with pytest.raises(ValueError, match="folder of the originals"):
            convert(manifest, source, out, SMALL)
    with pytest.raises(ValueError, match="lies outside"):
        convert(manifest, source / "a class", tmp_path / "out", SMALL)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError):
        convert(manifest, source, file / "out", SMALL)
    twins = listed(source, "one.mp4", "odd.mp4")
    twin = Video("twin", str(source / "one.mp4"), "train")
    with pytest.raises(ValueError, match="'one' and 'twin' would both"):
        convert(Manifest("m", ("a",), (*twins.videos, twin)), source, tmp_path / "out", SMALL)
    convert(manifest, source, tmp_path / "out", SMALL, 1)
    with pytest.raises(ValueError, match=r"holds H\.264 files"):
        convert(manifest, source, tmp_path / "out", ConvertOptions(32, packed=True))
    with pytest.raises(ValueError, match="no file"):
        convert(Manifest("m", ("a",), (), ("gone",), ("train",)), source, tmp_path / "x", SMALL)
    with pytest.raises(ValueError, match="CRF 99"):
        ConvertOptions(crf=99)


def test_remote_originals_keep_their_names(tmp_path) -> None:
    place = "s3://bucket/set?endpoint_override=host:9000"
    path = "s3://bucket/set/a class/b.avi?endpoint_override=host:9000"
    manifest = Manifest("m", ("a",), (Video("v", path, "train"),))
    assert module._names(manifest, place, tmp_path, ".mp4") == {"v": "a class/b.mp4"}


CONVERT = """
import os, signal, sys
from pathlib import Path
from ssdet.data import Manifest, Video
from ssdet.data.maintenance.convert import ConvertOptions, convert
source, out, packed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "packed"
videos = [Video(p.stem, str(p), "train") for p in sorted(source.glob("*.mp4"))]
print("begun", flush=True)
told = convert(Manifest("m", ("a",), tuple(videos)), source, out,
               ConvertOptions(32, 5, packed=packed), 2)
print(told.converted)
"""


@pytest.mark.parametrize("packed", ["packed", "h264"])
def test_killed_at_any_point_it_goes_on(packed, videos, tmp_path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(8):
        videos.write(folder / f"{number}.mp4", frames=40, size=(96, 128))
    command = [sys.executable, "-c", CONVERT, str(folder), str(out), packed]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished: dict[str, int] = {}
    for wait in (0.02, 0.1, 0.2):
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None and run.stdout.readline() == "begun\n"
        time.sleep(wait)
        run.send_signal(signal.SIGKILL)
        run.wait()
        journal = out / "converted.jsonl"
        lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        done = {json.loads(line)["id"] for line in lines if line.endswith("\n")}
        ending = "pack" if packed == "packed" else "mp4"
        for name, stamp in finished.items():
            assert (out / name).stat().st_mtime_ns == stamp
        finished = {f"{n}.{ending}": (out / f"{n}.{ending}").stat().st_mtime_ns for n in done}
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "8"
    assert all(probe(out / f"{n}.{ending}").frames == 40 for n in range(8))
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in finished.items())
    assert not (out / ".unfinished").exists()
