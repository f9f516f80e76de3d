"""Whole videos through a network: every frame once, at its place, whatever the passes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdet.data import CorruptVideo, Manifest, Segment, Video
from ssdet.data.loading.clips import ClipRecipe
from ssdet.data.video.clock import Clock
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import frame_targets, passes, predict, score_video, stream_logits
from ssdet.models import accelerate, create

CPU = torch.device("cpu")
CLIP = ClipRecipe(size=4, short_side=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
LENGTHS = {"a": 23, "b": 64, "c": 1}


class Pictures:
    """Random 4 x 6 pictures in memory; remembers what was asked for."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        rng = np.random.default_rng(0)
        self.videos = {
            name: rng.integers(0, 256, (length, 4, 6, 3), np.uint8)
            for name, length in LENGTHS.items()
        }
        self.broken, self.asked = set(broken), []

    def frames(self, video: Video) -> int:
        if video.id in self.broken:
            raise CorruptVideo(video.path, f"{video.id} is broken")
        return len(self.videos[video.id])

    def fps(self, video: Video) -> float:
        return 10.0 + self.frames(video)

    def clock(self, video: Video) -> Clock:
        frames = self.frames(video)
        return Clock.regular(frames, frames / video.duration if video.duration else self.fps(video))

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        self.asked.append(list(indices))
        return self.videos[video.id][list(indices)]


class Kept:
    """A writer that keeps."""

    def __init__(self) -> None:
        self.scores: dict[str, tuple[Tensor, float]] = {}

    def add(self, video_id: str, probs_TK: Tensor, fps: float) -> None:
        self.scores[video_id] = probs_TK, fps


def framewise(clips_BCTHW: Tensor) -> Tensor:
    """Mean colour of each frame: what it says of one does not depend on the others."""
    return clips_BCTHW.mean((3, 4))


MANIFEST = Manifest("m", ("x", "y", "z"), tuple(
    Video(name, f"{name}.mp4", "test", segments=(Segment(n, 0.0, 0.5),))
    for n, name in enumerate(LENGTHS)
), missing=("gone",), missing_splits=("test",))  # fmt: skip
A, B, C = MANIFEST.videos


def colours(reader: Pictures, video: Video, stride: int) -> np.ndarray:
    """What `framewise` says of every stride-th frame's central square, [T, 3], by hand."""
    return reader.videos[video.id][::stride, :, 1:5].mean((1, 2)) / 255


@pytest.mark.parametrize("window", [1, 5, 22, 23, 256])
@pytest.mark.parametrize("stride", [1, 2, 3, 7, 30])
def test_passes_do_not_show_in_the_scores(stride, window) -> None:
    reader = Pictures()
    recipe = PredictRecipe(replace(CLIP, stride=stride), window)
    for video in (A, B, C):
        scores = score_video(framewise, video, reader, recipe, CPU).numpy()
        frames = LENGTHS[video.id]
        # Clip frame i stands for video frames i·stride … (i+1)·stride - 1 and their middle.
        places = (np.arange(frames) + 0.5) / stride - 0.5
        steps = colours(reader, video, stride)
        expected = [np.interp(places, np.arange(len(steps)), steps[:, k]) for k in range(3)]
        assert scores.shape == (frames, 3)
        np.testing.assert_allclose(scores, np.stack(expected, 1), atol=1e-5)


@pytest.mark.parametrize(("stride", "window"), [(1, 256), (1, 10), (3, 10), (2, 1), (5, 4)])
def test_passes_cover_every_step_once_in_equal_parts(stride, window) -> None:
    reader = Pictures()
    recipe = PredictRecipe(replace(CLIP, stride=stride), window)
    for video in MANIFEST.videos:
        reader.asked.clear()
        told = [(list(steps), clips.shape) for steps, clips in passes(video, reader, recipe, CPU)]
        assert [steps for steps, _ in told] == reader.asked
        joined = [index for steps in reader.asked for index in steps]
        assert joined == list(range(0, LENGTHS[video.id], stride))
        sizes = [len(steps) for steps in reader.asked]
        assert max(sizes) <= window and max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-len(joined) // window)
        assert all(shape == (1, 3, len(steps), 4, 4) for steps, shape in told)


def test_a_network_sees_whole_passes() -> None:
    seen = []

    def network(clips: Tensor) -> Tensor:
        seen.append(clips.shape[2])
        assert clips.is_inference() and not torch.is_grad_enabled()
        return clips.mean((3, 4)).cumsum(2)

    score_video(network, B, Pictures(), PredictRecipe(CLIP, window=30), CPU)
    assert seen == [21, 21, 22]


def test_predictions_are_probabilities_at_the_videos_rate() -> None:
    reader, kept = Pictures(broken=["b"]), Kept()
    broken = predict(framewise, MANIFEST, reader, PredictRecipe(CLIP), kept, CPU)
    assert broken == {"b": "b is broken"} and kept.scores.keys() == {"a", "c"}
    for video in (A, C):
        probs, fps = kept.scores[video.id]
        assert fps == 10 + LENGTHS[video.id]
        expected = 1 / (1 + np.exp(-colours(reader, video, 1)))
        np.testing.assert_allclose(probs.numpy(), expected, atol=1e-6)


def test_a_video_that_breaks_on_the_way_is_reported() -> None:
    class Cut(Pictures):
        def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
            if video.id == "b" and max(indices) > 40:
                raise CorruptVideo(video.path, "cut")
            return super().read(video, indices)

    kept = Kept()
    broken = predict(framewise, MANIFEST, Cut(), PredictRecipe(CLIP, window=16), kept, CPU)
    assert broken == {"b": "cut"} and kept.scores.keys() == {"a", "c"}


def test_targets_have_a_row_for_every_frame_and_none_for_what_cannot_be_read() -> None:
    targets = frame_targets(MANIFEST, Pictures(broken=["b"]))
    shapes = {name: target.shape for name, target in targets.items()}
    assert shapes == {"a": (23, 3), "b": (0, 3), "c": (1, 3), "gone": (0, 3)}
    assert targets["a"].dtype == bool
    # 33 frames a second: frames 1 … 16 lie inside (0, 0.5); frame 0 is on the border.
    assert np.flatnonzero(targets["a"][:, 0]).tolist() == list(range(1, 17))
    assert not targets["a"][:, 1:].any() and not targets["c"].any()


def test_what_is_broken_or_missing_is_expected_all_the_same(tmp_path) -> None:
    reader = Pictures(broken=["b"])
    with PredictionWriter(tmp_path, 3) as writer:
        predict(framewise, MANIFEST, reader, PredictRecipe(CLIP), writer, CPU)
    score = dense_map(PredictionSet.open(tmp_path), frame_targets(MANIFEST, reader))
    assert (score.videos_scored, score.videos_expected, score.frames) == (2, 4, 24)
    assert score.classes_scored == 1


def local(context: int, seen: list[int]):
    """A network that adds up the frames up to `context` away; zeros beyond the ends."""

    def network(clips: Tensor) -> Tensor:
        seen.append(clips.shape[2])
        kernel = torch.arange(1.0, 2 * context + 2).repeat(3, 1, 1)
        return torch.conv1d(clips.mean((3, 4)), kernel, padding=context, groups=3)

    network.temporal_context = context
    return network


@pytest.mark.parametrize(("stride", "window"), [(1, 9), (1, 30), (3, 10), (2, 13)])
def test_overlapping_passes_are_one_pass(stride, window) -> None:
    clip, reader = replace(CLIP, stride=stride), Pictures()
    for video in (A, B, C):
        seen: list[int] = []
        network = local(3, seen)
        whole = score_video(network, video, reader, PredictRecipe(clip, 1000), CPU)
        seen.clear()
        parts = score_video(network, video, reader, PredictRecipe(clip, window, True), CPU)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
        assert max(seen) <= window
    cut = score_video(network, B, reader, PredictRecipe(clip, window), CPU)
    whole = score_video(network, B, reader, PredictRecipe(clip, 1000), CPU)
    assert (cut - whole).abs().max() > 0.1


def test_a_network_that_sees_everything_gets_an_eighth_of_the_window() -> None:
    seen: list[list[int]] = []
    reader = Pictures()
    score_video(framewise, B, reader, PredictRecipe(CLIP, 32, True), CPU)
    seen = [[asked[0], asked[-1]] for asked in reader.asked]
    # 64 frames in 3 parts of at most 32 - 2 * 4.
    assert seen == [[0, 24], [17, 45], [38, 63]]


def x3d(**options):
    model = create("x3d_tiny", 4, generator=torch.Generator().manual_seed(0), **options).eval()
    torch.nn.init.normal_(model.head.proj.weight, generator=torch.Generator().manual_seed(1))
    return model


def test_x3d_without_squeeze_sees_its_temporal_context_and_no_further() -> None:
    model = x3d(se_ratio=0.0)
    clips = torch.randn(1, 3, 41, 16, 16, generator=torch.Generator().manual_seed(2))
    other = clips.clone()
    other[:, :, 20] += 1
    with torch.inference_mode():
        changed = (model(clips) != model(other)).any(1)[0].nonzero().flatten()
    assert (changed.min(), changed.max()) == (20 - 7, 20 + 7)
    assert model.temporal_context == 7  # a stem of 5 frames and five blocks of 3
    assert x3d().temporal_context is None
    assert create("x3d_m", 2, se_ratio=0.0).temporal_context == 2 + 26


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
def test_windows_of_a_local_network_give_the_scores_of_one_pass(fast, stride) -> None:
    model = accelerate(x3d(se_ratio=0.0)) if fast else x3d(se_ratio=0.0)
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (301, 18, 20, 3), np.uint8))
    clip = ClipRecipe(stride=stride, size=16, short_side=(16, 16))

    def scores(recipe: PredictRecipe) -> Tensor:
        frames = pictures[::stride]
        return torch.cat(list(stream_logits(model, frames, 301, recipe, CPU))).sigmoid()

    whole = scores(PredictRecipe(clip, 1000))
    assert whole.shape == (301, 4) and whole.std() > 0.05
    torch.testing.assert_close(scores(PredictRecipe(clip, 40, True)), whole, atol=1e-6, rtol=0)
    assert (scores(PredictRecipe(clip, 40)) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("stride", "window"), [(1, 256), (1, 10), (3, 7), (30, 2)])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_stream_is_scored_like_a_video(stride, window, overlap) -> None:
    reader = Pictures()
    recipe = PredictRecipe(replace(CLIP, stride=stride), window, overlap)
    for video in (A, B, C):
        pictures = reader.videos[video.id]
        blocks = list(stream_logits(framewise, pictures[::stride], len(pictures), recipe, CPU))
        assert max(len(block) for block in blocks) <= window * stride
        expected = score_video(framewise, video, reader, recipe, CPU)
        torch.testing.assert_close(torch.cat(blocks), expected, atol=1e-5, rtol=0)


class Whole(torch.nn.Module):
    """Scores clips of 8 frames by the mean of their first channel, and nothing else."""

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        assert clips_BCTHW.shape[2] == 8
        return clips_BCTHW.mean((2, 3, 4))


@pytest.mark.parametrize("stride", [1, 2])
def test_clip_scores_are_interpolated_between_the_middles_of_clips(stride) -> None:
    recipe = PredictRecipe(replace(CLIP, frames=8, stride=stride))
    pictures = np.tile(np.arange(64, dtype=np.uint8)[:, None, None, None], (1, 4, 4, 3))
    blocks = stream_logits(Whole(), pictures[::stride], 64, recipe, CPU, "clip")
    found = torch.cat(list(blocks))[:, 0] * 255
    # A ramp: away from the ends a clip's mean is the frame in its middle.
    steps = (torch.arange(64) + 0.5) / stride - 0.5
    inside = slice(6 * stride, 64 - 6 * stride)
    torch.testing.assert_close(found[inside], steps[inside] * stride, atol=1e-3, rtol=0)
    assert len(found) == 64 and found.min() >= 3.4 * stride and found.max() <= 63 - 3.4 * stride


@pytest.mark.parametrize("frames", [3, 5, 8])
def test_a_video_of_one_clip_or_less_is_scored_once(frames) -> None:
    """Clips of 8 frames stand for 4 each: five frames once made two clips of the same frames."""
    calls = []

    class Counting(Whole):
        def classify(self, clips_BCTHW: Tensor) -> Tensor:
            calls.append(clips_BCTHW.shape)
            return super().classify(clips_BCTHW)

    pictures = np.arange(frames, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    recipe = PredictRecipe(replace(CLIP, frames=8))
    blocks = stream_logits(Counting(), pictures.repeat(3, 3), frames, recipe, CPU, "clip")
    scores = torch.cat(list(blocks))
    assert len(calls) == 1
    assert len(scores) == frames and (scores == scores[0]).all()


def test_a_video_shorter_than_a_clip_is_gone_through_again() -> None:
    pictures = np.array([0, 30, 60], np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    recipe = PredictRecipe(replace(CLIP, frames=8))
    [block] = stream_logits(Whole(), pictures.repeat(3, 3), 3, recipe, CPU, "clip")
    mean = (3 * 0 + 3 * 30 + 2 * 60) / 8 / 255
    torch.testing.assert_close(block, torch.full((3, 3), mean))
