"""Video and feature models, built by name."""

from ssdet.models import x3d as _x3d  # noqa: F401
from ssdet.models.fast import accelerate
from ssdet.models.norm import set_splits
from ssdet.models.registry import available, create

__all__ = ["accelerate", "available", "create", "set_splits"]
