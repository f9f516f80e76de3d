"""What stages measure on the validation split."""

import numpy as np
import pytest
import torch
from torch import nn

from ssdet.data.clips import ClipRecipe
from ssdet.data.manifest import Manifest, Video
from ssdet.data.video import CorruptVideo
from ssdet.studies.stages import clip_accuracy
from ssdet.training.recipe import TrainRecipe

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
    assert judge(Bright()) == pytest.approx((37 - 2 - wrong) / 37)
