"""Video and feature models, built by name."""

from ssdet.models import i3d as _i3d  # noqa: F401
from ssdet.models import linear as _linear  # noqa: F401
from ssdet.models import weights_i3d as _weights_i3d  # noqa: F401
from ssdet.models import x3d as _x3d  # noqa: F401
from ssdet.models.fast import accelerate
from ssdet.models.norm import (
    aggregate_splits,
    gather_splits,
    scatter_splits,
    set_splits,
    splits_for,
)
from ssdet.models.registry import available, create
from ssdet.models.weights import LoadReport, load_weights

__all__ = [
    "LoadReport",
    "accelerate",
    "aggregate_splits",
    "available",
    "create",
    "gather_splits",
    "load_weights",
    "scatter_splits",
    "set_splits",
    "splits_for",
]
