"""Contract checks of protocols."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.evaluation import PROTOCOLS, Material, PredictionSet, PredictionWriter, Reading
from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.protocols.registry import Protocol, to_json
from ssdet.testing.expect import expect

FPS = 24.0
DURATIONS = (8.0, 12.5, 30.0, 9.0)
"""Seconds. All videos have the 162 frames that published code asks for."""
CLASSES = 3
SLACK = 2e-3
"""Fractions. Scores are float16, so a few tie, which protocols break by the order of videos, and
steeper ones tie elsewhere."""
Logits = Mapping[str, Array]


def check_protocol(name: str, ranks: bool = True) -> None:
    """Raise AssertionError unless a registered protocol fulfils the contract.

    On four made-up videos of three classes: ids and coverage are given, better scores never
    give lower values, the order of videos does not matter, missing videos count as expected.
    `ranks=False` for a protocol with thresholds, which may depend on more than ranks.
    """
    protocol, subject = PROTOCOLS[name], f"protocol {name!r}"
    with TemporaryDirectory() as folder:
        case = Case(subject, protocol, Path(folder))
        truth = case.labels()
        perfect = {video: 8.0 * hits_TK - 4 for video, hits_TK in truth.items()}
        noisy = {video: logits_TK / 4 + case.noise(video) for video, logits_TK in perfect.items()}
        readings = case.readings("noisy", noisy)
        readings_are_complete(subject, readings, CLASSES)
        best, worst = (case.values(sign, {v: k * x for v, x in perfect.items()})
                       for sign, k in (("perfect", 1), ("inverted", -1)))  # fmt: skip
        values = case.values("noisy", noisy)
        perfect_scores_are_best(subject, best, values, worst)
        repeats_in_any_order(case, noisy, values)
        missing_videos_count(case, noisy, readings)
        if ranks:
            doubled = case.values("doubled", {video: 2 * x for video, x in noisy.items()})
            expect(
                _near(values, doubled), f"{subject}: steeper scores of equal ranks score otherwise"
            )
    missing_input_raises(subject, protocol)


@dataclass(frozen=True)
class Case:
    """A protocol under test, with a folder for predictions."""

    subject: str
    protocol: Protocol
    folder: Path

    @staticmethod
    def manifest(order: Sequence[int] = range(len(DURATIONS))) -> Manifest:
        """Videos whose classes overlap and leave gaps."""
        rng, videos = np.random.default_rng(0), []
        for number, duration in enumerate(DURATIONS):
            starts = rng.uniform(0, duration - 3, CLASSES)
            segments = [Segment(k, s, s + rng.uniform(1, 3)) for k, s in enumerate(starts.tolist())]
            videos.append(Video(f"v{number}", "", "test", None, tuple(segments), duration))
        return Manifest("made up", ("a", "b", "c"), tuple(videos[number] for number in order))

    def labels(self) -> dict[str, Array]:
        manifest = self.manifest()
        return {
            video.id: manifest.frame_targets(video, round((video.duration or 0) * FPS), FPS).T
            for video in manifest.videos
        }

    @staticmethod
    def noise(video: str) -> Array:
        frames = round(DURATIONS[int(video[1:])] * FPS)
        return np.random.default_rng(int(video[1:])).normal(size=(frames, CLASSES))

    def readings(
        self, name: str, logits: Logits, order: Sequence[int] = range(len(DURATIONS))
    ) -> list[Reading]:
        """Readings of the probabilities of these logits [T, K]."""
        manifest = self.manifest(order)
        with PredictionWriter(self.folder / name, CLASSES) as writer:
            for video, logits_TK in logits.items():
                writer.add(video, 1 / (1 + np.exp(-logits_TK)), FPS)
        predictions = PredictionSet.open(self.folder / name)
        material = Material(frame_labels(manifest, predictions), predictions, manifest)
        return list(self.protocol.score(material))

    def values(self, name: str, logits: Logits) -> dict[str, float | None]:
        return _values(self.readings(name, logits))


def _values(readings: Sequence[Reading]) -> dict[str, float | None]:
    return {reading.protocol: reading.value for reading in readings}


def _near(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = ((first[name], second[name]) for name in first)
    return all(a is b or (a is not None and b is not None and abs(a - b) <= SLACK)
               for a, b in pairs)  # fmt: skip


def readings_are_complete(subject: str, readings: Sequence[Reading], classes: int) -> None:
    """Ids with a version, each once; fractions; coverage; JSON."""
    ids = [reading.protocol for reading in readings]
    expect(ids and len({*ids}) == len(ids), f"{subject}: ids {ids}, expected some that differ")
    for reading in readings:
        known = re.fullmatch(r"[a-z0-9_.=>-]+/v\d+", reading.protocol)
        expect(known, f"{subject}: id {reading.protocol!r}, expected name/vN")
        coverage = (reading.videos_scored, reading.videos_expected)
        expect(coverage == (4, 4), f"{subject}: {coverage} videos scored and expected, there are 4")
        value = reading.value
        expect(value is None or 0 <= value <= 1, f"{subject}: {value} is no fraction")
        expect(reading.frames > 0, f"{subject}: {reading.frames} frames")
        right = 0 <= reading.classes_scored <= classes and len(reading.per_class) in (0, classes)
        expect(
            right, f"{subject}: more classes scored than there are, or per_class of other classes"
        )
        json.dumps(to_json(reading), allow_nan=False)
    expect(any(reading.value is not None for reading in readings), f"{subject}: no value at all")


def perfect_scores_are_best(
    subject: str,
    perfect: Mapping[str, float | None],
    noisy: Mapping[str, float | None],
    inverted: Mapping[str, float | None],
) -> None:
    """The labels as scores give the highest value, their opposite a lower one."""
    for name, best in perfect.items():
        for kind, other in (("noisy", noisy.get(name)), ("opposite", inverted.get(name))):
            if best is not None and other is not None:
                expect(
                    best >= other, f"{subject}: {name}: perfect scores {best}, {kind} ones {other}"
                )
        worst = inverted.get(name)
        better = best is None or worst is None or best > worst
        expect(better, f"{subject}: {name}: {best} for perfect scores and for their opposite")


def repeats_in_any_order(case: Case, logits: Logits, values: Mapping[str, float | None]) -> None:
    """Neither the order of predictions nor that of the annotation changes a value."""
    again = case.values("again", logits)
    expect(again == values, f"{case.subject}: the same scores give {again} after {dict(values)}")
    order = [2, 0, 3, 1]
    shuffled = {f"v{number}": logits[f"v{number}"] for number in reversed(order)}
    found = _values(case.readings("shuffled", shuffled, order))
    expect(_near(found, values), f"{case.subject}: in another order of videos {found}")


def missing_videos_count(case: Case, logits: Logits, readings: Sequence[Reading]) -> None:
    """A video without predictions stays expected."""
    part = {video: logits_TK for video, logits_TK in logits.items() if video != "v3"}
    for reading in case.readings("part", part):
        coverage = (reading.videos_scored, reading.videos_expected)
        subject = (
            f"{case.subject}: {reading.protocol}: {coverage} of 3 predicted and 4 expected videos"
        )
        expect(coverage == (3, 4), subject)
    names = {reading.protocol for reading in readings}
    expect(
        {*_values(case.readings("part", part))} == names, f"{case.subject}: ids depend on coverage"
    )


def missing_input_raises(subject: str, protocol: Protocol) -> None:
    """Without predictions it raises ValueError, whose message is shown as the reason."""
    try:
        protocol.score(Material())
    except ValueError:
        return
    expect(False, f"{subject}: no ValueError without predictions or annotation")
