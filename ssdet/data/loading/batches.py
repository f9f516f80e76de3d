"""Batches of clips, decoded in this process, in loader processes or elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssdet.system.sockets import shorten_worker_sockets


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


Decode = Callable[[Dataset, Iterable[list[Any]]], Iterator[Batch]]
"""Decodes the samples of a data set at these places, a batch for each, on other machines."""


def batches(
    dataset: Dataset,
    batch: int,
    start: int,
    stop: int,
    rank: int,
    world: int,
    loaders: int = 0,
    decode: Decode | None = None,
) -> Iterator[Batch]:
    """Batches of steps start…stop-1, the share of worker `rank`: samples rank, rank + world, …

    `loaders` processes, or `decode`, decode ahead; what they deliver does not depend on them.
    ValueError for a batch that does not divide evenly among the workers.
    """
    if batch % world:
        raise ValueError(f"batch {batch} does not divide among {world} workers")
    places = (
        list(range(step * batch + rank, (step + 1) * batch, world)) for step in range(start, stop)
    )
    return load(dataset, places, loaders, decode)


def load(
    dataset: Dataset, places: Iterable[list[Any]], loaders: int = 0, decode: Decode | None = None
) -> Iterator[Batch]:
    """Batches of the samples of a data set at these places."""
    if decode is not None:
        return decode(dataset, places)
    if loaders:
        shorten_worker_sockets()
    loader: DataLoader = DataLoader(
        dataset, batch_sampler=places, collate_fn=collate, num_workers=loaders
    )
    return iter(loader)
