"""The assertion that the contract checks share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def expect(kept: object, message: str) -> None:
    """AssertionError with this message unless `kept`; unlike `assert`, also under `python -O`."""
    if not kept:
        raise AssertionError(message)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether no value is off by more than a share of the largest expected one (or of 1)."""
    if found.shape != expected.shape:
        return False
    scale = max(1.0, float(expected.abs().max()))
    return float((found.float() - expected.float()).abs().max()) <= tolerance * scale


def seeded(seed: int) -> torch.Generator:
    """A generator in a known state."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def no_global_draws(what: str) -> Iterator[None]:
    """Expect torch's global generator to end as it began."""
    before = torch.get_rng_state()
    yield
    told = f"{what} draws from torch's global generator: draw from the one that is given"
    expect(torch.equal(torch.get_rng_state(), before), told)
