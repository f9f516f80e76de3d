"""Paired bootstrap over videos and seeds: is the difference of two arms more than chance?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssdet.evaluation.average_precision import Array, checked, class_blocks, descending_order

Scores = Mapping[str, Array | torch.Tensor]

RESAMPLE_BLOCK = 256
CELLS = 2_000_000  # videos x bins of one class: what a resample multiplies
MIN_BINS, MAX_BINS = 1024, 4096


@dataclass(frozen=True)
class BootstrapResult:
    """Difference b - a of the mean average precision (fractions) with its uncertainty."""

    difference: float
    """On the videos as they are, mean over seeds."""
    low: float
    high: float
    """Percentile interval of the resampled differences."""
    p_value: float
    """Two-sided: twice the smaller share of resamples on either side of 0, counting one more."""
    resamples: int
    confidence: float


def paired_bootstrap(
    scores_a: Scores | Sequence[Scores],
    scores_b: Scores | Sequence[Scores],
    targets: Scores,
    resamples: int = 1000,
    generator: torch.Generator | None = None,
    confidence: float = 0.95,
) -> BootstrapResult:
    """Resample videos with replacement, the same for both arms, and compare their dense mAP.

    All three map the same video ids to [T, K]; equal scores share a precision. Sequences hold
    one mapping per seed, paired by position: then seeds are resampled with the videos, and a
    difference is the mean over the drawn seeds (with few seeds their spread is understated by
    about (S - 1) / S). Classes without a positive in a resample are left out of both arms of it.
    Draws come from ``generator`` (default: seed 0): videos [resamples, V], then seeds
    [resamples, S]. Exact while a class has no more distinct scores of positives than bins
    (1024 to 4096); beyond that neighbours share a bin, with an error of the mAP below 1e-4
    (measured: benchmarks/average_precision.py). Raises ValueError where videos or shapes differ,
    or where a resample has no positive at all.
    """
    seeds_a, seeds_b = _as_seeds(scores_a), _as_seeds(scores_b)
    _check(seeds_a, seeds_b, targets)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples={resamples} must be >= 1, confidence={confidence} in (0, 1)")
    generator = generator or torch.Generator().manual_seed(0)
    videos_RV = _draw(resamples, len(targets), generator)
    seeds_RS = _draw(resamples, len(seeds_a), generator)
    weights_RV = torch.cat([torch.ones(1, len(targets)), videos_RV])  # row 0: the data themselves
    difference_RS = _differences(seeds_a, seeds_b, targets, weights_RV)
    drawn_R = (difference_RS[1:] * seeds_RS.numpy()).sum(axis=1) / len(seeds_a)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn_R, [tail, 1 - tail])
    smaller = min((drawn_R <= 0).sum(), (drawn_R >= 0).sum())
    return BootstrapResult(
        difference=float(difference_RS[0].mean()),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * (smaller + 1) / (resamples + 1))),
        resamples=resamples,
        confidence=confidence,
    )


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) over seeds; no deviation for a single value."""
    if not len(values):
        raise ValueError("no value to average: the runs of this arm have no score")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _as_seeds(scores: Scores | Sequence[Scores]) -> Sequence[Scores]:
    return [scores] if isinstance(scores, Mapping) else scores


def _draw(resamples: int, items: int, generator: torch.Generator) -> torch.Tensor:
    """How often each item is drawn in each resample, float32 [resamples, items]."""
    drawn_RV = torch.randint(items, (resamples, items), generator=generator)
    counts_RV = torch.zeros(resamples, items)
    return counts_RV.scatter_add_(1, drawn_RV, torch.ones(1).expand(drawn_RV.shape))


def _check(seeds_a: Sequence[Scores], seeds_b: Sequence[Scores], targets: Scores) -> None:
    if len(seeds_a) != len(seeds_b) or not len(seeds_a):
        raise ValueError(
            f"{len(seeds_a)} seeds of one arm and {len(seeds_b)} of the other: pairs are needed"
        )
    if not targets:
        raise ValueError("no video to resample: the targets are empty")
    for arm, seeds in (("a", seeds_a), ("b", seeds_b)):
        for seed, scores in enumerate(seeds):
            if differing := sorted(set(scores) ^ set(targets)):
                raise ValueError(
                    f"scores_{arm}, seed {seed}: {len(differing)} videos are only in the scores "
                    f"or only in the targets ({', '.join(differing[:5])}): compare equal splits"
                )


def _differences(
    seeds_a: Sequence[Scores], seeds_b: Sequence[Scores], targets: Scores, weights_RV: torch.Tensor
) -> Array:
    """mAP of b minus mAP of a for each weighting of the videos and each seed, float64 [R, S]."""
    columns = []
    for scores_a, scores_b in zip(seeds_a, seeds_b, strict=True):
        map_a, map_b = (_resampled_map(s, targets, weights_RV) for s in (scores_a, scores_b))
        columns.append(map_b - map_a)
    return np.stack(columns, axis=1)


def _resampled_map(scores: Scores, targets: Scores, weights_RV: torch.Tensor) -> Array:
    """Mean average precision under each weighting of the videos, float64 [R]."""
    pairs = [checked(scores[v], targets[v], f"video {v!r}") for v in targets]
    video_N = np.repeat(np.arange(len(pairs)), [len(scores_TK) for scores_TK, _ in pairs])
    total_R, classes_R = np.zeros(len(weights_RV)), np.zeros(len(weights_RV))
    for _, scores_bN, hits_bN in class_blocks(*map(list, zip(*pairs, strict=True))):
        for scores_N, hits_N in zip(scores_bN, hits_bN, strict=True):
            if hits_N.any():
                ap_R = _resampled_average_precision(scores_N, hits_N, video_N, weights_RV)
                total_R += np.nan_to_num(ap_R)
                classes_R += ~np.isnan(ap_R)
    if not classes_R.all():
        raise ValueError("a resample has no positive frame: too few videos hold positives")
    return total_R / classes_R


def _resampled_average_precision(
    scores_N: Array, hits_N: Array, video_N: Array, weights_RV: torch.Tensor
) -> Array:
    """Average precision of one class under each weighting, NaN where its positives vanish.

    Weighted negatives and positives per bin are one matrix product. Of its own bin, the average
    positive has seen a share: all where the bin is one group of equal scores, else what it saw
    in the data themselves.
    """
    counts_VB2, share_B2 = _bin_counts(scores_N, hits_N, video_N, weights_RV.shape[1])
    parts = []
    for weights in weights_RV.split(RESAMPLE_BLOCK):
        drawn_RB2 = (weights @ counts_VB2.flatten(1)).view(len(weights), -1, 2)
        seen_RB2 = drawn_RB2.cumsum(1) - drawn_RB2 * (1 - share_B2)
        hits_RB, precision_RB = drawn_RB2[..., 1], seen_RB2[..., 1] / seen_RB2.sum(-1)
        gained_R = (hits_RB * precision_RB.nan_to_num_()).sum(1, dtype=torch.float64)
        parts.append(gained_R / hits_RB.sum(1, dtype=torch.float64))
    return torch.cat(parts).numpy()


def _bin_counts(
    scores_N: Array, hits_N: Array, video_N: Array, videos: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negatives and positives [V, B, 2] in bins of falling score, and their shares [B, 2]."""
    order = descending_order(scores_N)
    ranked_N, hits_N, video_N = scores_N[order], hits_N[order], video_N[order]
    ends_G, hits_G = _tie_groups(ranked_N, hits_N)
    last_B = _last_groups(ends_G, hits_G, min(MAX_BINS, max(MIN_BINS, CELLS // videos)))
    share_B2 = _shares(np.stack([ends_G - hits_G, hits_G], axis=1), last_B)
    bins_N = np.repeat(np.arange(len(last_B)), np.diff(ends_G[last_B], prepend=0))
    kept = len(bins_N)  # frames ranked below the last positive change no precision
    cells_N = (video_N[:kept] * len(last_B) + bins_N) * 2 + hits_N[:kept]
    counts = torch.bincount(torch.from_numpy(cells_N), minlength=videos * len(last_B) * 2)
    return counts.float().view(videos, -1, 2), torch.from_numpy(share_B2).float()


def _tie_groups(ranked_N: Array, hits_N: Array) -> tuple[Array, Array]:
    """Frames and hits counted up to the end of each group of equal scores with a positive."""
    ends = np.flatnonzero(np.append(ranked_N[1:] != ranked_N[:-1], True)) + 1
    hits = np.cumsum(hits_N)[ends - 1]
    positive = np.diff(hits, prepend=0) > 0
    return ends[positive], hits[positive]


def _last_groups(ends_G: Array, hits_G: Array, limit: int) -> Array:
    """Last group of each of at most ``limit`` bins of neighbouring groups.

    A bin spans an equal step of log rank + log hits: fine at the top, where precision changes
    fast, and wide where thousands of positives are already counted.
    """
    if len(ends_G) <= limit:
        return np.arange(len(ends_G))
    depth_G = np.log(ends_G) + np.log(hits_G)
    bin_G = ((depth_G - depth_G[0]) / (depth_G[-1] - depth_G[0]) * (limit - 1)).astype(int)
    return np.flatnonzero(np.append(np.diff(bin_G) > 0, True))


def _shares(counted_G2: Array, last_B: Array) -> Array:
    """Share of its bin's negatives and positives that a positive has seen on average, [B, 2]."""
    starts_B = np.append(0, last_B[:-1] + 1)
    before_B2 = np.vstack([np.zeros((1, 2)), counted_G2[last_B[:-1]]])
    hits_G = np.diff(counted_G2[:, 1], prepend=0)
    mean_B2 = (
        np.add.reduceat(counted_G2 * hits_G[:, None], starts_B)
        / (np.add.reduceat(hits_G, starts_B)[:, None])
    )
    size_B2 = counted_G2[last_B] - before_B2
    return np.divide(mean_B2 - before_B2, size_B2, where=size_B2 > 0, out=np.ones_like(mean_B2))
