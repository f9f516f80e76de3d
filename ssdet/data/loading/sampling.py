"""Random generators and sample order as functions of seed and position.

Generators are seeded by names such as (seed, epoch, sample), so a resumed run, or one with another
number of workers, repeats the same draws without stored generator states.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator_for(*keys: int | str) -> torch.Generator:
    """CPU generator seeded by the keys (numbers and strings)."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """Shuffled order [size] of the samples of one epoch."""
    return torch.randperm(size, generator=generator_for(seed, "epoch", epoch))


def sample_at(seed: int, position: int, size: int) -> tuple[int, int]:
    """(epoch, sample index) at a position of the endless stream of shuffled epochs."""
    epoch, step = divmod(position, size)
    return epoch, int(epoch_order(seed, epoch, size)[step])


def window(length: int, frames: int, stride: int, draw: float, span: int = 0) -> list[int]:
    """Indices of `frames` frames at `stride`, starting at the share `draw` in [0, 1) of the starts
    where `span` video frames fit (0: up to the last index).

    A video shorter than the window is repeated cyclically, as in the published code.
    """
    span = span or (frames - 1) * stride + 1
    start = int(draw * max(1, length - span + 1))
    return [(start + i * stride) % length for i in range(frames)]
