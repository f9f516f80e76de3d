"""Draws that depend on what is drawn for, and on nothing else.

A generator is made from a seed and the thing's name (epoch, sample, group), so a resumed run, or
one with other numbers of workers, meets the same draws without any generator state being stored.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator_for(*keys: int | str) -> torch.Generator:
    """CPU generator whose state is a function of the keys (numbers and words) alone."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """Order [size] in which the samples of one epoch are visited."""
    return torch.randperm(size, generator=generator_for(seed, "epoch", epoch))


def sample_at(seed: int, position: int, size: int) -> tuple[int, int]:
    """(epoch, sample index) at a position of the endless stream of shuffled epochs."""
    epoch, place = divmod(position, size)
    return epoch, int(epoch_order(seed, epoch, size)[place])


def window(length: int, frames: int, stride: int, draw: float, span: int = 0) -> list[int]:
    """Indices of `frames` frames at `stride`, starting at a share `draw` in [0, 1) of where `span`
    video frames fit (0: as many as lead to the last index).

    A video shorter than the window is gone through cyclically (MODELS.md 2.1).
    """
    span = span or (frames - 1) * stride + 1
    start = int(draw * max(1, length - span + 1))
    return [(start + i * stride) % length for i in range(frames)]
