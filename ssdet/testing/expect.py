"""Assertions that the contract checks share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def expect(condition: object, message: str) -> None:
    """AssertionError unless `condition`; `python -O` does not remove it as it does `assert`."""
    if not condition:
        raise AssertionError(message)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether no error exceeds `tolerance` times the largest expected value (or 1)."""
    if found.shape != expected.shape:
        return False
    scale = max(1.0, float(expected.abs().max()))
    return float((found.float() - expected.float()).abs().max()) <= tolerance * scale


def seeded(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def no_global_draws(what: str) -> Iterator[None]:
    """Expect torch's global generator not to change in the block."""
    before = torch.get_rng_state()
    yield
    message = f"{what} draws from torch's global generator: draw from the one that is given"
    expect(torch.equal(torch.get_rng_state(), before), message)
