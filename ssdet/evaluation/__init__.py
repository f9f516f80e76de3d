"""Protocols, average precision, prediction sets and the uncertainty of differences."""

from ssdet.evaluation.average_precision import HistogramAP, average_precision
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
from ssdet.evaluation.protocols import Score, dense_map
from ssdet.evaluation.significance import BootstrapResult, mean_and_sd, paired_bootstrap

__all__ = [
    "BootstrapResult",
    "HistogramAP",
    "PredictionSet",
    "PredictionWriter",
    "Score",
    "average_precision",
    "dense_map",
    "mean_and_sd",
    "paired_bootstrap",
]
