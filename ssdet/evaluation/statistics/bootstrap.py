"""Paired bootstrap over videos and seeds: is the difference of two arms more than chance?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from ssdet.evaluation.average_precision import (
    Array,
    EmptyClasses,
    checked,
    class_blocks,
    descending_order,
)

Scores = Mapping[str, Array | torch.Tensor]

RESAMPLE_BLOCK = 64  # resamples at once: their weights and counts stay in the processor's cache
GROUP_BLOCK = 1024  # distinct scores at once
MAX_THREADS = 8  # beyond, threads wait for the interpreter
EXACT_COUNTS = 1 << 24  # float32 adds integers without rounding up to here
ROUNDING = 8 * 2.0**-24


@dataclass(frozen=True)
class Statistic:
    """The score of one prediction set as a function of how often each video is drawn."""

    videos: tuple[str, ...]
    """What is resampled."""
    under: Callable[[torch.Tensor], Array]
    """Scores float64 [R] under the weights [R, V] of R resamples: how often each video is drawn."""
    resamples: int | None = None
    """Most resamples, of a score that is evaluated again for each of them."""


@dataclass(frozen=True)
class BootstrapResult:
    """Difference b - a of a score (fractions) with its uncertainty."""

    difference: float
    """On the videos as they are, mean over seeds."""
    low: float
    high: float
    """Percentile interval of the resampled differences."""
    p_value: float
    """Two-sided: twice the smaller share of resamples on either side of 0, counting one more.

    Never below 2 / (resamples + 1): Holm over m rows at 0.05 needs 40 m resamples or more.
    """
    resamples: int
    confidence: float
    error_bound: float
    """No difference here is further than this from its value in exact arithmetic on these draws."""


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
    [resamples, S]. No bins: every frame keeps its rank, counts are exact integers, and
    ``error_bound`` is what rounding can do: a precision and its product with a count are rounded
    to float32, sums are float64, so an average precision is off by less than 3 * 2**-24 of
    itself and a difference of two by less than 8 * 2**-24 = 5e-7. Time grows with frames x
    classes x resamples, on up to 8 of torch's threads; beside the scores, memory is that of
    16 classes.
    Raises ValueError where videos or shapes differ, or where a resample has no positive at all.
    """
    seeds_a, seeds_b = _as_seeds(scores_a), _as_seeds(scores_b)
    _check(seeds_a, seeds_b, targets)
    a, b = ([dense_statistic(one, targets) for one in seeds] for seeds in (seeds_a, seeds_b))
    return paired_difference(a, b, resamples, generator, confidence)


def paired_difference(
    statistics_a: Sequence[Statistic],
    statistics_b: Sequence[Statistic],
    resamples: int = 1000,
    generator: torch.Generator | None = None,
    confidence: float = 0.95,
) -> BootstrapResult:
    """`paired_bootstrap` of any score: one statistic per seed and arm, paired by position.

    ``resamples`` is lowered to what the statistics allow. ValueError where they are of other
    videos, or are not paired.
    """
    every = [*statistics_a, *statistics_b]
    if len(statistics_a) != len(statistics_b) or not every:
        raise ValueError(
            f"{len(statistics_a)} seeds of one arm and {len(statistics_b)} of the other: pairs are "
            "needed"
        )
    if len({one.videos for one in every}) > 1:
        counts = sorted({len(one.videos) for one in every})
        raise ValueError(f"scores of other videos ({counts} of them): compare equal splits")
    resamples = min([resamples, *(one.resamples for one in every if one.resamples is not None)])
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples={resamples} must be >= 1, confidence={confidence} in (0, 1)")
    generator = generator or torch.Generator().manual_seed(0)
    videos, seeds = len(every[0].videos), len(statistics_a)
    videos_RV = _draw(resamples, videos, generator)
    seeds_RS = _draw(resamples, seeds, generator)
    weights_RV = torch.cat([torch.ones(1, videos), videos_RV])  # row 0: the data themselves
    difference_RS = np.stack(
        [b.under(weights_RV) - a.under(weights_RV)
         for a, b in zip(statistics_a, statistics_b, strict=True)],
        axis=1,
    )  # fmt: skip
    drawn_R = (difference_RS[1:] * seeds_RS.numpy()).sum(axis=1) / seeds
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
        error_bound=ROUNDING,
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
    if not targets:
        raise ValueError("no video to resample: the targets are empty")
    for arm, seeds in (("a", seeds_a), ("b", seeds_b)):
        for seed, scores in enumerate(seeds):
            if differing := sorted(set(scores) ^ set(targets)):
                raise ValueError(
                    f"scores_{arm}, seed {seed}: {len(differing)} videos are only in the scores "
                    f"or only in the targets ({', '.join(differing[:5])}): compare equal splits"
                )


def dense_statistic(
    scores: Scores, targets: Scores, empty_classes: EmptyClasses = "left_out"
) -> Statistic:
    """Mean average precision of the rows [T, K] of all videos together; see `dense_map`."""
    return Statistic(
        tuple(targets),
        lambda weights_RV: _resampled_map(scores, targets, weights_RV, empty_classes),
    )


def _resampled_map(
    scores: Scores, targets: Scores, weights_RV: torch.Tensor, empty_classes: EmptyClasses
) -> Array:
    """Mean average precision under each weighting of the videos, float64 [R]."""
    pairs = [checked(scores[v], targets[v], f"video {v!r}") for v in targets]
    frames_V = np.array([len(scores_TK) for scores_TK, _ in pairs])
    video_N = np.repeat(np.arange(len(pairs), dtype=np.int32), frames_V)
    blocks = _weight_blocks(weights_RV, torch.from_numpy(frames_V))

    def of_class(scores_N: Array, hits_N: Array) -> Array:
        if not hits_N.any():
            return np.full(len(weights_RV), np.nan)
        frames, positives = _ranked(scores_N, hits_N, video_N)
        return torch.cat([_average_precision(frames, positives, w) for w in blocks]).numpy()

    total_R, classes_R = np.zeros(len(weights_RV)), np.zeros(len(weights_RV))
    with _class_threads() as pool:
        for _, scores_bN, hits_bN in class_blocks(*map(list, zip(*pairs, strict=True))):
            for ap_R in pool.map(of_class, scores_bN, hits_bN):
                total_R += np.nan_to_num(ap_R)
                classes_R += ~np.isnan(ap_R)
    if not classes_R.all():
        raise ValueError("a resample has no positive frame: too few videos hold positives")
    return total_R / (pairs[0][0].shape[1] if empty_classes == "zero" else classes_R)


@contextmanager
def _class_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for whole classes, as many as torch has, each without threads of its own.

    Splitting one small operation instead waits for the slower half thousands of times: where
    other work shares the cores, two threads took five times the CPU of one.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(threads, MAX_THREADS), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # what a thread sets is also torch's default for later ones


def _weight_blocks(weights_RV: torch.Tensor, frames_V: torch.Tensor) -> list[torch.Tensor]:
    """Weights of some resamples at a time, [V, r], in a type that counts their frames exactly."""
    most = float((weights_RV.double() @ frames_V.double()).max())
    dtype = torch.float32 if most <= EXACT_COUNTS else torch.float64
    return [block.T.contiguous().to(dtype) for block in weights_RV.split(RESAMPLE_BLOCK)]


@dataclass(frozen=True)
class _Ranked:
    """Frames by falling score, in groups that end at each distinct score of a positive."""

    video_N: torch.Tensor
    edges: torch.Tensor
    """Where each group starts, and the end of the last, [groups + 1]."""

    def drawn(self, first: int, weights_VR: torch.Tensor) -> torch.Tensor:
        """How often the frames of a block of groups are drawn in each resample, [g, R]."""
        edges = self.edges[first : first + GROUP_BLOCK + 1]
        video_n = self.video_N[edges[0] : edges[-1]]
        return embedding_bag(
            video_n, weights_VR, edges - edges[0], mode="sum", include_last_offset=True
        )


def _ranked(scores_N: Array, hits_N: Array, video_N: Array) -> tuple[_Ranked, _Ranked]:
    """All frames down to the last positive (those below change no precision), and the positives."""
    order = descending_order(scores_N)
    ranked_N, hits_N, video_N = scores_N[order], hits_N[order], video_N[order]
    ends = np.flatnonzero(np.append(ranked_N[1:] != ranked_N[:-1], True)) + 1
    hits = np.cumsum(hits_N)[ends - 1]
    positive = np.diff(hits, prepend=0) > 0
    parts = ((video_N, ends[positive]), (video_N[hits_N], hits[positive]))
    frames, positives = (
        _Ranked(torch.from_numpy(videos), torch.from_numpy(np.append(0, ends).astype(np.int32)))
        for videos, ends in parts
    )
    return frames, positives


def _average_precision(
    frames: _Ranked, positives: _Ranked, weights_VR: torch.Tensor
) -> torch.Tensor:
    """Average precision of one class in each resample, float64 [R], NaN without a positive."""
    above_R, hits_R = weights_VR.new_zeros(2, weights_VR.shape[1])
    gained_R = above_R.double()
    for first in range(0, len(frames.edges) - 1, GROUP_BLOCK):
        drawn_GR = positives.drawn(first, weights_VR)
        above_GR = frames.drawn(first, weights_VR).cumsum(0).add_(above_R)
        hits_GR = drawn_GR.cumsum(0).add_(hits_R)
        above_R, hits_R = above_GR[-1].clone(), hits_GR[-1].clone()
        precision_GR = hits_GR.div_(above_GR.clamp_(min=1))  # nothing drawn so far: 0 of 1
        gained_R += precision_GR.mul_(drawn_GR).sum(0, dtype=torch.float64)
    return gained_R / hits_R
