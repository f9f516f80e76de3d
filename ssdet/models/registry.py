"""Registry of models: a model's name is that of the function that builds it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import nn

from ssdet.plugins import Registry, hint

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
Choice = TypeVar("Choice", bound=str)


class _Entry(NamedTuple):
    build: Callable[..., nn.Module]
    options: list[str]


_MODELS: Registry[_Entry] = Registry("model")
available = _MODELS.available


def register(builder: Builder) -> Builder:
    """Make ``builder(num_classes, *, ...) -> nn.Module`` available under its function name."""
    return variant_of(builder)(builder)


def variant_of(base: Callable[..., nn.Module]) -> Callable[[Builder], Builder]:
    """Register a builder that passes ``**options`` to ``base`` and so has the same options."""

    def add(builder: Builder) -> Builder:
        entry = _Entry(builder, list(inspect.signature(base).parameters)[1:])
        _MODELS.add(builder.__name__, entry, builder.__module__)
        return builder

    return add


def options_of(name: str) -> list[str]:
    """Names of a model's options; ValueError for an unknown model."""
    return _MODELS[name].options


def create(
    name: str, num_classes: int, *, generator: torch.Generator | None = None, **options: Any
) -> nn.Module:
    """Build a model with fresh weights.

    With a generator the weights depend on it alone and torch's global generator is unchanged.
    Raises ValueError for an unknown name, TypeError for an unknown option.
    """
    build, allowed = _MODELS[name]
    for option in options:
        if option not in allowed:
            raise TypeError(f"model {name!r} has no option {option!r}{hint(option, allowed)}")
    with seeded(generator):
        return build(num_classes, **options)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seed torch's global generator, which module constructors use, from ``generator``, and restore
    it afterwards. None changes nothing."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def one_of(option: str, value: Choice, literal: Any) -> Choice:
    """Return the value of an option; ValueError if it is not among those of a Literal type."""
    if value not in get_args(literal):
        raise ValueError(f"{option}={value!r}: choose from {', '.join(get_args(literal))}")
    return value
