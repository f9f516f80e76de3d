"""Models by name: the function that builds a model carries the model's name."""

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_OPTIONS: dict[str, list[str]] = {}


def register(builder: Builder) -> Builder:
    """Make ``builder(num_classes, *, ...) -> nn.Module`` available under its function name."""
    return variant_of(builder)(builder)


def variant_of(base: Callable[..., nn.Module]) -> Callable[[Builder], Builder]:
    """Register a builder that hands ``**options`` on to ``base`` and so has the options of it."""

    def add(builder: Builder) -> Builder:
        name = builder.__name__
        if name in _BUILDERS:
            raise ValueError(f"model {name!r} is registered twice")
        _BUILDERS[name] = builder
        _OPTIONS[name] = list(inspect.signature(base).parameters)[1:]
        return builder

    return add


def available(pattern: str = "*") -> list[str]:
    """Sorted names of the models that match a shell pattern, such as ``"x3d_*"``."""
    return sorted(name for name in _BUILDERS if fnmatchcase(name, pattern))


def create(
    name: str, num_classes: int, *, generator: torch.Generator | None = None, **options: Any
) -> nn.Module:
    """Build a model with fresh weights.

    With a generator the weights depend on it alone and torch's global generator is left as it was.
    Raises ValueError for an unknown name, TypeError for an option that the model does not have.
    """
    if name not in _BUILDERS:
        raise ValueError(f"no model named {name!r}{_hint(name, available())}")
    known = _OPTIONS[name]
    for option in options:
        if option not in known:
            raise TypeError(f"model {name!r} has no option {option!r}{_hint(option, known)}")
    with seeded(generator):
        return _BUILDERS[name](num_classes, **options)


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


def _hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    if close:
        return f": did you mean {' or '.join(map(repr, close))}?"
    return f": choose from {', '.join(known)}"
