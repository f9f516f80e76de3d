"""Models by name: the function that builds a model carries the model's name."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ssdet.plugins import Registry, hint

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


class _Entry(NamedTuple):
    build: Callable[..., nn.Module]
    options: list[str]


_MODELS: Registry[_Entry] = Registry("model")
available = _MODELS.available


def register(builder: Builder) -> Builder:
    """Make ``builder(num_classes, *, ...) -> nn.Module`` available under its function name."""
    return variant_of(builder)(builder)


def variant_of(base: Callable[..., nn.Module]) -> Callable[[Builder], Builder]:
    """Register a builder that hands ``**options`` on to ``base`` and so has the options of it."""

    def add(builder: Builder) -> Builder:
        entry = _Entry(builder, list(inspect.signature(base).parameters)[1:])
        _MODELS.add(builder.__name__, entry, builder.__module__)
        return builder

    return add


def options_of(name: str) -> list[str]:
    """The options that a model has; ValueError for an unknown name."""
    return _MODELS[name].options


def create(
    name: str, num_classes: int, *, generator: torch.Generator | None = None, **options: Any
) -> nn.Module:
    """Build a model with fresh weights.

    With a generator the weights depend on it alone and torch's global generator is left as it was.
    Raises ValueError for an unknown name, TypeError for an option that the model does not have.
    """
    build, known = _MODELS[name]
    for option in options:
        if option not in known:
            raise TypeError(f"model {name!r} has no option {option!r}{hint(option, known)}")
    with seeded(generator):
        return build(num_classes, **options)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Lend torch's global generator, which module constructors draw from, a seed of ``generator``.

    None leaves the global generator in charge, as everywhere in torch.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
