"""The frame cache: the very frames of the decoder, whoever fills it and whatever is killed."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ssdet.data import CorruptVideo, Manifest, Video, load_manifest
from ssdet.data.datasets.moving_shapes import write_video
from ssdet.data.loading.frame_readers import Decoder, FrameCache, open_cache

ROOT = Path(__file__).resolve().parents[3]

OPEN = """
import os, signal, sys, zlib
from pathlib import Path
from ssdet.data import load_manifest
from ssdet.data.loading.frame_readers import open_cache

def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

manifest = load_manifest("moving_shapes", sys.argv[1], split="downstream")
cache = open_cache(manifest, None, Path(sys.argv[2]), progress, processes=2)
for video in manifest.videos:
    print(video.id, zlib.crc32(cache.read(video, range(cache.frames(video)))))
"""


def opening(shapes: Path, root: Path, die_at: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", OPEN, str(shapes), str(root), str(die_at)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def folders(root: Path, suffix: str = "") -> list[Path]:
    """Caches in a folder, the whole ones or, by suffix, those that were begun."""
    return [path for path in root.iterdir() if path.is_dir() and path.suffix == suffix]


def never(done: int, total: int) -> None:
    raise AssertionError("decoded again")


@pytest.fixture(scope="module")
def videos(shapes: Path) -> Manifest:
    return load_manifest("moving_shapes", shapes, split="downstream")


@pytest.fixture(scope="module")
def filled(videos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    open_cache(videos, None, root, processes=1)
    return root


@pytest.mark.parametrize("size", [None, 16])
def test_the_cache_is_the_decoder(videos, tmp_path, size) -> None:
    counts: list[tuple[int, int]] = []
    cache = open_cache(videos, size, tmp_path, lambda *count: counts.append(count), processes=1)
    assert counts == [(done, 20) for done in range(1, 21)]
    decoder = Decoder(size)
    rng = np.random.default_rng(0)
    for video in videos.videos[::4]:
        assert cache.frames(video) == decoder.frames(video) == 48
        assert cache.fps(video) == decoder.fps(video) == 12
        for indices in (range(48), rng.integers(0, 48, 9).tolist(), [5, 5, 0], []):
            mine, other = cache.read(video, indices), decoder.read(video, indices)
            assert mine.dtype == other.dtype == np.uint8
            assert np.array_equal(mine, other)
        with pytest.raises(IndexError):
            cache.read(video, [48])


def test_pictures_that_change_size_on_the_way(tmp_path) -> None:
    path = tmp_path / "odd.mkv"
    rng = np.random.default_rng(0)
    sizes = {True: (48, 64), False: (24, 32)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width = sizes[True]
        stream.pix_fmt = "yuvj420p"
        small = av.CodecContext.create("mjpeg", "w")
        small.height, small.width = sizes[False]
        small.pix_fmt, small.time_base = "yuvj420p", Fraction(1, 10)
        for number in range(280):
            large = number < 200
            noise = rng.integers(0, 255, (*sizes[large], 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format="yuvj420p")
            frame.pts = number
            for packet in stream.encode(frame) if large else small.encode(frame):
                packet.stream, packet.pts, packet.dts = stream, number, number
                container.mux(packet)
    odd = Manifest("odd", ("a",), (Video("odd", str(path), "train", 0),))
    cache = open_cache(odd, None, tmp_path / "cache", processes=1)
    asked = [0, 199, 200, 255, 256, 279]
    expected = Decoder().read(odd.videos[0], asked)
    assert np.array_equal(cache.read(odd.videos[0], asked), expected)


def test_broken_videos_are_remembered_with_their_reason(videos, tmp_path) -> None:
    whole = Path(videos.videos[0].path).read_bytes()
    kinds = {"empty": b"", "text": b"no video", "cut": whole[: len(whole) // 2]}
    found = []
    for name, data in kinds.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(data)
        found.append(Video(name, str(path), "train", 0))
    good = tmp_path / "good.mp4"
    good.write_bytes(whole)
    found.append(Video("good", str(good), "train", 0))
    manifest = Manifest("mixed", ("a",), tuple(found))
    root = tmp_path / "cache"
    open_cache(manifest, None, root, processes=1)
    cache = open_cache(manifest, None, root, never, processes=1)
    for video in found[:3]:
        with pytest.raises(CorruptVideo) as expected:
            Decoder().frames(video)
        for ask in (cache.frames, cache.fps, lambda video: cache.read(video, [0])):
            with pytest.raises(CorruptVideo) as error:
                ask(video)
            assert error.value.reason == expected.value.reason
            assert os.fspath(error.value.path) == video.path
    assert cache.frames(found[3]) == 48


def test_a_cache_belongs_to_one_data_set_and_one_scale(videos, filled, tmp_path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(Path(videos.videos[0].path).parent, moved)
    same = replace(videos, videos=tuple(
        replace(video, path=str(moved / Path(video.path).name)) for video in videos.videos
    ))  # fmt: skip
    assert open_cache(same, None, filled, never).folder == folders(filled)[0]
    first = videos.videos[0]
    rest = videos.videos[1:]
    longer = tmp_path / "longer.mp4"
    longer.write_bytes(Path(first.path).read_bytes() + b"\0" * 8)
    others = [
        (replace(videos, videos=rest), None),
        (replace(videos, videos=(replace(first, split="test"), *rest)), None),
        (replace(videos, videos=(replace(first, segments=()), *rest)), None),
        (replace(videos, videos=(replace(first, path=str(longer)), *rest)), None),
        (videos, 16),
    ]
    for manifest, size in others:
        with pytest.raises(AssertionError, match="decoded again"):
            open_cache(manifest, size, filled, never, processes=1)
    assert len(folders(filled)) == 1


@pytest.mark.timeout(240)
def test_a_killed_fill_leaves_nothing_that_is_read(shapes, videos, filled, tmp_path) -> None:
    killed = opening(shapes, tmp_path, die_at=3)
    assert killed.wait() == -signal.SIGKILL
    assert len(folders(tmp_path, ".partial")) == 1 and not folders(tmp_path)
    # Orphans that held the lock would keep this waiting.
    cache = open_cache(videos, None, tmp_path, processes=1)
    assert cache.folder.name == folders(filled)[0].name and not folders(tmp_path, ".partial")
    other = FrameCache(folders(filled)[0])
    for video in videos.videos:
        assert np.array_equal(cache.read(video, range(48)), other.read(video, range(48)))


@pytest.mark.timeout(240)
def test_two_processes_fill_one_cache(shapes, tmp_path) -> None:
    both = [opening(shapes, tmp_path) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert not any(process.returncode for process in both)
    assert said[0] == said[1] and len(said[0].splitlines()) == 20
    assert len(folders(tmp_path)) == 1 and not folders(tmp_path, ".partial")


def test_long_videos_are_whole(tmp_path) -> None:
    """More frames than are decoded at a time."""
    rng = np.random.default_rng(0)
    path = tmp_path / "long.mp4"
    write_video(path, rng.integers(0, 256, (600, 16, 16, 3), np.uint8))
    manifest = Manifest("long", ("a",), (Video("long", str(path), "train", 0),))
    cache = open_cache(manifest, None, tmp_path / "cache", processes=1)
    video = manifest.videos[0]
    assert cache.frames(video) == 600
    assert np.array_equal(cache.read(video, range(600)), Decoder().read(video, range(600)))


def test_small_videos_are_not_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, np.zeros((5, 48, 64, 3), np.uint8))
    video = Video("v", str(path), "train", 0)
    assert Decoder(320).read(video, [0]).shape == (1, 48, 64, 3)
    assert Decoder(24).read(video, [0]).shape == (1, 24, 32, 3)
    for size, side in ((320, 48), (24, 24)):
        manifest = Manifest("m", ("a",), (video,))
        cache = open_cache(manifest, size, tmp_path / f"cache{size}", processes=1)
        assert cache.read(video, [0]).shape[1] == side
