"""Every protocol by its name: what it needs, and the numbers that it gives, each with its id."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.loading.recipe import DENSE
from ssdet.evaluation.average_precision import Array, EmptyClasses, as_array
from ssdet.evaluation.lazy_rows import LazyRows, Rows, frame_labels
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
from ssdet.evaluation.protocols.activitynet import (
    ACTIVITYNET_TIOUS,
    THUMOS_TIOUS,
    activitynet_average_precision,
    ranked_detections,
)
from ssdet.evaluation.protocols.charades_official import (
    PROTOCOL,
    OfficialTruth,
    localization,
    official_points,
    truth_of,
)
from ssdet.evaluation.protocols.conditional import conditional_map
from ssdet.evaluation.protocols.dense import SHORT, dense_map, dense_map_min162, without_short
from ssdet.evaluation.protocols.resampling import (
    drawn_manifest,
    drawn_predictions,
    drawn_truth,
    evaluated_statistic,
    official_statistic,
    pooled_statistic,
    segment_statistic,
)
from ssdet.evaluation.protocols.sampled import (
    Sampling,
    multithumos_map,
    on_grid,
    sampled25_map,
    sampled25_rows,
)
from ssdet.evaluation.protocols.segments import (
    TIOUS,
    Segments,
    frame_segments,
    ranked_segments,
    segment_average_precision,
    truth_segments,
)
from ssdet.evaluation.protocols.strata import PUBLISHED, Stratum, boundary, strata
from ssdet.evaluation.statistics.bootstrap import Statistic
from ssdet.plugins import Registry

STEPS_APART = (0, 20, 40)
"""Frames between actions in the published action-conditional scores."""


@dataclass(frozen=True)
class Reading:
    """One number of one protocol; `dataclasses.asdict` of it is JSON."""

    value: float | None
    """A fraction; None where the protocol has no value for these labels."""
    protocol: str
    """Id with version: numbers of different ids are not comparable."""
    videos_scored: int
    videos_expected: int
    frames: int
    """Frames, steps or points that were ranked; of segments, frames they were made from."""
    classes_scored: int
    """Classes with a positive."""
    empty_class_rule: str
    """What a class without a positive does: left_out, zero or nonzero (see `Score`), or none (it
    leaves no value, as in the official script)."""
    per_class: tuple[float | None, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was left out or is missing."""

    @property
    def number(self) -> float:
        """The value; ValueError where there is none."""
        if self.value is None:
            raise ValueError(f"{self.protocol} has no value for these labels")
        return self.value

    @property
    def column(self) -> str:
        """The id without its version, for tables: no two protocols share it."""
        return self.protocol.rpartition("/")[0]


@dataclass(frozen=True)
class Material:
    """What there is to score, of one split."""

    labels: Rows | None = None
    """Dense labels [T, K] of every expected video at the predictions' frames."""
    predictions: PredictionSet | None = None
    manifest: Manifest | None = None
    """Expected videos with their annotation."""
    truth: OfficialTruth | None = None
    """Labels at the 25 points; of the manifest where not given."""
    submitted: Mapping[str, Array] | None = None
    """Scores [25, K] of a submission, in place of predictions."""
    detections: Segments | None = None
    """Segments of a file, in place of predictions."""
    file_kind: str = ""
    """Of the file that `submitted` or `detections` are of; see `file_kinds.Kind`."""
    format: str = ""
    """Of the annotation, as `load_manifest` has it; protocols of another data set are left out
    where none are named."""
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

    def drawn(self, sources: Mapping[str, str]) -> "Material":
        """The same of a resample: ``sources`` maps a name of its own to each drawn video."""
        predictions, labels = self.dense
        return replace(
            self,
            labels=LazyRows(sources, lambda name: as_array(labels[sources[name]])),
            predictions=drawn_predictions(predictions, sources),
            manifest=self.manifest and drawn_manifest(self.manifest, sources),
            truth=self.truth and drawn_truth(self.truth, sources),
        )


Scorer = Callable[[Material], Sequence[Reading]]
AnyScorer = TypeVar("AnyScorer", bound=Scorer)


@dataclass(frozen=True)
class Protocol:
    """A way to score, under a name."""

    name: str
    about: str
    score: Scorer
    """Readings; ValueError says why it does not apply."""
    not_of: str = ""
    """Format of annotation whose data set has another protocol in its place."""
    only_named: bool = False
    """Left out where no protocol is named."""
    primary: str = ""
    """Id of the reading that a study is scored by; the first reading where there is none of it."""
    resampled: Callable[[Material], Statistic] | None = None
    """That reading's value as a function of how often videos are drawn; None: every resample is
    evaluated."""

    @property
    def id(self) -> str:
        """What a study's `protocol` is: the id of the primary reading, else the name."""
        return self.primary or self.name

    def reading(self, material: Material) -> Reading:
        """The primary reading; ValueError where the protocol does not apply."""
        return self.chosen(self.score(material))

    def chosen(self, readings: Sequence[Reading]) -> Reading:
        """The primary one among this protocol's readings."""
        return next((one for one in readings if one.protocol == self.primary), readings[0])

    def statistic(self, material: Material) -> Statistic:
        """The primary reading's value for intervals: see `paired_difference`."""
        if self.resampled is not None:
            return self.resampled(material)
        return evaluated_statistic(
            tuple(material.dense[1]), lambda sources: self.reading(material.drawn(sources)).value
        )

    def check(self, material: Material) -> None:
        """ValueError where a split, given without predictions, has no value under this protocol.

        How many frames videos have is not known before they are decoded: what is too short for a
        protocol is refused when it is scored.
        """
        manifest = material.annotated
        if material.format and material.format == self.not_of:
            raise ValueError(f"annotation of format {material.format!r} has another in its place")
        if not manifest.videos:
            raise ValueError(f"data set {manifest.name!r} has no videos there")
        with TemporaryDirectory(prefix="ssdet-check-") as folder:
            with PredictionWriter(folder, manifest.num_classes) as writer:
                zeros_TK = np.zeros((SHORT, manifest.num_classes), np.float16)
                for video in manifest.videos:
                    writer.add(video.id, zeros_TK, SHORT / (video.duration or SHORT))
            predictions = PredictionSet.open(folder)
            labels = frame_labels(manifest, predictions)
            reading = self.reading(replace(material, predictions=predictions, labels=labels))
        if reading.value is None:
            raise ValueError(
                f"{reading.protocol} has no value: {reading.classes_scored} of "
                f"{manifest.num_classes} classes have a positive"
            )


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
    return _segment_readings(material, "segment_map", TIOUS, ap_OK, detections, frames)


def _activitynet(material: Material, tious: Sequence[float]) -> list[Reading]:
    detections, truth, frames = _detected(material)
    classes = material.annotated.num_classes
    ap_OK = activitynet_average_precision(detections, truth, classes, tious)
    return _segment_readings(material, "activitynet_map", tious, ap_OK, detections, frames)


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
    tious: Sequence[float],
    ap_OK: Array,
    detections: Segments,
    frames: int,
) -> list[Reading]:
    """Of each threshold, and of their average."""
    ids = [f"tiou{tiou:g}" for tiou in tious] + [f"average_{tious[0]:g}_{tious[-1]:g}"]
    ap_OK = np.concatenate([ap_OK, ap_OK.mean(axis=0, keepdims=True)])
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


def _dense_statistic(material: Material, empty_classes: EmptyClasses) -> Statistic:
    return pooled_statistic(*material.dense, empty_classes)


def _min162_statistic(material: Material) -> Statistic:
    return pooled_statistic(*without_short(*material.dense), "left_out")


def _sampled_statistic(material: Material, variant: Sampling) -> Statistic:
    return pooled_statistic(*sampled25_rows(*material.dense, variant), "zero")


def _multithumos_statistic(material: Material, rate: float | None) -> Statistic:
    return pooled_statistic(*on_grid(material.dense[0], material.annotated, rate), "zero")


def _official_statistic(material: Material) -> Statistic:
    truth = material.truth or truth_of(material.annotated)
    return official_statistic(official_points(material.dense[0], truth), truth)


def _segments_statistic(material: Material) -> Statistic:
    detections, truth, _ = _detected(material)
    ranked = ranked_segments(detections, truth, material.annotated.num_classes)
    return segment_statistic(ranked, tuple(truth), interpolated=False)


def _activitynet_statistic(material: Material, tious: Sequence[float]) -> Statistic:
    detections, truth, _ = _detected(material)
    ranked = ranked_detections(detections, truth, material.annotated.num_classes, tious)
    return segment_statistic(ranked, tuple(truth), interpolated=True)


def _protocols() -> Iterable[Protocol]:
    empty_rules: list[tuple[str, str, EmptyClasses, str]] = [
        ("dense", "every frame", "left_out", DENSE),
        ("dense_apmeter", "every frame; empty classes count 0", "zero", "dense_map_apmeter/v1"),
        ("dense_pdan", "every frame; mean of non-zero APs", "nonzero", "dense_map_pdan/v1"),
    ]
    for name, about, rule, id in empty_rules:
        yield Protocol(
            name, about, partial(_dense, empty_classes=rule), primary=id,
            resampled=partial(_dense_statistic, empty_classes=rule),
        )  # fmt: skip
    yield Protocol(
        "dense_min162", "every frame of videos with 162 or more", _min162,
        primary="dense_map_min162/v1", resampled=_min162_statistic,
    )  # fmt: skip
    samplings: list[tuple[Sampling, str]] = [
        ("mstct", "25 steps; videos of 25 skipped"), ("cf", "25 steps; no video below 25"),
    ]  # fmt: skip
    for variant, about in samplings:
        yield Protocol(
            f"sampled25_{variant}", about, partial(_sampled, variant=variant),
            primary=f"sampled25_map_{variant}/v1",
            resampled=partial(_sampled_statistic, variant=variant),
        )  # fmt: skip
    yield Protocol(
        "charades_official", "25 points, map and wap", _official, "multithumos",
        primary=f"{PROTOCOL}_map/v1", resampled=_official_statistic,
    )  # fmt: skip
    for name, about, rate, id in (
        ("multithumos", "frames at 10 a second", 10.0, "multithumos_map_10fps/v1"),
        ("multithumos_steps", "frames at own steps", None, ""),
    ):
        yield Protocol(
            name, about, partial(_multithumos, rate=rate), "charades", primary=id,
            resampled=partial(_multithumos_statistic, rate=rate),
        )  # fmt: skip
    for name, about, by, id in (
        ("strata", "acts per frame; boundary within 3 frames", PUBLISHED, "boundary_r3"),
        ("strata_r1", "boundary within 1 frame", boundary(1), "boundary_r1"),
        ("strata_per_class", "boundary of each class", boundary(per_class=True),
         "boundary_r3_per_class"),
    ):  # fmt: skip
        yield Protocol(name, about, partial(_strata, by=by), primary=f"dense_map.{id}/v1")
    yield Protocol(
        "conditional", "given another action, 0, 20 and 40 frames before", _conditional,
        primary="conditional_map_t0/v1",
    )  # fmt: skip
    yield Protocol(
        "segments", "segment mAP at tIoU 0.3 to 0.7, THUMOS'14 kit", _segments,
        primary="segment_map_average_0.3_0.7/v1", resampled=_segments_statistic,
    )  # fmt: skip
    for name, about, tious in (
        ("activitynet", "segment mAP at tIoU 0.5 to 0.95, ActivityNet's script", ACTIVITYNET_TIOUS),
        ("activitynet_thumos", "the same at tIoU 0.3 to 0.7", THUMOS_TIOUS),
    ):
        yield Protocol(
            name, about, partial(_activitynet, tious=tious), only_named=True,
            primary=f"activitynet_map_average_{tious[0]:g}_{tious[-1]:g}/v1",
            resampled=partial(_activitynet_statistic, tious=tious),
        )  # fmt: skip


PROTOCOLS: Registry[Protocol] = Registry("protocol")
available = PROTOCOLS.available
_NAMES: dict[str, str] = {}
"""Names by id, where it is another."""
for _protocol in _protocols():
    PROTOCOLS.add(_protocol.name, _protocol, __name__)
    _NAMES[_protocol.id] = _protocol.name


def protocol_of(name: str) -> Protocol:
    """The protocol of a name, or of the id of a primary reading; ValueError for any other."""
    return PROTOCOLS[_NAMES.get(name, name)]


def refusals(material: Material, names: Iterable[str]) -> dict[str, str]:
    """Protocols that cannot score a split, given without predictions, and why."""
    found = {}
    for name in names:
        try:
            PROTOCOLS[name].check(material)
        except ValueError as error:
            found[name] = str(error)
    return found


def register(scorer: AnyScorer) -> AnyScorer:
    """Make ``scorer(material) -> readings`` a protocol under its function name.

    The first line of its docstring says what it is.
    """
    name, about = scorer.__name__, (scorer.__doc__ or "").strip().partition("\n")[0]
    PROTOCOLS.add(name, Protocol(name, about, scorer), scorer.__module__)
    return scorer


def score_all(
    material: Material, names: Sequence[str] | None = None, chosen: bool = True
) -> tuple[list[Reading], dict[str, str]]:
    """Readings of all protocols (or those named) that apply, and why others do not.

    Names that nobody chose (``chosen=False``) are left out where they belong to another data set
    or are scored only when chosen. ValueError for a name that is no protocol.
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


def from_json(values: Mapping[str, Any]) -> Reading:
    """A reading, or a stage's own score, from JSON values."""
    return Reading(**{**values, "per_class": tuple(values["per_class"])})
