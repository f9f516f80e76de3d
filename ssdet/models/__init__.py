"""Video and feature models, built by name."""

from ssdet.models import coarse_fine as _coarse_fine  # noqa: F401
from ssdet.models import i3d as _i3d  # noqa: F401
from ssdet.models import linear as _linear  # noqa: F401
from ssdet.models import ms_tct as _ms_tct  # noqa: F401
from ssdet.models import pdan as _pdan  # noqa: F401
from ssdet.models import slow as _slow  # noqa: F401
from ssdet.models import slow_r50 as _slow_r50  # noqa: F401
from ssdet.models import slowfast as _slowfast  # noqa: F401
from ssdet.models import stgcn as _stgcn  # noqa: F401
from ssdet.models import super_events as _super_events  # noqa: F401
from ssdet.models import tgm as _tgm  # noqa: F401
from ssdet.models import two_stream as _two_stream  # noqa: F401
from ssdet.models import vs_st_mpnn as _vs_st_mpnn  # noqa: F401
from ssdet.models import weights_features as _weights_features  # noqa: F401
from ssdet.models import weights_i3d as _weights_i3d  # noqa: F401
from ssdet.models import weights_ms_tct as _weights_ms_tct  # noqa: F401
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
