"""Batches of clips and their loading, in this process, in loader processes or on other machines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssdet.system.sockets import shorten_worker_sockets


@dataclass
class Batch:
    """B clips with their labels."""

    clips_BTHWC: Tensor
    """uint8."""
    targets_BKF: Tensor
    """float32 0/1; F = frames · stride video frames, or 1 for clips with one label."""
    mask_BF: Tensor
    """bool: frames that exist (a short video is repeated)."""
    positions_B: Tensor
    """Positions of the samples in the stream of samples."""
    replaced: dict[str, str]
    """Reason by id of videos that could not be read and were replaced by other clips."""
    videos: list[str]
    """Video id of each clip."""
    starts_B: Tensor
    """First video frame of each clip."""

    def __len__(self) -> int:
        return len(self.clips_BTHWC)

    def split(self, parts: int) -> list["Batch"]:
        """Split into equal parts; the first has samples 0, parts, 2 · parts, ..., and so on."""
        fields = vars(self)
        return [
            Batch(**{n: v if n == "replaced" else v[part::parts] for n, v in fields.items()})
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
"""Decodes a batch of a data set for each list of positions, on other machines."""


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
    """Batches of steps start ... stop-1 for worker `rank`: samples rank, rank + world, ...

    `loaders` processes, or `decode`, decode ahead without changing the batches. Raises ValueError
    unless the batch divides evenly among the workers.
    """
    if batch % world:
        raise ValueError(f"batch {batch} does not divide among {world} workers")
    positions = (
        list(range(step * batch + rank, (step + 1) * batch, world)) for step in range(start, stop)
    )
    return load(dataset, positions, loaders, decode)


def load(
    dataset: Dataset, positions: Iterable[list[Any]], loaders: int = 0, decode: Decode | None = None
) -> Iterator[Batch]:
    """Batches of the samples of a data set at these positions."""
    if decode is not None:
        return decode(dataset, positions)
    if loaders:
        shorten_worker_sockets()
    loader: DataLoader = DataLoader(
        dataset, batch_sampler=positions, collate_fn=collate, num_workers=loaders
    )
    return iter(loader)
