"""Frames one after the other: those of `read_clip`, at the times at which they are shown."""

import weakref
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ssdet.data import Video
from ssdet.data.loading.frame_rate import ResampledReader
from ssdet.data.loading.frame_readers import Decoder
from ssdet.data.video.reader import CorruptVideo, read_clip
from ssdet.data.video.stream import stream_frames, video_clock


def write(
    path: Path, times: list[int], codec: str = "libx264", rotation: int = 0, sound: bool = False
) -> Path:
    """A video of frames at these milliseconds, each another grey; sound starts at 0."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "2", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number, time in enumerate(times):
            picture = np.full((48, 64, 3), 3 * number % 256, np.uint8)
            picture[:, :20] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), "f4"), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, 0
            container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("size", [None, 24])
def test_frames_are_those_of_a_clip(file, size, tmp_path) -> None:
    codec = "mpeg4" if file.endswith("avi") else "libx264"
    path = write(tmp_path / file, [40 * n for n in range(70)], codec)
    for numbers in (range(70), range(0, 70, 3), [5], [1, 1, 2, 60, 60], []):
        found = list(stream_frames(path, numbers, size))
        expected = read_clip(path, numbers, size)
        assert len(found) == len(expected)
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_one_frame_is_held_at_a_time(tmp_path) -> None:
    path = write(tmp_path / "a.mp4", [40 * n for n in range(60)])
    alive: list[weakref.ref] = []
    for picture in stream_frames(path, range(60)):
        alive.append(weakref.ref(picture))
        del picture
        assert sum(one() is not None for one in alive) <= 1
    assert len(alive) == 60


def test_times_are_those_at_which_frames_are_shown(tmp_path) -> None:
    times = [0, 40, 100, 500, 520, 560, 1500]
    for file in ("a.mp4", "a.mkv"):
        found = video_clock(write(tmp_path / file, times))
        np.testing.assert_allclose(found.times_T, np.array(times) / 1000, atol=1e-3)
        assert found.end > 1.5
        np.testing.assert_allclose(found.ends(1, 3), [0.1, 0.5], atol=1e-3)
        assert found.ends(5, 7).tolist() == [found.times_T[6], found.end]
        assert len(found.ends(0, 7)) == 7


def test_pictures_that_begin_after_the_sound_keep_their_times(tmp_path) -> None:
    path = write(tmp_path / "late.mkv", [800 + 40 * n for n in range(10)], sound=True)
    found = video_clock(path)
    assert found.times_T[0] == pytest.approx(0.8, abs=0.03)
    assert found.end == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("rate", [24.0, 10.0, 25.0, 60.0, 0.1])
def test_a_grid_is_that_of_data_sets(rate, tmp_path) -> None:
    path = write(tmp_path / "a.mp4", [40 * n for n in range(57)])
    video = Video("a", str(path), "test")
    asked = []

    class Asked(Decoder):
        def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
            asked.extend(indices)
            return np.zeros(0)

    grid = ResampledReader(Asked(), rate)
    grid.read(video, range(grid.frames(video)))
    assert video_clock(path).grid(rate).tolist() == asked


def test_a_grid_goes_by_the_times_of_frames(tmp_path) -> None:
    times = video_clock(write(tmp_path / "a.mp4", [0, 40, 100, 500, 520, 560, 1500]))
    assert times.grid(2.0).tolist() == [0, 3, 5]
    found = [picture.mean() for picture in stream_frames(tmp_path / "a.mp4", [0, 3, 3, 5])]
    assert found[0] < found[1] == found[2] < found[3]


def test_a_folder_of_pictures_is_a_video(tmp_path) -> None:
    from PIL import Image

    for number in range(1, 13):
        Image.fromarray(np.full((20, 30, 3), 10 * number, np.uint8)).save(
            tmp_path / f"x-{number:06}.jpg"
        )
    assert video_clock(tmp_path).end == pytest.approx(0.5)
    found = list(stream_frames(tmp_path, [0, 11]))
    assert [int(picture.mean().round()) for picture in found] == [10, 120]


def test_what_is_broken_is_reported(tmp_path) -> None:
    path = write(tmp_path / "a.mp4", [40 * n for n in range(60)])
    with pytest.raises(IndexError, match="frame 60 requested"):
        list(stream_frames(path, [60]))
    cut = tmp_path / "cut.mkv"
    content = write(tmp_path / "b.mkv", [40 * n for n in range(60)]).read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    for call in (video_clock, lambda p: list(stream_frames(p, range(60)))):
        with pytest.raises(CorruptVideo):
            call(cut)
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "none.mp4")
