"""Registry of protocols: what each needs, and the scores that it computes, with their ids."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.lazy_rows import Rows
from ssdet.evaluation.predictions import PredictionSet
from ssdet.evaluation.protocols.activitynet import (
    ACTIVITYNET_TIOUS,
    THUMOS_TIOUS,
    activitynet_average_precision,
)
from ssdet.evaluation.protocols.charades_official import (
    PROTOCOL,
    OfficialTruth,
    localization,
    official_points,
    truth_of,
)
from ssdet.evaluation.protocols.conditional import conditional_map
from ssdet.evaluation.protocols.dense import EmptyClasses, dense_map, dense_map_min162
from ssdet.evaluation.protocols.sampled import Sampling, multithumos_map, sampled25_map
from ssdet.evaluation.protocols.segments import (
    TIOUS,
    Segments,
    frame_segments,
    segment_average_precision,
    truth_segments,
)
from ssdet.evaluation.protocols.strata import PUBLISHED, Stratum, boundary, strata
from ssdet.plugins import Registry

STEPS_APART = (0, 20, 40)
"""Frames between actions in the published action-conditional scores."""


@dataclass(frozen=True)
class Reading:
    """One score of one protocol; `dataclasses.asdict` of it is JSON."""

    value: float | None
    """A fraction; None where the protocol has no value for these labels."""
    protocol: str
    """Id with version: numbers of different ids are not comparable."""
    videos_scored: int
    videos_expected: int
    frames: int
    """Ranked frames, steps or points; for segments, frames that they were made from."""
    classes_scored: int
    """Classes with a positive."""
    empty_class_rule: str
    """Effect of a class without a positive: left_out, zero or nonzero (see `Score`), or none (the
    score has no value, as in the official script)."""
    per_class: tuple[float | None, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was left out or is missing."""

    @property
    def column(self) -> str:
        """The id without its version, for tables: no two protocols share it."""
        return self.protocol.rpartition("/")[0]


@dataclass(frozen=True)
class Material:
    """Inputs of the protocols for one split."""

    labels: Rows | None = None
    """Dense labels [T, K] of every expected video at the predictions' frames."""
    predictions: PredictionSet | None = None
    manifest: Manifest | None = None
    """Expected videos with their annotation."""
    truth: OfficialTruth | None = None
    """Labels at the 25 points; by default from the manifest."""
    submitted: Mapping[str, Array] | None = None
    """Scores [25, K] of a submission file, instead of predictions."""
    detections: Segments | None = None
    """Segments of a file, instead of predictions."""
    file_kind: str = ""
    """Kind of the file of `submitted` or `detections`: `ssdet.evaluation.files.kinds.Kind`."""
    format: str = ""
    """Format of the annotation (`load_manifest`); without named protocols, those of another data
    set are left out."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts from reading a file."""

    @property
    def dense(self) -> tuple[PredictionSet, Rows]:
        """Predictions and labels of every frame; ValueError without them."""
        if self.predictions is None or self.labels is None:
            raise ValueError("needs the scores of every frame")
        return self.predictions, self.labels

    @property
    def annotated(self) -> Manifest:
        """The manifest; ValueError without one."""
        if self.manifest is None:
            raise ValueError("needs the annotation")
        return self.manifest


Scorer = Callable[[Material], Sequence[Reading]]
AnyScorer = TypeVar("AnyScorer", bound=Scorer)


@dataclass(frozen=True)
class Protocol:
    """A registered protocol."""

    name: str
    about: str
    score: Scorer
    """Computes readings; ValueError with the reason if the protocol does not apply."""
    not_of: str = ""
    """Format of a data set that has another protocol instead."""
    only_named: bool = False
    """Left out unless protocols are named."""


def _score(found: Any, **notes: int) -> Reading:
    """Reading of a `Score` or `StratumScore`."""
    shared = Reading.__dataclass_fields__.keys() & found.__dataclass_fields__.keys()
    return Reading(**{name: getattr(found, name) for name in shared}, notes=notes)


def _dense(material: Material, empty_classes: EmptyClasses) -> list[Reading]:
    return [_score(dense_map(*material.dense, empty_classes))]


def _min162(material: Material) -> list[Reading]:
    predictions, labels = material.dense
    found = dense_map_min162(predictions, labels)
    return [_score(found, short_videos=len(labels) - found.videos_expected)]


def _sampled(material: Material, variant: Sampling) -> list[Reading]:
    predictions, labels = material.dense
    found = sampled25_map(predictions, labels, variant)
    return [_score(found, short_videos=len(predictions) - found.videos_scored)]


def _multithumos(material: Material, rate: float | None) -> list[Reading]:
    predictions, _ = material.dense
    return [_score(multithumos_map(predictions, material.annotated, rate))]


def _strata(material: Material, by: Sequence[Stratum]) -> list[Reading]:
    found = strata(*material.dense, by).values()
    return [_score(one, pairs=one.pairs, positives=one.positives) for one in found]


def _conditional(material: Material) -> list[Reading]:
    found = [conditional_map(*material.dense, t) for t in STEPS_APART]
    return [
        Reading(
            getattr(one, name),
            f"conditional_{name}_t{t}/v1",
            one.videos_scored,
            one.videos_expected,
            one.frames,
            one.classes,
            "left_out",
            notes={"pairs": one.pairs},
        )
        for t, one in zip(STEPS_APART, found, strict=True)
        for name in ("precision", "recall", "f1", "map")
    ]


def _official(material: Material) -> list[Reading]:
    truth = material.truth or truth_of(material.annotated)
    scores = material.submitted
    if scores is None:
        scores = official_points(material.dense[0], truth)
    found = localization(scores, truth)
    positive_K = found["positives"] > 0
    notes = {
        "points_missing": found["points_expected"] - found["points_scored"],
        "videos_ignored": found["videos_ignored"],
    }
    return [
        Reading(
            None if np.isnan(found[kind]) else found[kind],
            f"{PROTOCOL}_{kind}/v1",
            found["videos_scored"],
            found["videos_expected"],
            found["points_expected"],
            int(positive_K.sum()),
            "none",
            tuple(None if np.isnan(ap) else float(ap) for ap in found["ap"]),
            {**material.notes, **notes},
        )
        for kind in ("map", "wap")
    ]


def _segments(material: Material) -> list[Reading]:
    detections, truth, frames = _detected(material)
    ap_OK = segment_average_precision(detections, truth, material.annotated.num_classes)
    ids = [f"tiou{tiou:g}" for tiou in TIOUS]
    return _segment_readings(material, "segment_map", ids, ap_OK, detections, frames)


def _activitynet(material: Material, tious: Sequence[float]) -> list[Reading]:
    detections, truth, frames = _detected(material)
    classes = material.annotated.num_classes
    ap_OK = activitynet_average_precision(detections, truth, classes, tious)
    ids = [f"tiou{tiou:g}" for tiou in tious] + [f"average_{tious[0]:g}_{tious[-1]:g}"]
    rows_OK = np.concatenate([ap_OK, ap_OK.mean(axis=0, keepdims=True)])
    return _segment_readings(material, "activitynet_map", ids, rows_OK, detections, frames)


def _detected(material: Material) -> tuple[dict[str, Array], dict[str, Array], int]:
    """Detections and instances by annotated video, and frames that detections were made from."""
    truth, frames = truth_segments(material.annotated), 0
    detections = material.detections
    if detections is None:
        predictions, _ = material.dense
        detections = dict(_made(predictions))
        frames = sum(map(predictions.frames, predictions))
    return {video: rows for video, rows in detections.items() if video in truth}, truth, frames


def _segment_readings(
    material: Material,
    name: str,
    ids: Sequence[str],
    ap_OK: Array,
    detections: Segments,
    frames: int,
) -> list[Reading]:
    manifest, file = material.annotated, material.detections
    every = material.dense[0] if file is None else file
    instances = sum(len(video.segments) for video in manifest.videos)
    counts = {
        "detections": sum(map(len, detections.values())),
        "instances": instances,
        "videos_ignored": len(every) - len(detections),
    }
    positive_K = ~np.isnan(ap_OK[0])
    return [
        Reading(
            float(ap_K[positive_K].mean()) if positive_K.any() else None,
            f"{name}{'' if file is None else '_file'}_{id}/v1",
            len(detections),
            len(manifest.videos) + len(manifest.missing),
            frames,
            int(positive_K.sum()),
            "left_out",
            tuple(None if np.isnan(ap) else float(ap) for ap in ap_K),
            {**material.notes, **counts},
        )
        for id, ap_K in zip(ids, ap_OK, strict=True)
    ]


def _made(predictions: PredictionSet) -> Iterator[tuple[str, Array]]:
    for video in predictions:
        yield video, frame_segments(predictions[video], predictions.clock(video))
        predictions.release()


def _protocols() -> Iterable[Protocol]:
    dense, sampled, grid, within = (
        partial(partial, way) for way in (_dense, _sampled, _multithumos, _strata)
    )
    yield Protocol("dense", "every frame", dense(empty_classes="left_out"))
    yield Protocol(
        "dense_apmeter", "every frame; empty classes count 0", dense(empty_classes="zero")
    )
    yield Protocol(
        "dense_pdan", "every frame; mean of non-zero APs", dense(empty_classes="nonzero")
    )
    yield Protocol("dense_min162", "every frame of videos with 162 or more", _min162)
    yield Protocol("sampled25_mstct", "25 steps; videos of 25 skipped", sampled(variant="mstct"))
    yield Protocol("sampled25_cf", "25 steps; no video below 25", sampled(variant="cf"))
    yield Protocol("charades_official", "25 points, map and wap", _official, "multithumos")
    yield Protocol("multithumos", "frames at 10 a second", grid(rate=10.0), "charades")
    yield Protocol("multithumos_steps", "frames at own steps", grid(rate=None), "charades")
    yield Protocol("strata", "acts per frame; boundary within 3 frames", within(by=PUBLISHED))
    yield Protocol("strata_r1", "boundary within 1 frame", within(by=boundary(1)))
    yield Protocol(
        "strata_per_class", "boundary of each class", within(by=boundary(per_class=True))
    )
    yield Protocol("conditional", "given another action, 0, 20 and 40 frames before", _conditional)
    yield Protocol("segments", "segment mAP at tIoU 0.3 to 0.7, THUMOS'14 kit", _segments)
    for name, about, tious in (
        ("activitynet", "segment mAP at tIoU 0.5 to 0.95, ActivityNet's script", ACTIVITYNET_TIOUS),
        ("activitynet_thumos", "the same at tIoU 0.3 to 0.7", THUMOS_TIOUS),
    ):
        yield Protocol(name, about, partial(_activitynet, tious=tious), only_named=True)


PROTOCOLS: Registry[Protocol] = Registry("protocol")
available = PROTOCOLS.available
for _protocol in _protocols():
    PROTOCOLS.add(_protocol.name, _protocol, __name__)


def register(scorer: AnyScorer) -> AnyScorer:
    """Make ``scorer(material) -> readings`` a protocol under its function name.

    The first line of its docstring describes it.
    """
    name, about = scorer.__name__, (scorer.__doc__ or "").strip().partition("\n")[0]
    PROTOCOLS.add(name, Protocol(name, about, scorer), scorer.__module__)
    return scorer


def score_all(
    material: Material, names: Sequence[str] | None = None, chosen: bool = True
) -> tuple[list[Reading], dict[str, str]]:
    """Readings of all (or the named) protocols that apply, and reasons of the others by name.

    Unless the names are the user's choice (``chosen``), protocols of another data set and those
    with ``only_named`` are left out. ValueError for an unknown name.
    """
    chosen, names = chosen and names is not None, list(PROTOCOLS if names is None else names)
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise ValueError(f"protocol {', '.join(unknown)}: choose from {', '.join(PROTOCOLS)}")
    readings: list[Reading] = []
    refused: dict[str, str] = {}
    for name in names:
        if not chosen and _left_out(PROTOCOLS[name], material.format):
            continue
        try:
            readings += PROTOCOLS[name].score(material)
        except ValueError as error:
            refused[name] = str(error)
    return readings, refused


def _left_out(protocol: Protocol, format: str) -> bool:
    return protocol.only_named or bool(format and protocol.not_of == format)


def to_json(reading: Reading) -> dict[str, Any]:
    """A reading as JSON values."""
    return asdict(reading)
