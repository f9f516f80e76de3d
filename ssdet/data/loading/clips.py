"""Training clips: which video, which frames, which crop, decided by seed and position alone."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.frame_readers import FrameReader, dense_targets
from ssdet.data.loading.recipe import ClipRecipe
from ssdet.data.loading.sampling import generator_for, sample_at, window
from ssdet.data.video.reader import CorruptVideo

MAX_REPLACEMENTS = 100


class ShortVideo(ValueError):
    """A video too short for the recipe's clips."""


class Clips(Dataset):
    """Endless stream of training clips, indexed by position.

    A video that cannot be read is replaced by the next of a sequence drawn for the position, and
    named in the sample, so that it can be counted. RuntimeError when a hundred in a row fail,
    ValueError for a data set without videos.
    """

    def __init__(self, manifest: Manifest, reader: FrameReader, recipe: ClipRecipe, seed: int):
        if not manifest.videos:
            raise ValueError(f"data set {manifest.name!r} has no videos in this split")
        self.manifest, self.reader, self.recipe, self.seed = manifest, reader, recipe, seed

    def __getitem__(self, position: int) -> dict:
        epoch, index = sample_at(self.seed, position, len(self.manifest.videos))
        draws = generator_for(self.seed, "clip", epoch, index)
        failed: dict[str, str] = {}
        for _ in range(MAX_REPLACEMENTS):
            video = self.manifest.videos[index]
            try:
                return {**self._clip(video, draws), "position": position, "replaced": failed}
            except (CorruptVideo, ShortVideo) as error:
                failed[video.id] = getattr(error, "reason", str(error))
                index = int(torch.randint(len(self.manifest.videos), (), generator=draws))
        raise RuntimeError(
            f"data set {self.manifest.name!r}: {MAX_REPLACEMENTS} videos in a row cannot be read, "
            f"or are too short; check its files: {failed}"
        )

    def _clip(self, video: Video, draws: torch.Generator) -> dict:
        recipe = self.recipe
        start, scale, top, left, flip = torch.rand(5, generator=draws).tolist()
        length = self.reader.frames(video)
        if length < recipe.span and recipe.short_videos == "drop":
            raise ShortVideo(f"{length} frames, the recipe's window is {recipe.span}: left out")
        indices = window(length, recipe.frames, recipe.stride, start, recipe.window)
        pictures = torch.from_numpy(np.ascontiguousarray(self.reader.read(video, indices)))
        pictures = random_crop(pictures, recipe, scale, top, left)
        if flip < recipe.flip:
            pictures = pictures.flip(2)
        targets, mask = self._targets(video, length, indices[0])
        return {
            "clip": pictures, "targets": targets, "mask": mask,
            "video": video.id, "start": indices[0],
        }  # fmt: skip

    def _targets(self, video: Video, length: int, start: int) -> tuple[Tensor, Tensor]:
        if video.label is not None:
            targets = torch.zeros(self.manifest.num_classes, 1)
            targets[video.label] = 1
            return targets, torch.ones(1, dtype=torch.bool)
        span = self.recipe.frames * self.recipe.stride
        dense = dense_targets(self.manifest, video, self.reader)
        frames = np.arange(start, start + span)
        columns = torch.from_numpy(dense[:, frames % length])
        return columns.float(), torch.from_numpy(frames < length)


def centre_clips(video: Video, reader: FrameReader, recipe: ClipRecipe, count: int = 1) -> Tensor:
    """uint8 [count, T, H, W, C]: the middle of the frames of clips that are spread evenly over a
    video from its first to its last, without draws; one is that from its middle.

    Raises CorruptVideo.
    """
    length = reader.frames(video)
    room = max(0, length - recipe.span)
    starts = [room * place // (count - 1) for place in range(count)] if count > 1 else []
    clips = []
    for start in starts or [(room + 1) // 2]:
        indices = [(start + i * recipe.stride) % length for i in range(recipe.frames)]
        pictures = torch.from_numpy(np.ascontiguousarray(reader.read(video, indices)))
        clips.append(centre_crop(pictures, recipe.size))
    return torch.stack(clips)


def random_crop(
    clip_THWC: Tensor, recipe: ClipRecipe, scale: float, top: float, left: float
) -> Tensor:
    """Square crop as after scaling the short side to a length drawn from `recipe.short_side`, or
    of a share of it drawn from `recipe.scales`.

    scale, top and left are draws in [0, 1). The crop is cut first and scaled once (MODELS.md 2.1).
    """
    height, width = clip_THWC.shape[1:3]
    if recipe.scales:
        cut = max(1, int(min(height, width) * recipe.scales[int(scale * len(recipe.scales))]))
    else:
        low, high = recipe.short_side
        side = low + scale * (high - low)
        cut = max(1, round(min(height, width) * recipe.size / side))
    y, x = int(top * (height - cut + 1)), int(left * (width - cut + 1))
    return resize(clip_THWC[:, y : y + cut, x : x + cut], (recipe.size, recipe.size))


def resize(clip_THWC: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased; uint8 in and out, same layout. The same size is returned as it is."""
    if tuple(clip_THWC.shape[1:3]) == size:
        return clip_THWC
    planes = clip_THWC.permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    return scaled.permute(0, 2, 3, 1)


def centre_crop(clip_THWC: Tensor, size: int) -> Tensor:
    """Central square of the short side, scaled to `size`."""
    height, width = clip_THWC.shape[1:3]
    cut = min(height, width)
    y, x = (height - cut) // 2, (width - cut) // 2
    return resize(clip_THWC[:, y : y + cut, x : x + cut], (size, size))


def normalise(clips_BTHWC: Tensor, recipe: ClipRecipe, device: torch.device) -> Tensor:
    """uint8 pictures to the network's input: float32 [B, C, T, H, W], channels last in memory."""
    std = torch.tensor(recipe.std, device=device)
    scale, shift = 1 / (255 * std), -torch.tensor(recipe.mean, device=device) / std
    pictures = clips_BTHWC.to(device, non_blocking=True).float()
    return pictures.mul_(scale).add_(shift).permute(0, 4, 1, 2, 3)
