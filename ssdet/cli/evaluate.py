"""`ssdet evaluate`: score predictions under every protocol that applies."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ssdet.cli import shared
from ssdet.plugins import UsageError
from ssdet.studies.data import Source

if TYPE_CHECKING:
    from ssdet.data.datasets.manifest import Manifest
    from ssdet.evaluation import Material, PredictionSet, Reading
    from ssdet.evaluation.files.kinds import Recognised

Style = Literal["table", "json", "csv", "markdown"]
TITLES = ("protocol", "value", "videos", "frames", "classes", "empty classes", "notes")


@dataclass(frozen=True)
class Options:
    """Score predictions under every protocol that applies, each with its id and coverage."""

    predictions: shared.Name
    """Folder of a prediction set or of a finished stage; a file, recognised by its content:
    ActivityNet's result JSON, detections (`video start end class score`), Charades' submission
    (`id frame s0 … s156`); or with --store the id of a run."""
    annotations: Annotated[str, tyro.conf.Positional] = ""
    """Annotation file or folder; not needed with --store."""
    format: str = "charades"
    """Format of the annotation."""
    split: str = "test"
    """Split to score."""
    videos: str = ""
    """Folder of the videos, whose numbers of frames must be those of the predictions."""
    store: str = ""
    """Store that has the run."""
    protocol: tuple[str, ...] = ()
    """Only these protocols; see docs/protocols.md."""
    first_class: Literal[0, 1] | None = None
    """Number of the first class, for a file whose class numbers can be read both ways."""
    submission: Path | None = None
    """Write the scores at the 25 official points to this file."""
    as_json: shared.AsJson = False
    csv: bool = False
    """Print CSV."""
    markdown: bool = False
    """Print a Markdown table."""

    @property
    def styles(self) -> list[Style]:
        """Output formats that were given as options; a table where none was."""
        options: dict[Style, bool] = {
            "json": self.as_json, "csv": self.csv, "markdown": self.markdown,
        }  # fmt: skip
        return [style for style, chosen in options.items() if chosen] or ["table"]


@shared.report_errors()
def command(arguments: list[str]) -> int:
    """Print the scores; status 1 where a protocol that was named does not apply, or none does."""
    options = shared.parse(Options, arguments, "ssdet evaluate")
    from ssdet.evaluation import score_all
    from ssdet.evaluation.files.kinds import UnusableFile

    _check_usage(options)
    with shared.wrong_usage(UnusableFile):
        material = _material(options)
    if options.submission:
        _write_submission(material, options.submission)
    from_file = material.submitted is not None or material.detections is not None
    required = bool(options.protocol) or from_file
    readings, refused = score_all(material, _protocols(options, material), required)
    show(readings, refused, options.styles[0])
    return 1 if not readings or (required and refused) else 0


def _check_usage(options: Options) -> None:
    from ssdet.evaluation import PROTOCOLS

    unknown = [name for name in options.protocol if name not in PROTOCOLS]
    if unknown:
        raise UsageError(f"no protocol {', '.join(unknown)}; there are: {', '.join(PROTOCOLS)}")
    if bool(options.store) == bool(options.annotations):
        raise UsageError("give the annotations, or with --store the id of a run")
    if len(options.styles) > 1:
        raise UsageError(f"--{' and --'.join(options.styles)}: choose one")


def _protocols(options: Options, material: Material) -> Sequence[str]:
    """Protocols to score: the options', else those of the kind of predictions."""
    if options.protocol:
        return options.protocol
    from ssdet.evaluation import PROTOCOLS

    if material.submitted is not None:
        return ["charades_official"]
    if material.detections is None:
        return [*PROTOCOLS]
    like_activitynet = material.format == "activitynet" or material.file_kind == "activitynet"
    return ["activitynet", "segments"] if like_activitynet else ["segments"]


def _material(options: Options) -> Material:
    from ssdet.data.datasets.load import load_manifest
    from ssdet.evaluation import Material
    from ssdet.evaluation.files.kinds import recognise
    from ssdet.results.queries.rescore import run_material
    from ssdet.results.queries.results import Results
    from ssdet.studies.truth import official_truth

    if options.store:
        return run_material(Results.open(options.store), options.predictions, options.split)
    whole = load_manifest(options.format, options.annotations)
    manifest = whole.split(options.split)
    if not manifest.videos:
        raise ValueError(f"{options.annotations}: no video of split {options.split!r}")
    ids = {video.id for video in manifest.videos}
    source = Source(options.format, options.annotations)
    material = Material(
        manifest=manifest, truth=official_truth(source, options.split, ids), format=options.format
    )
    path = Path(options.predictions)
    if path.is_dir():
        return _dense(material, _prediction_set(path, options.split), options)
    file = recognise(path, manifest.num_classes)
    if file.kind == "submission":
        return _submission(material, path)
    return _detections(material, path, file, whole, options.first_class)


def _prediction_set(folder: Path, split: str) -> PredictionSet:
    """The prediction set in a folder, or of a split in the folder of a finished stage."""
    from ssdet.data.storage.folders import split_name
    from ssdet.evaluation import PredictionSet
    from ssdet.evaluation.files.kinds import describe_folder

    of_stage = folder / "predictions" / split_name(split, "--split")
    folder = of_stage if of_stage.is_dir() else folder
    if not any(folder.glob("*.f16")):
        raise describe_folder(folder)
    return PredictionSet.open(folder)


def _dense(material: Material, predictions: PredictionSet, options: Options) -> Material:
    from ssdet.data.datasets.load import load_manifest
    from ssdet.evaluation.lazy_rows import frame_labels

    manifest = material.annotated
    if predictions.classes != manifest.num_classes:
        raise ValueError(
            f"{predictions.folder}: {predictions.classes} classes, the annotation has "
            f"{manifest.num_classes}"
        )
    if options.videos:
        _check_frames(
            load_manifest(options.format, options.annotations, options.videos), predictions
        )
    return replace(material, predictions=predictions, labels=frame_labels(manifest, predictions))


def _check_frames(manifest: Manifest, predictions: PredictionSet) -> None:
    from ssdet.data.video.reader import probe

    for video in manifest.videos:
        if video.id not in predictions:
            continue
        frames, scored = probe(video.path).frames, predictions.frames(video.id)
        if frames != scored:
            raise ValueError(
                f"video {video.id!r}: {scored} frames are scored, {video.path} has {frames}: "
                "score the files that were predicted"
            )


def _submission(material: Material, path: Path) -> Material:
    from ssdet.evaluation import read_submission
    from ssdet.evaluation.protocols.charades_official import truth_of

    truth = material.truth or truth_of(material.annotated)
    read = read_submission(path, truth.hits.keys(), truth.classes)
    notes = {"lines": read.rows, "lines_ignored": read.ignored, "lines_repeated": read.repeated}
    if read.shifted:
        shared.note(f"note: {path}: frames count from 0 and were shifted by 1")
    return replace(
        material, submitted=read.scores, truth=truth, notes=notes, file_kind="submission"
    )


def _detections(
    material: Material, path: Path, file: Recognised, whole: Manifest, first_class: int | None
) -> Material:
    """Material with the detections of a file; prints what did not match to the error stream."""
    from ssdet.evaluation.files.detections import match_detections

    manifest, format = material.annotated, material.format
    read = match_detections(path, file, manifest, format, first_class)
    if read.rule.startswith("numbers"):
        shared.note(f"note: {path}: classes are {read.rule}")
    _report_unmatched(path, "videos", read.unknown_videos, _elsewhere(read.unknown_videos, whole))
    _report_unmatched(path, "classes", read.unknown_classes)
    if read.unknown_videos and not read.detections.keys() & {v.id for v in manifest.videos}:
        raise ValueError(
            f"{path}: none of its videos ({read.unknown_videos[0]!r}, …) is in the split, which "
            f"has {manifest.videos[0].id!r}: choose another --split or annotation"
        )
    if read.unknown_classes and read.notes["lines"] == read.notes["lines_ignored"]:
        raise ValueError(
            f"{path}: none of its classes ({read.unknown_classes[0]!r}, …) is annotated; the "
            f"annotation has {manifest.classes[0]!r}: write names of the annotation"
        )
    return replace(
        material, detections=read.detections, notes=dict(read.notes), file_kind=file.kind
    )


def _elsewhere(videos: Sequence[str], whole: Manifest) -> str:
    """Number of the videos in each other split, as text."""
    from ssdet.data.datasets.video_names import VideoNames

    names = VideoNames(video.id for video in whole.videos)
    splits = {video.id: video.split for video in whole.videos}
    counts = Counter(splits[id] for name in videos if (id := names.find(name)))
    return "".join(f"; {count} of split {split!r}" for split, count in sorted(counts.items()))


def _report_unmatched(path: Path, what: str, names: Sequence[str], more: str = "") -> None:
    if names:
        listed = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
        shared.note(
            f"note: {path}: {len(names)} {what} not in the split's annotation ({listed}){more}"
        )


def _write_submission(material: Material, path: Path) -> None:
    from ssdet.evaluation import official_points, write_submission
    from ssdet.evaluation.protocols.charades_official import truth_of

    truth = material.truth or truth_of(material.annotated)
    scores = material.submitted
    if scores is None:
        scores = official_points(material.dense[0], truth)
    shared.note(f"{path}: {write_submission(path, scores)} lines")


def show(readings: Sequence[Reading], refused: Mapping[str, str], style: Style) -> None:
    """Print readings, values in percent but for JSON and CSV; reasons of protocols that do not
    apply go to the error stream (in JSON inside)."""
    from ssdet.evaluation.protocols.registry import to_json

    if style == "json":
        shared.print_json({"scores": list(map(to_json, readings)), "not_applicable": dict(refused)})
        return
    for name, reason in refused.items():
        shared.note(f"not applicable: {name}: {reason}")
    if style == "csv":
        print(_csv(readings), end="")
    elif style == "markdown":
        print("\n".join(_markdown(readings)))
    else:
        shared.print_table(TITLES, map(_cells, readings), width=180)


def _cells(reading: Reading) -> tuple[str, ...]:
    notes = ", ".join(f"{name} {count}" for name, count in reading.notes.items() if count)
    value = "none" if reading.value is None else f"{100 * reading.value:.2f}"
    return (
        reading.protocol, value, f"{reading.videos_scored}/{reading.videos_expected}",
        str(reading.frames), str(reading.classes_scored), reading.empty_class_rule, notes,
    )  # fmt: skip


def _markdown(readings: Sequence[Reading]) -> Iterator[str]:
    from ssdet.results.tables.render import markdown_text

    yield f"| {' | '.join(TITLES)} |"
    yield f"|{'---|' * len(TITLES)}"
    for reading in readings:
        yield f"| {' | '.join(map(markdown_text, _cells(reading)))} |"


def _csv(readings: Sequence[Reading]) -> str:
    from ssdet.evaluation import Reading

    out = io.StringIO()
    columns = [name for name in Reading.__dataclass_fields__ if name not in ("per_class", "notes")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, "notes"])
    for reading in readings:
        notes = " ".join(f"{name}={count}" for name, count in reading.notes.items())
        writer.writerow([*(getattr(reading, name) for name in columns), notes])
    return out.getvalue()
