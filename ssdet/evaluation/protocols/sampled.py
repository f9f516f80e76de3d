"""Protocols that rank a part of the steps, or steps on a grid of their own rate."""

from typing import Literal

import numpy as np

from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation.average_precision import Array, EmptyClasses, as_array
from ssdet.evaluation.lazy_rows import LazyRows, Rows, all_half, at_steps
from ssdet.evaluation.predictions import PredictionSet
from ssdet.evaluation.protocols.dense import Score, check_expected, pooled

Sampling = Literal["mstct", "cf"]
SAMPLES = 25


def sampled25_indices(steps: int, variant: Sampling = "mstct") -> range:
    """Steps of a video that the sampled protocol ranks: 1, 1 + steps // 25, … at most 25.

    "mstct" skips videos of at most 25 steps; "cf" has no step below 25: ValueError there.
    """
    if variant not in ("mstct", "cf"):
        raise ValueError(f"variant={variant!r}: choose 'mstct' or 'cf'")
    if variant == "cf" and steps < SAMPLES:
        raise ValueError(f"{steps} steps: the cf variant needs {SAMPLES}; mstct skips such videos")
    if variant == "mstct" and steps <= SAMPLES:
        return range(0)
    return range(1, steps, steps // SAMPLES)[:SAMPLES]


def sampled25_map(
    predictions: Rows,
    targets: Rows,
    variant: Sampling = "mstct",
    empty_classes: EmptyClasses = "zero",
) -> Score:
    """Published approximation of the official protocol: 25 steps of each video, from the second.

    Its last steps are never ranked. ``variant``: see `sampled25_indices`; a class without a
    positive counts 0, as in apmeter; the other rules have ids of their own. Raises ValueError as
    `dense_map`, and naming a video that is too short for "cf".
    """
    suffix = {"zero": "", "left_out": "_left_out", "nonzero": "_pdan"}
    if empty_classes not in suffix:
        raise ValueError(f"empty_classes={empty_classes!r}: choose one of {list(suffix)}")
    name = f"sampled25_map_{variant}{suffix[empty_classes]}/v1"
    return pooled(*sampled25_rows(predictions, targets, variant), name, empty_classes)


def sampled25_rows(
    predictions: Rows, targets: Rows, variant: Sampling
) -> tuple[LazyRows, LazyRows]:
    """Scores and labels at the sampled steps of every video; ValueErrors of `sampled25_map`."""
    check_expected(predictions, targets)
    picks: dict[str, range] = {}
    for video in (video for video in targets if video in predictions):
        steps = len(targets[video])
        if len(predictions[video]) != steps:
            raise ValueError(f"video {video!r}: {len(predictions[video])} steps, labels {steps}")
        try:
            picks[video] = sampled25_indices(steps, variant)
        except ValueError as error:
            raise ValueError(f"video {video!r}: {error}") from error
    ranked = [video for video, chosen in picks.items() if chosen]
    if not ranked:
        raise ValueError(f"no scored video has more than {SAMPLES} steps")
    half = all_half(predictions)
    scores = LazyRows(ranked, lambda v: as_array(predictions[v])[list(picks[v])], half, predictions)
    return scores, LazyRows(targets, lambda v: as_array(targets[v])[list(picks.get(v, ()))])


def multithumos_map(
    predictions: Rows, targets: Rows | Manifest, rate: float | None = 10.0
) -> Score:
    """Per-frame mAP of MultiTHUMOS on a grid of ``rate`` frames a second; None: feature steps.

    With a manifest as ``targets`` (and a PredictionSet) the predictions are interpolated to the
    grid of each annotated duration, linearly in logits, and rounded to float16; with None they
    are ranked at their own steps. With rows [T, K] both are on the grid already. The rate is in
    the protocol id. All classes are in the mean, one without a positive as 0 (apmeter). Raises
    ValueError as `dense_map`, and for videos without a duration.
    """
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"rate={rate}: expected frames per second > 0, or None")
    name = f"multithumos_map_{'steps' if rate is None else f'{rate:g}fps'}"
    if not isinstance(targets, Manifest):
        return pooled(predictions, targets, f"{name}/v1", "zero")
    if not isinstance(predictions, PredictionSet):
        raise ValueError("a manifest goes with a PredictionSet; else give labels [T, K] by video")
    if rate is None:
        name += _step_rate(predictions)
    return pooled(*on_grid(predictions, targets, rate), f"{name}/v1", "zero")


def on_grid(
    predictions: PredictionSet, manifest: Manifest, rate: float | None
) -> tuple[LazyRows, LazyRows]:
    """Scores float16 and labels of every expected video at ``rate``, or at the scores' steps."""
    known = {video.id: video for video in manifest.videos}
    check_expected(predictions, {**known, **dict.fromkeys(manifest.missing)})
    if without := [name for name, video in known.items() if not video.duration]:
        raise ValueError(f"{len(without)} videos have no duration ({', '.join(without[:5])})")

    def frames(name: str) -> int:
        return predictions.frames(name) if rate is None else round(rate * known[name].duration)  # type: ignore[operator]

    def scores(name: str) -> Array:
        if rate is None:
            return predictions[name]
        clock = predictions.clock(name)
        if clock.rate is None:
            steps_N = clock.position(np.arange(frames(name)) / rate)
        else:
            steps_N = np.arange(frames(name)) * (clock.rate / rate)
        return at_steps(predictions[name], steps_N).astype(np.float16)

    def labels(name: str) -> Array:
        video = known.get(name)
        if video is None or name not in predictions:
            return np.zeros((0, manifest.num_classes), bool)
        clock = predictions.clock(name)
        if rate is None and clock.rate is None:
            return manifest.targets_at(video, clock.times_T).T
        fps = frames(name) / video.duration if rate is None else rate  # type: ignore[operator]
        return manifest.frame_targets(video, frames(name), fps).T

    expected = [*known, *manifest.missing]
    return LazyRows(predictions, scores, half=True, source=predictions), LazyRows(expected, labels)


def _step_rate(predictions: PredictionSet) -> str:
    rates = {f"{predictions.fps(video):g}" for video in predictions}
    return f"_{rates.pop()}fps" if len(rates) == 1 else ""
