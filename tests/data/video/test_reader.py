"""`read_clip` and `probe` against full decodes, over the ways in which video files are odd."""

import os
import pickle
import random
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ssdet.data.video.frame_index as frame_index
from ssdet.data.video.reader import CorruptVideo, probe, read_clip

X264 = {"bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
FASTSTART = {"movflags": "faststart"}
OPEN_GOP = {"x264-params": "b-adapt=0:scenecut=0:open-gop=1:keyint=15:min-keyint=15", "bf": "3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=10:b-adapt=0", "bf": "2"}
HEVC = {"x265-params": "log-level=none:keyint=12:min-keyint=12:open-gop=1:scenecut=0"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16"}
KINDS: dict[str, dict[str, Any]] = {
    "long_gop.mp4": dict(options=X264 | {"g": "250"}),
    "short_gop.mkv": dict(options=X264 | {"g": "12"}),
    "open_gop.mp4": dict(options=OPEN_GOP),
    "open_gop.mkv": dict(options=OPEN_GOP),
    "no_keyframes.mp4": dict(options=REFRESH),
    "fragments.mp4": dict(options=X264 | {"g": "12"}, container={"movflags": "frag_keyframe"}),
    "stream.mkv": dict(options=X264 | {"g": "12"}, container={"live": "1"}),
    "plain.mov": dict(options=X264 | {"g": "12"}),
    "variable.mp4": dict(options=X264 | {"g": "20"}, times=lambda n: n * n + 3),
    "variable.mkv": dict(options=X264 | {"g": "20"}, times=lambda n: n * n),
    "late.mp4": dict(options=X264 | {"g": "20"}, times=lambda n: n + 40),
    "early.mkv": dict(options=X264 | {"g": "20"}, times=lambda n: n - 7),
    "hevc.mp4": dict(codec="libx265", options=HEVC),
    "h264.avi": dict(options=X264 | {"g": "12"}),
    "plain.avi": dict(codec="mpeg4", options={"g": "10"}),
    "b_frames.avi": dict(codec="mpeg4", options={"bf": "2", "g": "12"}),
    "b_frames.mkv": dict(codec="mpeg4", options={"bf": "2", "g": "12"}),
    "jpeg.avi": dict(codec="mjpeg", pixels="yuvj420p"),
    "mpeg2.mkv": dict(codec="mpeg2video", options={"bf": "2", "g": "12"}),
    "hidden_frames.webm": dict(codec="libvpx", options=HIDDEN),
    "hidden_frames_9.webm": dict(codec="libvpx-vp9", options=HIDDEN, frames=30),
    "odd.avi": dict(codec="mpeg4", size=(47, 61), options={"g": "10"}),
    "odd_444.mp4": dict(size=(47, 61), pixels="yuv444p", options=X264 | {"g": "12"}),
    "gray.mp4": dict(pixels="gray", options=X264 | {"g": "12"}),
    "ten_bit.mp4": dict(pixels="yuv420p10le", options=X264 | {"g": "12"}),
    "one.mp4": dict(frames=1),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, videos: Any) -> Callable[[str], Path]:
    """Video of a kind, written once."""
    folder = tmp_path_factory.mktemp("videos")

    def path(name: str) -> Path:
        file = folder / name
        return file if file.exists() else videos.write(file, **KINDS[name])

    return path


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_a_full_decode(
    name: str, made: Callable[[str], Path], videos: Any
) -> None:
    frames, size = KINDS[name].get("frames", 50), KINDS[name].get("size", (48, 64))
    path = made(name)
    expected = videos.decode(path)
    assert len(expected) == frames
    assert np.array_equal(read_clip(path, range(frames)), expected)
    rng = random.Random(name)
    for count in (1, 1, 1, 1, 4, 9):
        wanted = rng.choices(range(frames), k=count)
        assert np.array_equal(read_clip(path, wanted), expected[wanted]), wanted
    info = probe(path)
    assert (info.frames, info.height, info.width) == (frames, *size)
    assert info.rotation == 0
    with pytest.raises(IndexError, match=f"has {frames} "):
        read_clip(path, [0, frames])


@pytest.mark.parametrize(
    "name", ["long_gop.mp4", "short_gop.mkv", "plain.avi", "h264.avi", "hevc.mp4", "early.mkv"]
)
def test_constant_rate_is_exact(name: str, made: Callable[[str], Path]) -> None:
    info = probe(made(name))
    assert info.fps == pytest.approx(30, rel=1e-9)
    assert info.duration == pytest.approx(50 / 30, rel=1e-9)


def test_variable_rate_is_the_mean(made: Callable[[str], Path]) -> None:
    """Frames begin at n² / 30 s; the last has the length that its container gives it."""
    info = probe(made("variable.mkv"))
    assert 49**2 / 30 <= info.duration <= 50**2 / 30 + 0.01
    assert info.fps == pytest.approx(50 / info.duration)


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(st.integers(0, 49), max_size=12))
def test_any_order_and_repeats(wanted: list[int], made: Callable[[str], Path], videos: Any) -> None:
    path = made("open_gop.mp4")
    expected = videos.decode(path)
    assert np.array_equal(read_clip(path, wanted), expected[wanted].reshape(-1, 48, 64, 3))


def test_arguments(made: Callable[[str], Path]) -> None:
    path = made("short_gop.mkv")
    assert read_clip(path, []).shape == (0, 48, 64, 3)
    assert read_clip(path, [], size=24).shape == (0, 24, 32, 3)
    assert read_clip(str(path), np.arange(3)).dtype == np.uint8
    with pytest.raises(IndexError, match="-1"):
        read_clip(path, [0, -1])
    with pytest.raises(IndexError):
        read_clip(path, [10**12])
    with pytest.raises(TypeError):
        read_clip(path, [1.5])  # type: ignore[list-item]
    for size in (0, (0, 3), (10**5, 10**5)):
        with pytest.raises(ValueError, match="size"):
            read_clip(path, [0], size=size)


def test_scaling_averages_and_keeps_its_place(tmp_path: Path) -> None:
    """Stripes one pixel wide become their mean; a ramp at half size is the mean of its pairs."""
    path = tmp_path / "stripes.mkv"
    stripes, ramp = np.zeros((2, 48, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    ramp[:] = 3 * np.arange(64)[:, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for picture in (stripes, ramp):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.array_equal(read_clip(path, [0, 1]), [stripes, ramp])
    halves = read_clip(path, [0, 1], size=(24, 32)).astype(float)
    assert np.abs(halves[0] - 100).max() <= 51  # unfiltered, all would be 0 or 200
    assert abs(halves[0].mean() - 100) <= 2
    assert np.abs(halves[1] - ramp.reshape(24, 2, 32, 2, 3).mean((1, 3)))[:, 1:-1].max() <= 2
    assert np.array_equal(read_clip(path, [0, 1], size=24), halves)
    assert read_clip(path, [0], size=20).shape == (1, 20, 27, 3)


ROTATIONS = {  # clockwise quarter turns -> (a, b, c, d) of the track's matrix, 16.16 fixed point
    1: (0, 1, -1, 0),
    2: (-1, 0, 0, -1),
    3: (0, -1, 1, 0),
}


@pytest.mark.parametrize("turns", ROTATIONS)
def test_rotated_videos_stand_upright(turns: int, made: Callable[[str], Path], videos: Any) -> None:
    path = made("open_gop.mp4")

    def rotate(content: bytearray) -> None:
        matrix = content.index(b"tkhd") + 4 + 40
        for place, value in zip((0, 4, 12, 16), ROTATIONS[turns], strict=True):
            fixed = (value << 16).to_bytes(4, "big", signed=True)
            content[matrix + place : matrix + place + 4] = fixed

    rotated = videos.patched(path, f"rotated{turns}.mp4", rotate)
    expected = np.rot90(videos.decode(path)[[3, 20]], -turns, axes=(1, 2))
    assert np.array_equal(read_clip(rotated, [3, 20]), expected)
    info = probe(rotated)
    assert (info.height, info.width) == expected.shape[1:3]
    assert info.rotation == (-90 * turns) % 360
    short = read_clip(rotated, [3], size=24)
    assert short.shape[1:3] == tuple(side // 2 for side in expected.shape[1:3])
    scaled = read_clip(path, [3], size=24)
    assert np.array_equal(short, np.rot90(scaled, -turns, axes=(1, 2)))


def test_edit_list_that_begins_inside_a_gop(made: Callable[[str], Path], videos: Any) -> None:
    """Frames before the edit are decoded but not shown, and are not counted."""
    path = made("long_gop.mp4")

    def cut(content: bytearray) -> None:
        entry = content.index(b"elst") + 4 + 4 + 4
        start = int.from_bytes(content[entry + 4 : entry + 8], "big")
        content[entry + 4 : entry + 8] = (start + 9 * 512).to_bytes(4, "big")

    edited = videos.patched(path, "edited.mp4", cut)
    expected = videos.decode(edited)
    assert len(expected) == 41
    assert np.array_equal(expected, videos.decode(path)[9:])
    assert probe(edited).frames == 41
    for wanted in ([0], [5, 1], [40], list(range(41))):
        assert np.array_equal(read_clip(edited, wanted), expected[wanted])


def remux(source: Path, path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Copy a video with other packets, one a thirtieth of a second, stored as they are shown."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        chunks = [bytes(packet) for packet in old.demux(stream) if packet.size]
        for number, content in enumerate(change(chunks)):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts = out, number, number
            packet.time_base = Fraction(1, 30)
            packet.is_keyframe = number == 0
            new.mux(packet)


def packed(chunks: list[bytes]) -> list[bytes]:
    """DivX packing: a P picture and the B picture after it in one packet, then a placeholder."""
    mark = b"\x00\x00\x01\xb2DivX503b1393p"
    start = chunks[0].index(b"\x00\x00\x01\xb6")
    packets = [chunks[0][:start] + mark + chunks[0][start:]]
    for first, second in zip(chunks[1::2], chunks[2::2], strict=True):
        packets += [first + second, b"\x7f"]
    return packets


def with_not_coded(chunks: list[bytes]) -> list[bytes]:
    """Every fifth packet is followed by a picture that is "not coded" and shows nothing."""
    bits = "01" + "0" + "1" + "00000" + "1" + "0" + "01111"  # type P, time 0 of 30, vop_coded 0
    hole = b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(2, "big")
    return [x for n, chunk in enumerate(chunks) for x in [chunk] + [hole] * (n % 5 == 3)]


def with_hidden(chunks: list[bytes]) -> list[bytes]:
    """Every fifth VP8 picture is decoded but not shown (bit 4 of its first byte)."""
    return [bytes([c[0] & ~0x10]) + c[1:] if n % 5 == 4 else c for n, c in enumerate(chunks)]


B_FRAMES = {"bf": "1", "b_strategy": "0"}
ODD_PACKETS = {
    "packed.avi": (dict(codec="mpeg4", options=B_FRAMES, frames=31), packed, 31),
    "holes.avi": (dict(codec="mpeg4", options={"g": "12"}), with_not_coded, 50),
    "holes.mkv": (dict(codec="mpeg4", options={"g": "12"}), with_not_coded, 50),
    "hidden.webm": (dict(codec="libvpx"), with_hidden, 40),
}


@pytest.mark.parametrize("name", ODD_PACKETS)
def test_packets_that_are_not_frames(name: str, tmp_path: Path, videos: Any) -> None:
    kind, change, shown = ODD_PACKETS[name]
    path = tmp_path / name
    plain = videos.write(tmp_path / f"plain{path.suffix}", **kind)
    remux(plain, path, change)
    expected = videos.decode(path)
    assert len(expected) == shown
    info = probe(path)
    assert info.frames == shown
    if path.suffix != ".avi":  # Matroska stores when each frame is shown, AVI does not
        assert info.duration == pytest.approx(len(videos.packets(path)) / 30, abs=0.002)
    for wanted in ([0], [3, 9, 4], [shown - 1], list(range(shown))):
        assert np.array_equal(read_clip(path, wanted), expected[wanted])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "nothing.mp4", [0])
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    "name", ["http:x.mp4", "concat:a.mp4|b.mp4", "-i.mp4", "ü %03d 'q'.mp4", "\udcff.mp4"]
)
def test_names_are_files(
    name: str, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_clip(name, [0])
    Path(name).write_bytes(made("plain.mov").read_bytes())
    assert read_clip(name, [0]).shape == (1, 48, 64, 3)


def test_huge_pictures_are_refused(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_index, "MAX_PIXELS", 48 * 64 - 1)
    path = tmp_path / "huge.mp4"
    path.write_bytes(made("plain.mov").read_bytes())
    with pytest.raises(CorruptVideo):
        read_clip(path, [0])


def test_corrupt_video_travels_between_processes() -> None:
    error = CorruptVideo("a/b.mp4", "is broken")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.reason, str(copy)) == (error.path, error.reason, str(error))


def test_a_file_that_changes_is_read_anew(
    made: Callable[[str], Path], tmp_path: Path, videos: Any
) -> None:
    path = tmp_path / "clip.mp4"
    for name in ("long_gop.mp4", "odd_444.mp4"):
        path.write_bytes(made(name).read_bytes())
        assert np.array_equal(read_clip(path, [11])[0], videos.decode(path)[11])
        assert probe(path).width == KINDS[name].get("size", (48, 64))[1]


def test_results_are_cached_until_the_file_changes(tmp_path: Path) -> None:
    path, sizes = tmp_path / "a", []

    @frame_index.cached_per_file
    def size(name: str) -> int:
        sizes.append(os.path.getsize(name))
        return sizes[-1]

    path.write_bytes(b"abc")
    assert [size(path), size(str(path))] == [3, 3] and sizes == [3]
    path.write_bytes(b"abcde")
    assert size(path) == 5 and sizes == [3, 5]


def test_threads_read_the_same_file(made: Callable[[str], Path], videos: Any) -> None:
    path = made("open_gop.mp4")
    expected = videos.decode(path)
    jobs = [[number, 49 - number] for number in range(50)]
    with ThreadPoolExecutor(4) as pool:
        clips = pool.map(lambda wanted: read_clip(path, wanted), jobs)
        assert all(np.array_equal(c, expected[j]) for c, j in zip(clips, jobs, strict=True))


def test_nothing_stays_open(made: Callable[[str], Path], videos: Any) -> None:
    path = made("short_gop.mkv")
    broken = videos.patched(
        path, "broken.mkv", lambda content: content.__delitem__(slice(2000, None))
    )

    def read_many() -> None:
        for _ in range(150):
            read_clip(path, [3, 40])
            with pytest.raises(CorruptVideo):
                read_clip(broken, [49])

    read_many()
    handles = len(os.listdir("/proc/self/fd"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_many()
    assert len(os.listdir("/proc/self/fd")) == handles
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 20_000  # KiB


REAL = [
    "ut-interaction/0_1_4.avi",
    "ut-interaction/39_7_3.avi",
    "ut-interaction/66_1_6.avi",
    "fir-action/20200626_154313_mlx90640_01_light_none.mp4",
]


@pytest.mark.parametrize("name", REAL)
def test_real_videos(name: str, shared_data: Path) -> None:
    path = shared_data / "video" / name
    numbers = random.Random(name).sample(range(probe(path).frames), 12)
    count, kept = 0, {}
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if count in numbers:
                kept[count] = frame.to_ndarray(format="rgb24")
            count += 1
    assert probe(path).frames == count
    assert np.array_equal(read_clip(path, numbers), np.stack([kept[n] for n in numbers]))
    for number in numbers[:3]:
        assert np.array_equal(read_clip(path, [number])[0], kept[number])
