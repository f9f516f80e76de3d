"""Times of frames are those at which they were recorded, in every kind of file."""

import json
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ssdet.data.video.reader import CorruptVideo, probe, read_clip
from ssdet.data.video.stream import video_clock

X265 = {"x265-params": "log-level=none:keyint=10:min-keyint=10:scenecut=0"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16"}
# A camera that delivers every fifth picture only between 1 s and 3 s.
DARK = [n / 25 for n in range(100) if not (25 <= n < 75 and n % 5)]
STEADY = [n / 25 for n in range(50)]


def write(path: Path, times: list[float], codec: str, tick: Fraction, **kind: Any) -> Path:
    """A video of the pictures 0, 1, … at these seconds, each brighter than the one before."""
    pixels = kind.get("pixels", "yuv420p")
    with av.open(
        str(path), "w", format=kind.get("format"), container_options=kind.get("container", {})
    ) as file:
        stream = file.add_stream(codec, rate=25, options=kind.get("options", {}))
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        stream.codec_context.time_base, stream.codec_context.thread_count = tick, 1
        for number, time in enumerate(times):
            picture = np.full((64, 64, 3), 10 + 2 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = round(time / tick), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


AVI_CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "mjpeg": ("mjpeg", dict(pixels="yuvj420p")),
    "mpeg4": ("mpeg4", {}),
    "mpeg4_b_frames": ("mpeg4", dict(options={"bf": "2"})),
    "msmpeg4": ("msmpeg4", {}),
    "h264": ("libx264", dict(options={"bf": "0"})),
    "h264_b_frames": ("libx264", dict(options={"bf": "2"})),
    "zmbv": ("zmbv", dict(pixels="bgr0")),
    "huffyuv": ("huffyuv", dict(pixels="rgb24")),
}


@pytest.mark.parametrize("name", AVI_CODECS)
def test_null_frames_of_avi_files_take_time(name: str, tmp_path: Path) -> None:
    codec, kind = AVI_CODECS[name]
    path = write(tmp_path / "a.avi", DARK, codec, Fraction(1, 25), **kind)
    info, found = probe(path), video_clock(path)
    assert (info.frames, info.duration) == (len(DARK), 4.0)
    np.testing.assert_allclose(found.times_T, DARK, atol=1e-9)
    assert (found.end, found.rate) == (4.0, None)
    even = np.arange(len(DARK)) * 4 / len(DARK)
    assert info.irregularity == pytest.approx(np.abs(even - DARK).max())
    levels = read_clip(path, range(len(DARK))).mean((1, 2, 3))
    np.testing.assert_allclose(levels, 10 + 2 * np.arange(len(DARK)), atol=16)


def with_null_frames(path: Path, before: int, after: int) -> Path:
    """A copy of an AVI file with empty chunks in front of the first and behind the last frame."""
    content = path.read_bytes()
    movie, index = content.index(b"movi"), content.rfind(b"idx1")
    chunks = content[movie + 4 : index]
    tag = content[index + 8 : index + 12]
    entries = [
        struct.unpack("<4sIII", content[place : place + 16])
        for place in range(
            index + 8, index + 8 + struct.unpack_from("<I", content, index + 4)[0], 16
        )
    ]
    empty = tag + bytes(4)
    table = [(tag, 0, 4 + 8 * n, 0) for n in range(before)]
    table += [(name, flags, place + 8 * before, size) for name, flags, place, size in entries]
    table += [(tag, 0, 4 + 8 * (before + n) + len(chunks), 0) for n in range(after)]
    header = bytearray(content[: movie - 8])
    for name, place in ((b"strh", 40), (b"avih", 24)):
        place += header.index(name)
        frames = struct.unpack_from("<I", header, place)[0]
        struct.pack_into("<I", header, place, frames + before + after)
    body = b"movi" + empty * before + chunks + empty * after
    rest = b"LIST" + struct.pack("<I", len(body)) + body + b"idx1"
    rest += struct.pack("<I", 16 * len(table)) + b"".join(struct.pack("<4sIII", *e) for e in table)
    struct.pack_into("<I", header, 4, len(header) + len(rest) - 8)
    copy = path.with_name("null.avi")
    copy.write_bytes(header + rest)
    return copy


@pytest.mark.parametrize("name", ["mjpeg", "mpeg4", "mpeg4_b_frames", "msmpeg4"])
def test_null_frames_at_the_ends_of_avi_files(name: str, tmp_path: Path) -> None:
    codec, kind = AVI_CODECS[name]
    path = write(tmp_path / "a.avi", STEADY, codec, Fraction(1, 25), **kind)
    late = with_null_frames(path, 10, 0)
    np.testing.assert_allclose(video_clock(late).times_T, np.array(STEADY) + 0.4)
    assert (probe(late).start, probe(late).duration, probe(late).irregularity) == (0.4, 2.0, 0.0)
    assert video_clock(late).rate is None
    long = with_null_frames(path, 0, 25)
    np.testing.assert_allclose(video_clock(long).times_T, STEADY, atol=1e-9)
    assert video_clock(long).end == probe(long).duration == 3.0


LIVE = {"live": "1"}
VARIABLE = [0, 0.04, 0.1, 0.5, 0.52, 0.56, 1.5, 1.54, 1.6, 2.3]
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "vp8.webm": ("libvpx", dict(options=HIDDEN, container=LIVE)),
    "vp9.webm": ("libvpx-vp9", dict(options=HIDDEN, container=LIVE)),
    "av1.webm": ("libsvtav1", dict(options={"preset": "12"}, container=LIVE)),
    "h264.mkv": ("libx264", dict(options={"bf": "2"}, container=LIVE)),
    "hevc.mkv": ("libx265", dict(options=X265, container=LIVE)),
    "mpeg4.mkv": ("mpeg4", dict(options={"bf": "2"}, container=LIVE)),
    "hevc.mp4": ("libx265", dict(options=X265, container={"movflags": "frag_keyframe+empty_moov"})),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("times", [VARIABLE, STEADY], ids=["variable", "steady"])
def test_unfinished_recordings_have_their_times(
    name: str, times: list[float], tmp_path: Path
) -> None:
    codec, kind = STREAMS[name]
    tick = Fraction(1, 50) if codec == "mpeg4" else Fraction(1, 1000)
    path = write(tmp_path / name, times, codec, tick, **kind)
    found = video_clock(path)
    np.testing.assert_allclose(found.times_T, times, atol=1e-3)
    assert found.times_T[-1] < found.end
    assert (found.rate is None) == (times is VARIABLE)


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.avi", "b_frames.avi", "a.webm"])
def test_a_constant_rate_is_the_plain_formula_to_the_bit(file: str, tmp_path: Path) -> None:
    codec = {"avi": "mpeg4", "webm": "libvpx"}.get(file.split(".")[1], "libx264")
    options = {"bf": "2"} if file.startswith("b_") else {}
    path = write(tmp_path / file, STEADY, codec, Fraction(1, 25), options=options)
    info, found = probe(path), video_clock(path)
    assert (info.frames, info.duration, info.fps) == (50, 2.0, 25.0)
    assert (info.start, info.irregularity) == (0.0, 0.0)
    assert found.rate == 50 / 2.0
    assert np.array_equal(found.times_T, np.arange(50) / (50 / 2.0))


MPEG: dict[str, tuple[str, Fraction, dict[str, Any]]] = {
    "a.mpg": ("mpeg2video", Fraction(1, 25), dict(options={"bf": "2"})),
    "b.mpg": ("mpeg1video", Fraction(1, 25), {}),
    "a.ts": ("libx264", Fraction(1, 90000), dict(options={"bf": "2", "g": "10"})),
    "a.m2ts": ("libx264", Fraction(1, 90000), dict(options={"bf": "2", "g": "10"})),
    "b.ts": ("libx265", Fraction(1, 90000), dict(options=X265)),
    "a.3gp": ("libx264", Fraction(1, 90000), dict(options={"g": "10"})),
    "a.m4v": ("libx264", Fraction(1, 90000), dict(options={"g": "10"}, format="mp4")),
}


@pytest.mark.parametrize("name", MPEG)
def test_files_of_camcorders_and_phones(name: str, tmp_path: Path, videos: Any) -> None:
    codec, tick, kind = MPEG[name]
    path = write(tmp_path / name, STEADY, codec, tick, **kind)
    expected = videos.decode(path)
    assert len(expected) == probe(path).frames == 50
    assert probe(path).duration == pytest.approx(2.0)
    np.testing.assert_allclose(video_clock(path).times_T, STEADY, atol=1e-3)
    for wanted in ([0], [49, 3, 20], list(range(50))):
        assert np.array_equal(read_clip(path, wanted), expected[wanted])


def test_other_formats_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flv", STEADY, "flv", Fraction(1, 25))
    with pytest.raises(CorruptVideo, match="not an MP4/MOV.* convert it with ffmpeg"):
        probe(path)


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffprobe is not installed")
@pytest.mark.parametrize("name", [*AVI_CODECS, *STREAMS])
def test_times_are_those_of_ffprobe(name: str, tmp_path: Path) -> None:
    """Relative to the first frame: AVI stores no times, FFmpeg adds the delay of its decoder."""
    codec, kind = {**AVI_CODECS, **STREAMS}[name]
    avi = name in AVI_CODECS
    tick = Fraction(1, 25 if avi else 50 if codec == "mpeg4" else 1000)
    path = write(tmp_path / ("a.avi" if avi else name), DARK, codec, tick, **kind)
    entries = "frame=best_effort_timestamp_time"
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_entries", entries, str(path)]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    shown = [float(f.get("best_effort_timestamp_time", "nan")) for f in answer["frames"]]
    timed = np.flatnonzero(~np.isnan(shown))  # the last may have none
    assert len(timed) >= len(DARK) - 2
    since = np.array(shown)[timed] - shown[0]
    np.testing.assert_allclose(video_clock(path).times_T[timed], since, atol=1.1e-3)
