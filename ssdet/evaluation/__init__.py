"""Protocols, average precision, prediction sets and the uncertainty of differences."""

from typing import TYPE_CHECKING

from ssdet.lazy import attach

if TYPE_CHECKING:
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

attach(
    __name__,
    {
        "average_precision": ["HistogramAP", "average_precision"],
        "charades_official": ["charades_localization", "official_points"],
        "comparison": ["detectable_difference", "effect_size", "holm", "paired_sd", "verdict"],
        "conditional": ["ConditionalScore", "conditional_map"],
        "ensemble": ["combine"],
        "members": ["error_correlation", "fit_weights", "marginal_gains", "select_greedily"],
        "predictions": ["PredictionSet", "PredictionWriter"],
        "protocols": ["Score", "dense_map", "dense_map_in_parts", "dense_map_min162"],
        "registry": ["PROTOCOLS", "Material", "Reading", "score_all"],
        "sampled": ["multithumos_map", "sampled25_map"],
        "significance": ["BootstrapResult", "mean_and_sd", "paired_bootstrap"],
        "strata": ["StratumScore", "acts", "boundary", "strata"],
        "submission": ["Submission", "read_submission", "write_submission"],
        "tiou": ["frame_segments", "read_detections", "segment_average_precision"],
    },
)
