"""Pretraining for temporal activity detection, and the ablations that show what it is worth.

Subpackages load when they are first touched, so that ``import ssdet`` costs next to nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_PARTS = ("augment", "data", "evaluation", "models", "results", "studies", "training")


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return importlib.import_module(f"ssdet.{name}")
    raise AttributeError(f"module 'ssdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS])
