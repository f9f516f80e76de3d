"""Pretraining for temporal activity detection, and the ablations that show what it is worth.

Subpackages load when they are first touched, so that ``import ssdet`` costs next to nothing.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_PARTS = ("augment", "data", "evaluation", "models", "detection", "results", "studies", "training")
_NAMES = {"Detector": "ssdet.detection.detector"}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"ssdet.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'ssdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS, *_NAMES])
