"""The linear probe: the optimum that scikit-learn finds, on the frames that it says it reads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssdet.data import CorruptVideo, Manifest, Segment, Video
from ssdet.data.loading.clips import ClipRecipe
from ssdet.data.video.clock import Clock
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import score_video
from ssdet.training.heads.probe import extract, fit
from ssdet.training.recipe import ProbeRecipe

CPU = torch.device("cpu")
CLIP = ClipRecipe(size=2, short_side=(2, 2), mean=(0.5,) * 3, std=(0.2,) * 3)
PREDICT = PredictRecipe(CLIP, window=16)


def colour(clips_BCTHW: Tensor) -> Tensor:
    """Three features a frame."""
    return clips_BCTHW.mean((3, 4))


def problem(rows: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of unequal scale that hang together, and labels that they tell in part."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    inputs = mixed * torch.logspace(-2, 2, 12) + torch.linspace(-5, 50, 12)
    noisy = mixed[:, :5] + 2 * torch.randn(rows, 5, generator=generator)
    return inputs, (noisy > torch.linspace(-2, 3, 5)).float()


@pytest.mark.parametrize(("l2", "close", "closer"), [(0.1, 1e-3, 1e-3), (1e-3, 2e-2, 3e-3)])
def test_every_class_is_what_scikit_learn_finds(l2, close, closer) -> None:
    """Where the optimum is flat, single precision ends the search a little early."""
    inputs, labels = problem()
    probe = fit(colour, inputs, labels, ProbeRecipe(l2=l2))
    rows = ((inputs - inputs.mean(0)) / inputs.std(0)).double().numpy()
    for k in range(5):
        # It weighs the sum of losses against half the squared norm, we their mean.
        other = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-9, max_iter=20_000)
        other.fit(rows, labels[:, k].numpy())
        np.testing.assert_allclose(probe.weight_KD[k].numpy(), other.coef_[0], atol=close)
        assert float(probe.bias_K[k]) == pytest.approx(other.intercept_[0], abs=close)
        mine = (rows @ probe.weight_KD[k].double().numpy()) + float(probe.bias_K[k])
        np.testing.assert_allclose(
            1 / (1 + np.exp(-mine)), other.predict_proba(rows)[:, 1], atol=closer
        )


def test_the_probe_standardises_what_it_is_shown() -> None:
    inputs, labels = problem()
    probe = fit(lambda clips: clips, inputs, labels, ProbeRecipe())
    rows = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-6)
    expected = rows @ probe.weight_KD.T + probe.bias_K
    torch.testing.assert_close(probe(inputs.T[None])[0].T, expected, rtol=1e-3, atol=1e-3)


def test_nothing_is_drawn() -> None:
    inputs, labels = problem()
    torch.manual_seed(0)
    first = fit(colour, inputs, labels, ProbeRecipe())
    torch.manual_seed(1)
    second = fit(colour, inputs, labels, ProbeRecipe())
    assert torch.equal(first.weight_KD, second.weight_KD)
    assert torch.equal(first.bias_K, second.bias_K)


def test_empty_classes_and_dead_features_harm_nobody() -> None:
    inputs, labels = problem()
    plain = fit(colour, inputs, labels, ProbeRecipe(l2=0.01))
    empty, dead = torch.zeros(len(labels), 1), torch.full((len(inputs), 1), 3.0)
    probe = fit(
        colour, torch.cat([inputs, dead], 1), torch.cat([labels, empty], 1), ProbeRecipe(l2=0.01)
    )
    assert probe.weight_KD.isfinite().all() and probe.bias_K.isfinite().all()
    assert not probe.weight_KD[:, 12].any() and float(probe.bias_K[5]) < -5
    torch.testing.assert_close(probe.weight_KD[:5, :12], plain.weight_KD, rtol=0, atol=2e-3)


class Pictures:
    """2 x 2 pictures of one colour that drifts; class 0 is "more red than green", 1 "blue"."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken = set(broken)
        rng = np.random.default_rng(0)
        drift = rng.normal(0, 12, (40, 40, 3)).cumsum(1) + rng.uniform(60, 190, (40, 1, 3))
        self.colours = np.clip(drift, 0, 255).astype(np.uint8)
        red, green, blue = (self.colours[:, :, c].astype(int) for c in range(3))
        self.labels = np.stack([red > green, blue > 128], 2)

    def frames(self, video: Video) -> int:
        if video.id in self.broken:
            raise CorruptVideo(video.path, f"{video.id} is broken")
        return 40

    def fps(self, video: Video) -> float:
        return 10.0

    def clock(self, video: Video) -> Clock:
        frames = self.frames(video)
        return Clock.regular(frames, frames / video.duration if video.duration else self.fps(video))

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        rows = self.colours[int(video.id)][list(indices)]
        return np.broadcast_to(rows[:, None, None], (len(rows), 2, 2, 3))

    def video(self, number: int) -> Video:
        parts = [
            Segment(k, (frame - 0.5) / 10, (frame + 0.5) / 10)
            for frame in range(40)
            for k in range(2)
            if self.labels[number, frame, k]
        ]
        return Video(str(number), "", "train", segments=tuple(parts))


def manifest(reader: Pictures, numbers: range) -> Manifest:
    return Manifest("m", ("red", "blue"), tuple(reader.video(number) for number in numbers))


@pytest.mark.parametrize("stride", [1, 3])
def test_rows_are_clip_frames_with_their_labels(stride) -> None:
    reader = Pictures(broken=["1"])
    recipe = replace(PREDICT, clip=replace(CLIP, stride=stride))
    inputs, labels, broken = extract(colour, manifest(reader, range(4)), reader, recipe, CPU)
    readable = [0, 2, 3]
    expected = (reader.colours[readable, ::stride].reshape(-1, 3) / 255 - 0.5) / 0.2
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-5)
    assert np.array_equal(labels.numpy(), reader.labels[readable, ::stride].reshape(-1, 2))
    assert labels.dtype == torch.float32 and broken == {"1": "1 is broken"}


def test_a_linear_rule_is_found_on_videos_it_never_saw() -> None:
    reader = Pictures()
    inputs, labels, _ = extract(colour, manifest(reader, range(32)), reader, PREDICT, CPU)
    probe = fit(colour, inputs, labels, ProbeRecipe(l2=1e-5))
    right = []
    for number in range(32, 40):
        scores = score_video(probe, reader.video(number), reader, PREDICT, CPU)
        right.append((scores.numpy() > 0) == reader.labels[number])
    assert np.mean(right) > 0.98


def test_a_split_of_which_nothing_can_be_read_is_refused() -> None:
    reader = Pictures(broken=["0", "1"])
    with pytest.raises(ValueError, match=r"'m'.*0 is broken"):
        extract(colour, manifest(reader, range(2)), reader, PREDICT, CPU)
