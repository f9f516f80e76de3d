"""Training clips: a data set whose samples depend on seed and position only; crops, normalising."""

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
    """A video shorter than the window of the recipe."""


class Clips(Dataset):
    """Endless stream of training clips, indexed by position.

    A video that cannot be read is replaced by another one drawn for the position and named in the
    sample. Raises RuntimeError if a hundred in a row fail, ValueError without videos.
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
    """Centre crops of clips spread evenly over a video, uint8 [count, T, H, W, C].

    One clip is taken from the middle of the video. Raises CorruptVideo.
    """
    length = reader.frames(video)
    room = max(0, length - recipe.span)
    starts = [room * i // (count - 1) for i in range(count)] if count > 1 else [(room + 1) // 2]
    clips = []
    for start in starts:
        indices = [(start + i * recipe.stride) % length for i in range(recipe.frames)]
        pictures = torch.from_numpy(np.ascontiguousarray(reader.read(video, indices)))
        clips.append(centre_crop(pictures, recipe.size))
    return torch.stack(clips)


def random_crop(
    clip_THWC: Tensor, recipe: ClipRecipe, scale: float, top: float, left: float
) -> Tensor:
    """Random square crop, by `recipe.scales` if given, else by `recipe.short_side`.

    scale, top and left are draws in [0, 1). Equal to scaling the short side and then cutting, but
    cut first and scaled once.
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
    """Resize uint8 pictures (bilinear, antialiased); returns the input if the size is the same."""
    if tuple(clip_THWC.shape[1:3]) == size:
        return clip_THWC
    planes = clip_THWC.permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    return scaled.permute(0, 2, 3, 1)


def centre_crop(clip_THWC: Tensor, size: int) -> Tensor:
    """Central square of the short side, resized to `size`."""
    height, width = clip_THWC.shape[1:3]
    cut = min(height, width)
    y, x = (height - cut) // 2, (width - cut) // 2
    return resize(clip_THWC[:, y : y + cut, x : x + cut], (size, size))


def normalise(clips_BTHWC: Tensor, recipe: ClipRecipe, device: torch.device) -> Tensor:
    """Normalise uint8 pictures to float32 [B, C, T, H, W], channels last in memory."""
    std = torch.tensor(recipe.std, device=device)
    scale, shift = 1 / (255 * std), -torch.tensor(recipe.mean, device=device) / std
    pictures = clips_BTHWC.to(device, non_blocking=True).float()
    return pictures.mul_(scale).add_(shift).permute(0, 4, 1, 2, 3)
