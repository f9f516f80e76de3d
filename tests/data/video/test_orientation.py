"""The eight orientations of video files and JPEG pictures, by numpy's turns and mirror images."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.frame_readers import open_cache
from ssdet.data.maintenance.convert import ConvertOptions, convert_video
from ssdet.data.video.reader import probe, read_clip
from ssdet.data.video.stream import stream_frames
from ssdet.detection.overlay import Overlay
from ssdet.detection.segments import Rows

HEIGHT, WIDTH = 48, 64
Turn = Callable[[np.ndarray], np.ndarray]
# Rows of the display matrix of MP4 (a, b, c, d, x, y), and what they make of a stored picture.
MATRICES: dict[str, tuple[tuple[int, ...], Turn]] = {
    "as it is": ((1, 0, 0, 1, 0, 0), lambda p: p),
    "clockwise": ((0, 1, -1, 0, HEIGHT, 0), lambda p: np.rot90(p, -1)),
    "half a turn": ((-1, 0, 0, -1, WIDTH, HEIGHT), lambda p: np.rot90(p, 2)),
    "counter-clockwise": ((0, -1, 1, 0, 0, WIDTH), lambda p: np.rot90(p, 1)),
    "left and right": ((-1, 0, 0, 1, WIDTH, 0), lambda p: p[:, ::-1]),
    "top and bottom": ((1, 0, 0, -1, 0, HEIGHT), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0, 0, 0), lambda p: p.transpose(1, 0, 2)),
    "the other diagonal": (
        (0, -1, -1, 0, HEIGHT, WIDTH), lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    ),
}  # fmt: skip
# What Pillow's own ImageOps.exif_transpose does, by the value of the tag.
EXIF: dict[int, Turn] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: np.rot90(p, 2),
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


def scene() -> np.ndarray:
    """A picture without any symmetry."""
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    picture[:12, :16] = (220, 30, 30)
    picture[36:, :32] = (30, 200, 60)
    return picture


def near(shown: np.ndarray, expected: np.ndarray) -> bool:
    return shown.shape == expected.shape and float(np.abs(shown - expected.astype(int)).mean()) < 4


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(scene(), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def oriented(plain: Path, folder: Path, name: str) -> Path:
    a, b, c, d, x, y = MATRICES[name][0]
    content = bytearray(plain.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30)
    content[place : place + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    path = folder / "turned.mp4"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", MATRICES)
def test_files_stand_upright(name: str, plain: Path, tmp_path: Path) -> None:
    path, expected = oriented(plain, tmp_path, name), MATRICES[name][1](scene())
    info, clip = probe(path), read_clip(path, [5, 0])
    assert near(clip[0], expected) and clip.flags.c_contiguous
    assert (info.height, info.width) == expected.shape[:2]
    streamed = np.stack(list(stream_frames(path, [0, 5])))
    assert np.array_equal(streamed, clip[::-1])
    # The numbers of `probe` are the same operation: mirrored, then turned counter-clockwise.
    stored = scene()[:, ::-1] if info.mirrored else scene()
    assert np.array_equal(np.rot90(stored, info.rotation // 90), expected)
    assert read_clip(path, [0], size=24).shape[1:3] == (24, 32)[:: -1 if info.rotation % 180 else 1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_copies_hold_what_is_shown(name: str, packed: bool, plain: Path, tmp_path: Path) -> None:
    path, expected = oriented(plain, tmp_path, name), MATRICES[name][1](scene())
    copy = tmp_path / "out" / ("v.pack" if packed else "v.mp4")
    options = ConvertOptions(short_side=HEIGHT, packed=packed, crf=5)
    convert_video(Video("v", str(path), "train", 0), copy.parent, {"v": copy.name}, options)
    assert near(read_clip(copy, [2])[0], expected)
    assert (probe(copy).rotation, probe(copy).mirrored) == (0, False)


def test_caches_and_overlays_hold_what_is_shown(plain: Path, tmp_path: Path) -> None:
    path, expected = oriented(plain, tmp_path, "transposed"), scene().transpose(1, 0, 2)
    video = Video("v", str(path), "train", 0)
    cache = open_cache(Manifest("m", ("a",), (video,)), None, tmp_path / "cache", processes=1)
    assert near(cache.read(video, [3])[0], expected)
    out = tmp_path / "overlay.mp4"
    with Overlay(str(path), out, ["a"], 0.5, 1) as overlay:
        times_N = np.arange(6) / 25
        overlay.add(Rows(0, times_N, times_N + 0.04, np.zeros((6, 1), np.float32)))
        overlay.close()
    assert near(read_clip(out, [3])[0], expected)


def jpeg(value: int | None) -> bytes:
    exif = Image.Exif()
    if value is not None:
        exif[0x0112] = value
    out = io.BytesIO()
    Image.fromarray(scene()).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("value", EXIF)
def test_folders_of_pictures_follow_exif(value: int, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"v-{number}.jpg").write_bytes(jpeg(value))
    expected, info = EXIF[value](scene()), probe(tmp_path)
    clip = read_clip(tmp_path, [2, 0])
    assert near(clip[0], expected) and (info.height, info.width) == expected.shape[:2]
    assert np.array_equal(np.stack(list(stream_frames(tmp_path, [0, 2]))), clip[::-1])
    copy = tmp_path.parent / f"copy_{value}.pack"
    options = ConvertOptions(short_side=HEIGHT, packed=True)
    convert_video(Video("v", str(tmp_path), "train", 0), copy.parent, {"v": copy.name}, options)
    assert near(read_clip(copy, [1])[0], expected)


def test_each_picture_has_its_own_orientation(tmp_path: Path) -> None:
    for number, value in enumerate([1, 2, None, 4, 99]):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(value))
    shown = read_clip(tmp_path, range(5))
    for picture, value in zip(shown, [1, 2, 1, 4, 1], strict=True):
        assert near(picture, EXIF[value](scene()))


def test_a_broken_tag_is_no_tag(tmp_path: Path) -> None:
    content = jpeg(6)
    place = content.index(b"Exif\0\0") + 6
    (tmp_path / "0.jpg").write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
    assert near(read_clip(tmp_path, [0])[0], scene())
