"""Protocols that rank sampled steps of each video, or steps on a time grid."""

from typing import Literal

import numpy as np

from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation.average_precision import Array, as_array
from ssdet.evaluation.lazy_rows import LazyRows, Rows, all_half, at_steps
from ssdet.evaluation.predictions import PredictionSet
from ssdet.evaluation.protocols.dense import EmptyClasses, Score, check_expected, pooled

Sampling = Literal["mstct", "cf"]
SAMPLES = 25


def sampled25_indices(steps: int, variant: Sampling = "mstct") -> range:
    """Steps of a video that the sampled protocol ranks: 1, 1 + steps // 25, … at most 25.

    "mstct" (MS-TCT's code) skips videos of at most 25 steps; "cf" (Coarse-Fine's) raises
    ValueError below 25 steps.
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
    """Approximation of the official protocol in published code: 25 steps of each video from its
    second one; its last steps are never ranked.

    ``variant``: see `sampled25_indices`. A class without a positive counts 0, as in apmeter; the
    other rules have their own ids. Raises ValueError as `dense_map`, and for a video that is too
    short for "cf".
    """
    suffix = {"zero": "", "left_out": "_left_out", "nonzero": "_pdan"}
    if empty_classes not in suffix:
        raise ValueError(f"empty_classes={empty_classes!r}: choose one of {list(suffix)}")
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
    ranked = [video for video, indices in picks.items() if indices]
    if not ranked:
        raise ValueError(f"no scored video has more than {SAMPLES} steps")
    half = all_half(predictions)
    scores = LazyRows(ranked, lambda v: as_array(predictions[v])[list(picks[v])], half, predictions)
    labels = LazyRows(targets, lambda v: as_array(targets[v])[list(picks.get(v, ()))])
    name = f"sampled25_map_{variant}{suffix[empty_classes]}/v1"
    return pooled(scores, labels, name, empty_classes)


def multithumos_map(
    predictions: Rows, targets: Rows | Manifest, rate: float | None = 10.0
) -> Score:
    """Per-frame mAP of MultiTHUMOS on a grid of ``rate`` frames a second; None: feature steps.

    With a manifest as ``targets`` (and a PredictionSet) the predictions are interpolated to the
    grid over each annotated duration, linearly in logits, and rounded to float16; with rate None
    they are ranked at their own steps. Rows [T, K] as targets are on the grid already. The rate is
    in the protocol id. A class without a positive counts 0 (apmeter). Raises ValueError as
    `dense_map`, and for videos without a duration.
    """
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"rate={rate}: expected frames per second > 0, or None")
    name = f"multithumos_map_{'steps' if rate is None else f'{rate:g}fps'}"
    if not isinstance(targets, Manifest):
        return pooled(predictions, targets, f"{name}/v1", "zero")
    if not isinstance(predictions, PredictionSet):
        raise ValueError("a manifest needs a PredictionSet; else give labels [T, K] by video")
    if rate is None:
        name += _step_rate(predictions)
    return pooled(*on_grid(predictions, targets, rate), f"{name}/v1", "zero")


def on_grid(
    predictions: PredictionSet, manifest: Manifest, rate: float | None
) -> tuple[LazyRows, LazyRows]:
    """Scores float16 and labels of every expected video at ``rate``, or at the scores' steps."""
    videos = {video.id: video for video in manifest.videos}
    check_expected(predictions, {**videos, **dict.fromkeys(manifest.missing)})
    if without := [name for name, video in videos.items() if not video.duration]:
        raise ValueError(f"{len(without)} videos have no duration ({', '.join(without[:5])})")

    def frames(name: str) -> int:
        return predictions.frames(name) if rate is None else round(rate * videos[name].duration)  # type: ignore[operator]

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
        video = videos.get(name)
        if video is None or name not in predictions:
            return np.zeros((0, manifest.num_classes), bool)
        clock = predictions.clock(name)
        if rate is None and clock.rate is None:
            return manifest.targets_at(video, clock.times_T).T
        fps = frames(name) / video.duration if rate is None else rate  # type: ignore[operator]
        return manifest.frame_targets(video, frames(name), fps).T

    expected = [*videos, *manifest.missing]
    return LazyRows(predictions, scores, half=True, source=predictions), LazyRows(expected, labels)


def _step_rate(predictions: PredictionSet) -> str:
    rates = {f"{predictions.fps(video):g}" for video in predictions}
    return f"_{rates.pop()}fps" if len(rates) == 1 else ""
