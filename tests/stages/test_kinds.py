"""What stages measure on the validation split."""

import numpy as np
import pytest
import torch
from torch import nn

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.clips import ClipRecipe
from ssdet.data.video.reader import CorruptVideo
from ssdet.inference.scoring import Sink
from ssdet.stages.validation import clip_accuracy, validation_of, whole_videos
from ssdet.training.losses import localisation_loss
from ssdet.training.recipe import OptimRecipe, TrainRecipe

CLIP = ClipRecipe(4, 1, 6, (6, 6), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Bright(nn.Module):
    """Calls a clip by the brightness of its first pixel, behind the background's class 0."""

    def forward(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        level_BT = (clips_BCTHW[:, 0, :, 0, 0] * 255).round().long()
        return nn.functional.one_hot(level_BT + 1, 4).float().movedim(2, 1)


class Painted:
    """37 videos; number n shows grey level n mod 3 throughout, and two cannot be read."""

    broken = ("v5", "v20")

    def frames(self, video: Video) -> int:
        return 9

    def read(self, video: Video, indices: list[int]) -> np.ndarray:
        if video.id in self.broken:
            raise CorruptVideo(video.id, "cut short")
        return np.full((len(indices), 6, 8, 3), int(video.id[1:]) % 3, np.uint8)


@pytest.mark.parametrize("wrong", [0, 4])
def test_every_validation_clip_counts_once_and_unreadable_ones_are_misses(wrong) -> None:
    labels = [(n + (n < wrong)) % 3 for n in range(37)]
    videos = tuple(Video(f"v{n}", f"v{n}.mp4", "val", k) for n, k in enumerate(labels))
    manifest = Manifest("painted", ("a", "b", "c"), videos)
    recipe = TrainRecipe("pretrain", clip=CLIP)
    judge = clip_accuracy(recipe, manifest, Painted(), torch.device("cpu"))
    assert judge(Bright()) == {"validation": pytest.approx((37 - 2 - wrong) / 37)}


class Changing(Painted):
    """Grey level n mod 2 but in the middle third, where it is the other."""

    def read(self, video: Video, indices: list[int]) -> np.ndarray:
        level = int(video.id[1:]) % 2
        shown = [1 - level if 3 <= index <= 5 else level for index in indices]
        return np.array(shown, np.uint8)[:, None, None, None].repeat(6, 1).repeat(8, 2).repeat(3, 3)


@pytest.mark.parametrize(("clips", "right"), [(1, 0.0), (3, 1.0)])
def test_clips_of_a_validation_video_are_averaged(clips, right) -> None:
    """One clip shows the middle, three show more of the rest."""
    videos = tuple(Video(f"v{n}", f"v{n}.mp4", "val", n % 2) for n in range(21, 40))
    recipe = TrainRecipe("pretrain", clip=CLIP, validation_clips=clips)
    manifest = Manifest("changing", ("a", "b", "c"), videos)
    judge = clip_accuracy(recipe, manifest, Changing(), torch.device("cpu"))
    assert judge(Bright()) == {"validation": right}


def test_the_loss_of_whole_videos_is_the_localisation_loss() -> None:
    """Followed by a plateau: the mean over videos, from probabilities, in single precision."""
    draws = torch.Generator().manual_seed(0)
    logits = {name: 6 * torch.randn(t, 3, generator=draws) for name, t in (("a", 9), ("b", 30))}
    targets = {k: (torch.rand(v.shape, generator=draws) > 0.5).numpy() for k, v in logits.items()}

    def score(model: nn.Module, sink: Sink) -> None:
        for name, logits_TK in logits.items():
            sink.add(name, logits_TK.sigmoid(), 10.0)

    found = whole_videos(score, targets, OptimRecipe(schedule="plateau"))(nn.Identity())
    losses = [
        localisation_loss(v.T[None], torch.from_numpy(targets[k]).float().T[None],
                          torch.ones(1, len(v), dtype=torch.bool))
        for k, v in logits.items()
    ]  # fmt: skip
    assert found["validation_loss"] == pytest.approx(float(sum(losses)) / 2, rel=2e-3)
    assert "validation_loss" not in whole_videos(score, targets, OptimRecipe())(nn.Identity())


def test_a_plateau_without_videos_is_refused() -> None:
    empty = Manifest("empty", ("a",), ())
    recipe = TrainRecipe("finetune", optim=OptimRecipe(schedule="plateau"))
    with pytest.raises(ValueError, match=r"no videos in the split 'val'.*validate_on='test'"):
        validation_of(recipe, empty, Painted(), torch.device("cpu"))
    assert validation_of(TrainRecipe("finetune"), empty, Painted(), torch.device("cpu")) is None
