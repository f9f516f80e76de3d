"""`ssdet evaluate`: score predictions under every protocol that applies."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ssdet.plugins import Unknown
from ssdet.studies.data import Source

if TYPE_CHECKING:
    from ssdet.data.manifest import Manifest
    from ssdet.evaluation import Material, PredictionSet, Reading

Style = Literal["table", "json", "csv", "markdown"]
DETECTION_FIELDS = 5
TITLES = ("protocol", "value", "videos", "frames", "classes", "empty classes", "notes")


@dataclass(frozen=True)
class Options:
    """Score predictions under every protocol that applies, each with its id and coverage."""

    predictions: Annotated[str, tyro.conf.Positional]
    """Folder of a prediction set, an official submission file (`id frame s0 … s156`), a detections
    file (`video start end class score`), or with --store the id of a run."""
    annotations: Annotated[str, tyro.conf.Positional] = ""
    """Annotation file or folder; of a run of a store it is known."""
    format: str = "charades"
    """Format of the annotation."""
    split: str = "test"
    """Split to score."""
    videos: str = ""
    """Folder of the videos: their frames are counted, and must be the predictions'."""
    store: str = ""
    """Store that has the run."""
    protocol: tuple[str, ...] = ()
    """Only these protocols; see docs/protocols.md."""
    submission: Path | None = None
    """Write the scores at the 25 official points to this file."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON, with every class."""
    csv: bool = False
    """Print CSV."""
    markdown: bool = False
    """Print a Markdown table."""

    @property
    def styles(self) -> list[Style]:
        """Ways to print that were asked for; a table where none was."""
        asked: dict[Style, bool] = {
            "json": self.as_json, "csv": self.csv, "markdown": self.markdown,
        }  # fmt: skip
        return [style for style, wanted in asked.items() if wanted] or ["table"]


def command(arguments: list[str]) -> int:
    """Run the command; exit status 0 done, 1 failed, 2 wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet evaluate", config=config)
    from ssdet.evaluation import score_all

    try:
        if wrong := _wrong_usage(options):
            print(f"error: {wrong}", file=sys.stderr)
            return 2
        material = _material(options)
        if options.submission:
            _submit(material, options.submission)
        readings, refused = score_all(material, _names(options, material), bool(options.protocol))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, Unknown) else 1
    show(readings, refused, options.styles[0])
    return 1 if not readings or (options.protocol and refused) else 0


def _wrong_usage(options: Options) -> str:
    from ssdet.evaluation import PROTOCOLS

    unknown = [name for name in options.protocol if name not in PROTOCOLS]
    if unknown:
        return f"no protocol {', '.join(unknown)}; there are: {', '.join(PROTOCOLS)}"
    if bool(options.store) == bool(options.annotations):
        return "give the annotations, or with --store the id of a run, whose annotation is known"
    return f"--{' and --'.join(options.styles)}: choose one" if len(options.styles) > 1 else ""


def _names(options: Options, material: Material) -> Sequence[str]:
    from ssdet.evaluation import PROTOCOLS

    if options.protocol:
        return options.protocol
    if material.submitted is not None:
        return ["charades_official"]
    return ["segments"] if material.detections is not None else [*PROTOCOLS]


def _material(options: Options) -> Material:
    from ssdet.data.manifest import load_manifest
    from ssdet.evaluation import Material, PredictionSet
    from ssdet.results.query import Results
    from ssdet.results.rescore import official_truth, run_material

    if options.store:
        return run_material(Results.open(options.store), options.predictions, options.split)
    manifest = load_manifest(options.format, options.annotations).split(options.split)
    if not manifest.videos:
        raise ValueError(f"{options.annotations}: no video of split {options.split!r}")
    ids = {video.id for video in manifest.videos}
    source = Source(options.format, options.annotations)
    material = Material(
        manifest=manifest, truth=official_truth(source, options.split, ids), format=options.format
    )
    path = Path(options.predictions)
    if path.is_dir():
        return _dense(material, PredictionSet.open(path), options)
    return _from_text(material, path)


def _dense(material: Material, predictions: PredictionSet, options: Options) -> Material:
    from ssdet.data.manifest import load_manifest
    from ssdet.evaluation.views import frame_labels

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
    from ssdet.data.video import probe

    for video in manifest.videos:
        if video.id not in predictions:
            continue
        frames, scored = probe(video.path).frames, predictions.frames(video.id)
        if frames != scored:
            raise ValueError(
                f"video {video.id!r}: {scored} frames are scored, {video.path} has {frames}: "
                "score the files that were predicted"
            )


def _from_text(material: Material, path: Path) -> Material:
    """A submission or a detections file, told apart by the fields of its first line."""
    from ssdet.evaluation import read_detections, read_submission
    from ssdet.evaluation.charades_official import truth_of

    manifest = material.annotated
    with open(path, "rb") as file:
        first = file.readline(1 << 16).split()
    if len(first) == DETECTION_FIELDS:
        start = 1 if material.format == "multithumos" else 0
        numbers = {str(k + start): k for k in range(manifest.num_classes)}
        named = {name: k for k, name in enumerate(manifest.classes)}
        found = read_detections(path, {**named, **numbers})
        notes = {"lines": found.lines, "lines_ignored": found.ignored}
        return replace(material, detections=found.detections, notes=notes)
    truth = material.truth or truth_of(manifest)
    read = read_submission(path, truth.hits.keys(), truth.classes)
    notes = {"lines": read.rows, "lines_ignored": read.ignored, "lines_repeated": read.repeated}
    if read.shifted:
        print(f"note: {path}: frames count from 0 and were shifted by 1", file=sys.stderr)
    return replace(material, submitted=read.scores, truth=truth, notes=notes)


def _submit(material: Material, path: Path) -> None:
    from ssdet.evaluation import official_points, write_submission
    from ssdet.evaluation.charades_official import truth_of

    truth = material.truth or truth_of(material.annotated)
    scores = material.submitted
    if scores is None:
        scores = official_points(material.dense[0], truth)
    print(f"{path}: {write_submission(path, scores)} lines", file=sys.stderr)


def show(readings: Sequence[Reading], refused: Mapping[str, str], style: Style) -> None:
    """Print readings, values in percent but for JSON and CSV; why others do not apply, to the
    error stream (in JSON inside)."""
    from ssdet.evaluation.registry import to_json

    if style == "json":
        told = {"scores": list(map(to_json, readings)), "not_applicable": dict(refused)}
        print(json.dumps(told, indent=1, allow_nan=False))
        return
    for name, why in refused.items():
        print(f"not applicable: {name}: {why}", file=sys.stderr)
    if style == "csv":
        print(_csv(readings), end="")
    elif style == "markdown":
        print("\n".join(_markdown(readings)))
    else:
        terminal = Console(highlight=False)
        out = terminal if terminal.is_terminal else Console(width=180, highlight=False)
        table = Table(*TITLES)
        for reading in readings:
            table.add_row(*_cells(reading))
        out.print(table)


def _cells(reading: Reading) -> tuple[str, ...]:
    notes = ", ".join(f"{name} {count}" for name, count in reading.notes.items() if count)
    value = "none" if reading.value is None else f"{100 * reading.value:.2f}"
    return (
        reading.protocol, value, f"{reading.videos_scored}/{reading.videos_expected}",
        str(reading.frames), str(reading.classes_scored), reading.empty_class_rule, notes,
    )  # fmt: skip


def _markdown(readings: Sequence[Reading]) -> Iterator[str]:
    yield f"| {' | '.join(TITLES)} |"
    yield f"|{'---|' * len(TITLES)}"
    for reading in readings:
        yield f"| {' | '.join(_cells(reading))} |"


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
