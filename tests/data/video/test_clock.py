"""One clock per file: labels, grids, caches, copies, features and scores follow it."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.data.features.shards import FeatureSet, FeatureWriter
from ssdet.data.loading.frame_rate import ResampledReader
from ssdet.data.loading.frame_readers import Decoder, dense_targets, open_cache, timing
from ssdet.data.maintenance.convert import ConvertOptions, convert_video
from ssdet.data.video.clock import Clock
from ssdet.data.video.stream import video_clock
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
from ssdet.evaluation.protocols.segments import frame_segments

# Two seconds at 25 frames a second in light, two at 5 in the dark.
PHONE = [Fraction(n, 25) for n in range(50)] + [2 + Fraction(n, 5) for n in range(10)]
STEADY = [Fraction(n, 25) for n in range(100)]
ACTION = Segment(0, 2.3, 3.5)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def video(name: str, times: list[Fraction], codec: str = "libx264", begin: float = 0) -> Path:
        path = tmp_path / name
        tick = Fraction(1, 25) if name.endswith("avi") else Fraction(1, 1000)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options={"g": "10"})
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            stream.codec_context.time_base = tick
            if begin:
                sound = container.add_stream("aac", rate=16000, layout="mono")
                for number in range(80):
                    samples = av.AudioFrame.from_ndarray(
                        np.zeros((1, 1024), np.float32), "fltp", "mono"
                    )
                    samples.sample_rate, samples.pts = 16000, 1024 * number
                    samples.time_base = Fraction(1, 16000)
                    container.mux(sound.encode(samples))
                container.mux(sound.encode())
            for number, time in enumerate(times):
                picture = np.full((32, 48, 3), 2 * number + 20, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = round((time + Fraction(begin)) / tick), tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return video


def of(path: Path, duration: float | None = 4.0) -> tuple[Manifest, Video]:
    video = Video("v", str(path), "test", None, (ACTION,), duration)
    return Manifest("m", ("a",), (video,)), video


def shown_in_action(times: list[Fraction]) -> list[int]:
    return [n for n, time in enumerate(times) if ACTION.start < time < ACTION.end]


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "libx264"), ("v.mkv", "libx264"),
                                             ("v.webm", "libvpx"), ("v.avi", "mpeg4")])  # fmt: skip
def test_labels_follow_variable_rates(name: str, codec: str, write: Write) -> None:
    manifest, video = of(write(name, PHONE, codec))
    labelled = np.flatnonzero(dense_targets(manifest, video, Decoder())[0])
    assert labelled.tolist() == shown_in_action(PHONE)


@pytest.mark.parametrize("duration", [4.0, 3.0, 5.5, None])
def test_annotated_durations_do_not_move_labels(duration: float | None, write: Write) -> None:
    manifest, video = of(write("v.mp4", STEADY), duration)
    labelled = np.flatnonzero(dense_targets(manifest, video, Decoder())[0])
    assert labelled.tolist() == shown_in_action(STEADY)


def test_pictures_that_begin_after_the_sound(write: Write) -> None:
    manifest, video = of(write("v.mp4", STEADY, begin=0.48))
    times = [time + Fraction(12, 25) for time in STEADY]
    labelled = np.flatnonzero(dense_targets(manifest, video, Decoder())[0])
    assert labelled.tolist() == shown_in_action(times)


@pytest.mark.parametrize("duration", [4.0, 3.99, None])
def test_constant_rates_stay_to_the_bit(duration: float | None, write: Write) -> None:
    """The formulas that held before files had clocks: f / (frames / duration), of the annotation
    or of the file, and the nearest frame at the mean rate."""
    _, video = of(write("v.mp4", STEADY), duration)
    reader = Decoder()
    rate = 100 / (duration or 4.0)
    assert np.array_equal(reader.clock(video).times_T, np.arange(100) / rate)
    grid = ResampledReader(reader, 10.0)
    assert grid.frames(video) == 40
    assert np.array_equal(grid.clock(video).times_T, np.arange(40) / (40 / (duration or 4.0)))
    expected = [min(int(np.floor(round(n * 2.5, 9) + 0.5)), 99) for n in range(40)]
    assert np.array_equal(grid.read(video, range(40)), reader.read(video, expected))


def test_grids_take_the_frame_that_is_nearest_in_time(write: Write) -> None:
    manifest, video = of(write("v.mp4", PHONE))
    reader = Decoder()
    grid = ResampledReader(reader, 5.0)
    times = np.array([float(time) for time in PHONE])
    nearest = [int(np.abs(times - n / 5).argmin()) for n in range(19)]
    assert grid.frames(video) == 19, "the last frame is shown for 0.04 s, to 3.84 s"
    assert np.array_equal(grid.read(video, range(19)), reader.read(video, nearest))
    labelled = np.flatnonzero(dense_targets(manifest, video, grid)[0])
    assert labelled.tolist() == [n for n in range(19) if ACTION.start < n / 5 < ACTION.end]


def test_folders_of_pictures_are_spread_over_the_annotated_duration(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(40):
        Image.new("RGB", (32, 24)).save(tmp_path / f"v-{number:03d}.jpg")
    _, video = of(tmp_path)
    assert np.array_equal(Decoder().clock(video).times_T, np.arange(40) / (40 / 4.0))
    assert timing(Decoder(), video) == 24.0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("begin", [0, 0.48])
def test_copies_keep_the_times(packed: bool, begin: float, write: Write, tmp_path: Path) -> None:
    manifest, video = of(write("v.mkv", PHONE, begin=begin))
    copy = tmp_path / "out" / ("v.pack" if packed else "v.mp4")
    convert_video(
        video, copy.parent, {"v": copy.name}, ConvertOptions(short_side=32, packed=packed)
    )
    was, now = video_clock(video.path), video_clock(copy)
    assert np.abs(was.times_T - now.times_T).max() < 1e-6 and abs(was.end - now.end) < 1e-3
    _, converted = of(copy)
    labels = [dense_targets(manifest, one, Decoder()) for one in (video, converted)]
    assert np.array_equal(*labels) and labels[0].any()


def test_caches_keep_the_times(write: Write, tmp_path: Path) -> None:
    for times in (PHONE, STEADY):
        manifest, video = of(write(f"v{len(times)}.mp4", times))
        cache = open_cache(manifest, None, tmp_path / "cache", processes=1)
        assert np.array_equal(cache.clock(video).times_T, Decoder().clock(video).times_T)


def test_scores_and_features_keep_the_times(write: Write, tmp_path: Path) -> None:
    manifest, video = of(write("v.mp4", PHONE))
    timed, scores_TK = timing(Decoder(), video), np.linspace(0, 1, 60)[:, None]
    with PredictionWriter(tmp_path / "p", 1) as writer:
        writer.add("v", scores_TK, timed)
        writer.add("w", scores_TK, 25.0)
    kept = PredictionSet.open(tmp_path / "p")
    assert kept.clock("v").times_T == pytest.approx([float(t) for t in PHONE])
    assert kept.clock("w").rate == 25.0
    labels_TK = frame_labels(manifest, kept)["v"]
    assert np.flatnonzero(labels_TK[:, 0]).tolist() == shown_in_action(PHONE)
    with FeatureWriter(tmp_path / "f") as out:
        out.begin("v", 60, timed, 1)
        out.add({"layer": torch.zeros(60, 3)})
        out.commit()
    features = FeatureSet.open(tmp_path / "f")
    labelled = dense_targets(manifest, video, features)  # type: ignore[arg-type]
    assert np.flatnonzero(labelled[0]).tolist() == shown_in_action(PHONE)


def test_segments_of_scores_are_in_seconds_of_the_video_clock() -> None:
    """Frames 50 to 55 of the recording are shown from 2.0 to 3.2 s."""
    scores_TK = np.zeros((60, 1))
    scores_TK[50:56] = 1
    times_T = np.array([float(time) for time in PHONE])
    found = frame_segments(scores_TK, Clock(times_T, 4.0), levels=(0.5,))
    assert found[:, :3] == pytest.approx(np.array([[0, 2.0, 3.2]]))


def test_altered_times_are_refused(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, 1) as writer:
        writer.add("v", np.zeros((3, 1)), Clock(np.array([0.0, 0.1, 0.5]), 0.6))
    index = json.loads((tmp_path / "0.json").read_text())
    index["videos"][0][3]["end"] = 9.0
    (tmp_path / "0.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="checksum"):
        PredictionSet.open(tmp_path)


@pytest.mark.parametrize(
    "times", [[], [0.0, 0.0], [0.2, 0.1], [0.0, float("nan")], [0.0, float("inf")], [0.0, 1.0]]
)
def test_times_that_do_not_ascend(times: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Clock.from_json({"times": times, "end": 1.0})


def test_a_clock_is_read_once_and_anew_for_another_file(write: Write, monkeypatch) -> None:
    path = write("v.mp4", STEADY)
    first = video_clock(path)
    with monkeypatch.context() as patched:
        patched.setattr("ssdet.data.video.stream.decoding", None)  # it would be opened again
        assert video_clock(path) is first
    write("v.mp4", PHONE)
    assert video_clock(path).rate is None
