"""Video, feature and detection models, created by name, and their weights."""

from ssdet.models.layers.sub_batch_norm import (
    aggregate_splits,
    gather_splits,
    scatter_splits,
    set_splits,
    splits_for,
)
from ssdet.models.networks import (  # noqa: F401 - imported to register them
    coarse_fine,
    i3d,
    linear,
    ms_tct,
    pdan,
    slow,
    slow_r50,
    slowfast,
    stgcn,
    super_events,
    tgm,
    two_stream,
    vs_st_mpnn,
    x3d,
)
from ssdet.models.networks.fusion import Mixing, Modulation
from ssdet.models.networks.pyramid import FineFeatures, pyramid
from ssdet.models.networks.x3d_cpu import accelerate
from ssdet.models.registry import available, create
from ssdet.models.weights import layouts  # noqa: F401
from ssdet.models.weights.loading import LoadReport, load_weights

__all__ = [
    "FineFeatures",
    "LoadReport",
    "Mixing",
    "Modulation",
    "accelerate",
    "aggregate_splits",
    "available",
    "create",
    "gather_splits",
    "load_weights",
    "pyramid",
    "scatter_splits",
    "set_splits",
    "splits_for",
]
