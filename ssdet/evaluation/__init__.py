"""Protocols, average precision, prediction sets and the uncertainty of differences."""

from ssdet.evaluation.average_precision import HistogramAP, average_precision
from ssdet.evaluation.comparison import (
    detectable_difference,
    effect_size,
    holm,
    paired_sd,
    verdict,
)
from ssdet.evaluation.ensemble import combine
from ssdet.evaluation.members import (
    error_correlation,
    fit_weights,
    marginal_gains,
    select_greedily,
)
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
from ssdet.evaluation.protocols import Score, dense_map
from ssdet.evaluation.significance import BootstrapResult, mean_and_sd, paired_bootstrap
from ssdet.evaluation.strata import StratumScore, acts, boundary, strata

__all__ = [
    "BootstrapResult",
    "HistogramAP",
    "PredictionSet",
    "PredictionWriter",
    "Score",
    "StratumScore",
    "acts",
    "average_precision",
    "boundary",
    "combine",
    "dense_map",
    "detectable_difference",
    "effect_size",
    "error_correlation",
    "fit_weights",
    "holm",
    "marginal_gains",
    "mean_and_sd",
    "paired_bootstrap",
    "paired_sd",
    "select_greedily",
    "strata",
    "verdict",
]
