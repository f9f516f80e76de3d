"""Training clips: which video, which frames, which crop, decided by seed and position alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ssdet.data.frames import FrameReader, dense_targets
from ssdet.data.manifest import Manifest, Video
from ssdet.data.recipes import ClipRecipe
from ssdet.data.sampling import generator_for, sample_at, window
from ssdet.data.video import CorruptVideo
from ssdet.sockets import shorten_worker_sockets

MAX_REPLACEMENTS = 100


class ShortVideo(ValueError):
    """A video too short for the recipe's clips."""


@dataclass
class Batch:
    """B clips with the labels of what they show."""

    clips_BTHWC: Tensor
    """uint8."""
    targets_BKF: Tensor
    """float32 0/1; F = frames · stride video frames (segments), or 1 column (one label a clip)."""
    mask_BF: Tensor
    """bool: which of the F frames exist (a short video is repeated)."""
    positions_B: Tensor
    """Position of each sample in the stream of samples."""
    replaced: dict[str, str]
    """Videos that could not be read, with the reason; another clip stands in for each."""
    videos: list[str]
    """Ids of the videos that the clips are of."""
    starts_B: Tensor
    """The video frame that each clip begins with."""

    def __len__(self) -> int:
        return len(self.clips_BTHWC)

    def split(self, parts: int) -> list["Batch"]:
        """Equal parts: samples 0, parts, 2 · parts, … first, so that groups stay together."""
        return [
            Batch(
                self.clips_BTHWC[part::parts],
                self.targets_BKF[part::parts],
                self.mask_BF[part::parts],
                self.positions_B[part::parts],
                self.replaced,
                self.videos[part::parts],
                self.starts_B[part::parts],
            )
            for part in range(parts)
        ]


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


def collate(samples: Sequence[dict]) -> Batch:
    """Stack samples of `Clips` into a batch."""
    return Batch(
        torch.stack([sample["clip"] for sample in samples]),
        torch.stack([sample["targets"] for sample in samples]),
        torch.stack([sample["mask"] for sample in samples]),
        torch.tensor([sample["position"] for sample in samples]),
        {name: why for sample in samples for name, why in sample["replaced"].items()},
        [sample["video"] for sample in samples],
        torch.tensor([sample["start"] for sample in samples]),
    )


def batches(
    clips: Clips,
    batch: int,
    start: int,
    stop: int,
    rank: int,
    world: int,
    loaders: int = 0,
    decoders: int = 0,
) -> Iterator[Batch]:
    """Batches of steps start…stop-1, the share of worker `rank`: samples rank, rank + world, …

    `loaders` processes, or `decoders` tasks of Ray, decode ahead; what they deliver does not
    depend on their number. ValueError for a batch that does not divide evenly among the workers.
    """
    if batch % world:
        raise ValueError(f"batch {batch} does not divide among {world} workers")
    places = (
        list(range(step * batch + rank, (step + 1) * batch, world)) for step in range(start, stop)
    )
    return load(clips, places, loaders, decoders)


def load(
    dataset: Dataset, places: Iterable[list[Any]], loaders: int, decoders: int
) -> Iterator[Batch]:
    """The samples of a data set at these places, a batch for each."""
    if decoders:
        from ssdet.data.decoders import stream  # which rests on this module

        return stream(dataset, places, decoders)
    if loaders:
        shorten_worker_sockets()
    loader: DataLoader = DataLoader(
        dataset, batch_sampler=places, collate_fn=collate, num_workers=loaders
    )
    return iter(loader)


def normalise(clips_BTHWC: Tensor, recipe: ClipRecipe, device: torch.device) -> Tensor:
    """uint8 pictures to the network's input: float32 [B, C, T, H, W], channels last in memory."""
    std = torch.tensor(recipe.std, device=device)
    scale, shift = 1 / (255 * std), -torch.tensor(recipe.mean, device=device) / std
    pictures = clips_BTHWC.to(device, non_blocking=True).float()
    return pictures.mul_(scale).add_(shift).permute(0, 4, 1, 2, 3)
