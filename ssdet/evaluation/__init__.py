"""Protocols, average precision, prediction sets and the uncertainty of differences."""

from ssdet.evaluation.average_precision import HistogramAP, average_precision
from ssdet.evaluation.charades_official import charades_localization, official_points
from ssdet.evaluation.comparison import (
    detectable_difference,
    effect_size,
    holm,
    paired_sd,
    verdict,
)
from ssdet.evaluation.conditional import ConditionalScore, conditional_map
from ssdet.evaluation.ensemble import combine
from ssdet.evaluation.members import (
    error_correlation,
    fit_weights,
    marginal_gains,
    select_greedily,
)
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
from ssdet.evaluation.protocols import (
    Score,
    dense_map,
    dense_map_in_parts,
    dense_map_min162,
)
from ssdet.evaluation.registry import PROTOCOLS, Material, Reading, score_all
from ssdet.evaluation.sampled import multithumos_map, sampled25_map
from ssdet.evaluation.significance import BootstrapResult, mean_and_sd, paired_bootstrap
from ssdet.evaluation.strata import StratumScore, acts, boundary, strata
from ssdet.evaluation.submission import Submission, read_submission, write_submission
from ssdet.evaluation.tiou import (
    frame_segments,
    read_detections,
    segment_average_precision,
)

__all__ = [
    "PROTOCOLS",
    "BootstrapResult",
    "ConditionalScore",
    "HistogramAP",
    "Material",
    "PredictionSet",
    "PredictionWriter",
    "Reading",
    "Score",
    "StratumScore",
    "Submission",
    "acts",
    "average_precision",
    "boundary",
    "charades_localization",
    "combine",
    "conditional_map",
    "dense_map",
    "dense_map_in_parts",
    "dense_map_min162",
    "detectable_difference",
    "effect_size",
    "error_correlation",
    "fit_weights",
    "frame_segments",
    "holm",
    "marginal_gains",
    "mean_and_sd",
    "multithumos_map",
    "official_points",
    "paired_bootstrap",
    "paired_sd",
    "read_detections",
    "read_submission",
    "sampled25_map",
    "score_all",
    "segment_average_precision",
    "select_greedily",
    "strata",
    "verdict",
    "write_submission",
]
