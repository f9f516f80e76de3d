"""Packs: the frames of the original in number and order, and no damage that is not told."""

import io
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ssdet.data import CorruptVideo, Video, probe, read_clip
from ssdet.data.loading.frame_readers import Decoder
from ssdet.data.maintenance.convert import ConvertOptions, convert_video
from ssdet.data.video.packs import is_pack, pack


def packed(source: Path, out: Path, short_side: int = 256) -> Path:
    options = ConvertOptions(short_side=short_side, packed=True)
    name = f"{source.stem}.pack"
    convert_video(Video(source.stem, str(source), "train"), out, {source.stem: name}, options)
    return out / name


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.fixture(scope="module")
def original(videos: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"bf": "3", "g": "20", "crf": "10"}
    return videos.write(tmp_path_factory.mktemp("original") / "a b é.mp4", options=options)


@pytest.fixture(scope="module")
def copy(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(original, tmp_path_factory.mktemp("packs"))


def test_every_frame_is_the_one_of_its_number(original, copy, videos) -> None:
    truth = videos.decode(original)
    stored = read_clip(copy, range(len(truth)))
    assert stored.shape == truth.shape
    error = ((stored[:, None].astype(float) - truth[None]) ** 2).mean((2, 3, 4))
    assert np.array_equal(error.argmin(1), np.arange(len(truth)))
    assert decibels(stored, truth) > 33


def test_it_is_read_like_any_file(original, copy) -> None:
    ours, theirs = probe(copy), probe(original)
    for name in ("frames", "fps", "duration", "width", "height"):
        assert getattr(ours, name) == getattr(theirs, name)
    video, decoder = Video("a", str(copy), "train"), Decoder(24)
    clip = decoder.read(video, [30, 2, 2])
    assert clip.shape == (3, 24, 32, 3)
    assert np.array_equal(clip[1], clip[2]) and not np.array_equal(clip[0], clip[1])
    assert np.array_equal(clip[0], read_clip(copy, [30], size=24)[0])
    assert read_clip(copy, []).shape == (0, 48, 64, 3)
    for wrong in (-1, 50):
        with pytest.raises(IndexError):
            read_clip(copy, [wrong])


def test_the_pictures_are_jpeg_files_for_others_too(original, copy, videos) -> None:
    index = pack(copy)
    content = copy.read_bytes()[index.offsets[7] : index.offsets[8]]
    brightness = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    truth = np.asarray(Image.fromarray(videos.decode(original)[7]).convert("L"))
    assert decibels(brightness, truth) > 35


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("spread", [1, 2])
def test_colours_keep_matrix_and_range(matrix, spread, videos, tmp_path) -> None:
    path = tmp_path / "tagged.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        codec = stream.codec_context
        codec.thread_count, codec.colorspace, codec.color_range = 1, matrix, spread
        for _ in range(3):
            picture = np.full((48, 64, 3), (200, 60, 30), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            container.mux(stream.encode(
                frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=spread)
            ))  # fmt: skip
        container.mux(stream.encode())
    truth = read_clip(path, [1])
    assert np.abs(truth.astype(int) - (200, 60, 30)).max() <= 4
    assert np.abs(read_clip(packed(path, tmp_path), [1]).astype(int) - truth).max() <= 4


def test_short_side_scales_and_never_enlarges(original, tmp_path) -> None:
    assert read_clip(packed(original, tmp_path, 24), [3]).shape == (1, 24, 32, 3)
    assert read_clip(packed(original, tmp_path, 500), [3]).shape == (1, 48, 64, 3)


def test_odd_sides_become_even(videos, tmp_path) -> None:
    odd = videos.write(tmp_path / "odd.mp4", size=(47, 61), pixels="yuv444p", frames=3)
    assert read_clip(packed(odd, tmp_path), [2]).shape == (1, 46, 60, 3)


def test_one_wrong_byte_is_told(copy, tmp_path) -> None:
    content = copy.read_bytes()
    draw = random.Random(0)
    path = tmp_path / "damaged.pack"
    for place in [
        8,
        *draw.sample(range(8, len(content)), 40),
        *range(len(content) - 32, len(content)),
    ]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptVideo, match=r"damaged|cut short|expected"):
            pack(path)
            read_clip(path, range(50))


def test_a_pack_is_told_by_its_name(copy) -> None:
    assert is_pack(copy) and is_pack("a/what?.pack") and is_pack("s3://b/x.pack?region=eu")
    assert not is_pack("a.pack/b.mp4") and not is_pack("s3://b/x.mp4?y=.pack")


def test_a_cut_pack_is_told(copy, tmp_path) -> None:
    content = copy.read_bytes()
    path = tmp_path / "cut.pack"
    for length in [0, 5, 60, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CorruptVideo, match="cut short|empty file"):
            probe(path)
    path.write_bytes(content[:200] + content[260:])
    with pytest.raises(CorruptVideo, match="bytes of pictures"):
        probe(path)
    path.write_text("not a pack, but long enough to hold what would be the trailer of one, see?")
    with pytest.raises(CorruptVideo, match="not a pack"):
        read_clip(path, [0])
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "absent.pack")
