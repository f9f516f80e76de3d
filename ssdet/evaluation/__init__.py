"""Protocols, average precision, prediction sets, ensembles and statistics of differences."""

from typing import TYPE_CHECKING

from ssdet.system.lazy import attach

if TYPE_CHECKING:
    from ssdet.evaluation.average_precision import HistogramAP, average_precision
    from ssdet.evaluation.ensembling.combination import combine
    from ssdet.evaluation.ensembling.selection import (
        error_correlation,
        fit_weights,
        marginal_gains,
        select_greedily,
    )
    from ssdet.evaluation.files.submission import Submission, read_submission, write_submission
    from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
    from ssdet.evaluation.protocols.charades_official import charades_localization, official_points
    from ssdet.evaluation.protocols.conditional import ConditionalScore, conditional_map
    from ssdet.evaluation.protocols.dense import (
        Score,
        dense_map,
        dense_map_in_parts,
        dense_map_min162,
    )
    from ssdet.evaluation.protocols.registry import PROTOCOLS, Material, Reading, score_all
    from ssdet.evaluation.protocols.sampled import multithumos_map, sampled25_indices, sampled25_map
    from ssdet.evaluation.protocols.segments import (
        frame_segments,
        read_detections,
        read_kit,
        segment_average_precision,
    )
    from ssdet.evaluation.protocols.strata import StratumScore, acts, boundary, strata
    from ssdet.evaluation.statistics.bootstrap import BootstrapResult, mean_and_sd, paired_bootstrap
    from ssdet.evaluation.statistics.comparison import (
        detectable_difference,
        effect_size,
        holm,
        paired_sd,
        verdict,
    )

attach(
    __name__,
    {
        "ssdet.evaluation.average_precision": ["HistogramAP", "average_precision"],
        "ssdet.evaluation.ensembling.combination": ["combine"],
        "ssdet.evaluation.ensembling.selection": [
            "error_correlation",
            "fit_weights",
            "marginal_gains",
            "select_greedily",
        ],
        "ssdet.evaluation.files.submission": ["Submission", "read_submission", "write_submission"],
        "ssdet.evaluation.predictions": ["PredictionSet", "PredictionWriter"],
        "ssdet.evaluation.protocols.charades_official": [
            "charades_localization",
            "official_points",
        ],
        "ssdet.evaluation.protocols.conditional": ["ConditionalScore", "conditional_map"],
        "ssdet.evaluation.protocols.dense": [
            "Score",
            "dense_map",
            "dense_map_in_parts",
            "dense_map_min162",
        ],
        "ssdet.evaluation.protocols.registry": ["PROTOCOLS", "Material", "Reading", "score_all"],
        "ssdet.evaluation.protocols.sampled": [
            "multithumos_map",
            "sampled25_indices",
            "sampled25_map",
        ],
        "ssdet.evaluation.protocols.segments": [
            "frame_segments",
            "read_detections",
            "read_kit",
            "segment_average_precision",
        ],
        "ssdet.evaluation.protocols.strata": ["StratumScore", "acts", "boundary", "strata"],
        "ssdet.evaluation.statistics.bootstrap": [
            "BootstrapResult",
            "mean_and_sd",
            "paired_bootstrap",
        ],
        "ssdet.evaluation.statistics.comparison": [
            "detectable_difference",
            "effect_size",
            "holm",
            "paired_sd",
            "verdict",
        ],
    },
)
