"""Dense mAP in strata of the frames: by actions per frame and by distance to a boundary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ssdet.evaluation.average_precision import Array, EmptyClasses, as_array, checked
from ssdet.evaluation.lazy_rows import LazyRows, Rows, all_half, release
from ssdet.evaluation.protocols.dense import pooled_average_precision, scored_videos


@dataclass(frozen=True)
class Stratum:
    """A subset of the frames of a split, selected by their labels alone."""

    name: str
    """Identifies the selection: strata of one name are the same."""
    mask: Callable[[Array], Array]
    """Labels bool [T, K] of one video -> its frames, bool [T], or bool [T, K] if every class has
    its own frames."""

    @property
    def protocol(self) -> str:
        """Protocol id of scores inside this stratum."""
        return f"dense_map.{self.name}/v1"


@dataclass(frozen=True)
class StratumScore:
    """Dense mAP of one stratum and its coverage; `dataclasses.asdict` of it is JSON."""

    value: float | None
    """Mean average precision, a fraction; None if no class has a positive in the stratum."""
    protocol: str
    per_class: tuple[float | None, ...]
    """Average precision of each class; None for a class without a positive in the stratum."""
    classes_scored: int
    """Classes with a positive in the stratum; the others are left out of the mean."""
    empty_class_rule: EmptyClasses
    videos_scored: int
    """Videos with predictions, with or without a frame in the stratum."""
    videos_expected: int
    frames: int
    """Frames in the stratum (of any class, if classes have their own frames)."""
    pairs: int
    """Ranked pairs of frame and class: frames x classes, or fewer."""
    positives: int
    """Pairs that are positive."""


def acts(up_to: int = 1) -> tuple[Stratum, ...]:
    """Strata by positive classes per frame: 0, each number up to ``up_to``, and more.

    The default has the paper's `acts=1` and `acts>1` (Table A.1g), and `acts=0`, which has no
    positive and no score; every frame is in one of them. ValueError for ``up_to`` < 1.
    """
    if up_to < 1:
        raise ValueError(f"acts(up_to={up_to}): expected at least 1")
    exact = [Stratum(f"acts={n}", partial(_acts, low=n, high=n)) for n in range(up_to + 1)]
    return *exact, Stratum(f"acts>{up_to}", partial(_acts, low=up_to + 1, high=None))


def boundary(
    radius: int = 3, both_sides: bool = False, per_class: bool = False
) -> tuple[Stratum, ...]:
    """Strata by distance to a change of the labels: farther than ``radius`` frames, and within.

    A change is at the first frame whose labels differ from the frame before and, with
    ``both_sides``, also at that frame. With ``per_class`` each class has its own changes and
    frames. The "dilation of 3" of the paper (Table A.1g) is read as a radius; as a width it is
    ``radius=1``. ValueError for a radius < 0.
    """
    if radius < 0:
        raise ValueError(f"boundary(radius={radius}): a radius is 0 frames or more")
    near = partial(_near_change, radius=radius, both_sides=both_sides, per_class=per_class)
    variant = f"r{radius}{'_both_sides' * both_sides}{'_per_class' * per_class}"
    return (
        Stratum(f"non_boundary_{variant}", lambda hits_TK: ~near(hits_TK)),
        Stratum(f"boundary_{variant}", near),
    )


def _acts(hits_TK: Array, low: int, high: int | None) -> Array:
    acts_T = hits_TK.sum(axis=1)
    return (acts_T >= low) & (high is None or acts_T <= high)


def _near_change(hits_TK: Array, radius: int, both_sides: bool, per_class: bool) -> Array:
    differs = hits_TK[1:] != hits_TK[:-1]
    changed = np.zeros(hits_TK.shape, bool)
    changed[1:] = differs
    if both_sides:
        changed[:-1] |= differs
    if not per_class:
        changed = np.logical_or.reduce(changed, axis=1)
    near = changed.copy()
    for step in range(1, radius + 1):
        near[step:] |= changed[:-step]
        near[:-step] |= changed[step:]
    return near


PUBLISHED = (*acts(), *boundary())
"""The strata of Table A.1g."""


def strata(
    predictions: Rows, targets: Rows, by: Sequence[Stratum] = PUBLISHED
) -> dict[str, StratumScore]:
    """`dense_map` of the frames of each stratum, by the stratum's name (paper, Table A.1g).

    ``predictions`` (a PredictionSet or a mapping) and ``targets`` map a video id to [T, K].
    float16 scores are read one video at a time, others all at once. Raises ValueError for
    unknown videos, other frame or class counts, NaN, two strata of one name, and for a score of
    -inf if classes have their own frames.
    """
    if len({stratum.name for stratum in by}) < len(by):
        raise ValueError(f"two strata share a name: {[stratum.name for stratum in by]}")
    hits = _checked_hits(predictions, targets)
    return {stratum.name: _score(stratum, predictions, hits, len(targets)) for stratum in by}


def stratum_masks(stratum: Stratum, hits: Mapping[str, Array]) -> dict[str, Array]:
    """Mask of each video that has a frame in the stratum, from labels bool [T, K]."""
    masks = {video: stratum.mask(hits_TK) for video, hits_TK in hits.items()}
    return {video: mask for video, mask in masks.items() if mask.any()}


def stratum_targets(hits: Mapping[str, Array], masks: Mapping[str, Array]) -> dict[str, Array]:
    """Labels bool [T, K] of the frames of `stratum_scores` with these masks."""
    return {v: hits[v][m] if m.ndim == 1 else hits[v] & m for v, m in masks.items()}


def stratum_scores(scores: Rows, masks: Mapping[str, Array]) -> LazyRows:
    """Scores of the frames of one stratum.

    If classes have their own frames, other scores become -inf: negatives below every positive,
    which change no precision. ValueError on access for a score that is -inf already.
    """

    def select(video: str) -> Array:
        mask, scores_TK = masks[video], as_array(scores[video])
        if mask.ndim == 1:
            return scores_TK[mask]
        if np.isneginf(scores_TK).any():
            raise ValueError(
                f"video {video!r}: a score is -inf, which marks the frames outside a per-class "
                "stratum: give finite scores, or use per_class=False"
            )
        return np.where(mask, scores_TK, np.float16(-np.inf))

    return LazyRows(masks, select, all_half(scores), scores)


def _checked_hits(predictions: Rows, targets: Rows) -> dict[str, Array]:
    """Labels bool [T, K] of the videos with predictions, after checks of their scores."""
    hits: dict[str, Array] = {}
    classes = 0
    for video in scored_videos(predictions, targets):
        _, hits[video] = checked(predictions[video], targets[video], f"video {video!r}")
        release(predictions)
        classes = classes or hits[video].shape[1]
        if hits[video].shape[1] != classes:
            raise ValueError(
                f"video {video!r}: {hits[video].shape[1]} classes, videos before it have {classes}"
            )
    return hits


def _score(
    stratum: Stratum, predictions: Rows, hits: Mapping[str, Array], expected: int
) -> StratumScore:
    masks = stratum_masks(stratum, hits)
    truth = stratum_targets(hits, masks)
    classes = next(iter(hits.values())).shape[1]
    ap_K = np.full(classes, np.nan)
    if any(hits_TK.any() for hits_TK in truth.values()):
        selected = stratum_scores(predictions, masks)
        ap_K, _ = pooled_average_precision(selected, truth, list(truth))
    positive_K = ~np.isnan(ap_K)
    own = [mask if mask.ndim == 2 else mask[:, None] for mask in masks.values()]
    return StratumScore(
        value=float(ap_K[positive_K].mean()) if positive_K.any() else None,
        protocol=stratum.protocol,
        per_class=tuple(None if np.isnan(ap) else float(ap) for ap in ap_K),
        classes_scored=int(positive_K.sum()),
        empty_class_rule="left_out",
        videos_scored=len(hits),
        videos_expected=expected,
        frames=sum(int(mask.any(axis=1).sum()) for mask in own),
        pairs=sum(int(mask.sum()) * (classes // mask.shape[1]) for mask in own),
        positives=sum(int(hits_TK.sum()) for hits_TK in truth.values()),
    )
