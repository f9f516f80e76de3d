"""Scores of finished runs under further protocols, kept beside the stage whose scores they are.

`stages/ID/scores/PROTOCOL.json` holds the numbers of one protocol by split and id, and what they
were computed with: the scorer's source and the result of the stage. The stage's own files, and so
its identity and what bundles pack, stay as they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ssdet
from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation import dense_map
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.protocols.charades_official import OfficialTruth, read_truth
from ssdet.evaluation.protocols.registry import PROTOCOLS, Material, Reading, score_all, to_json
from ssdet.evaluation.source import source_digest
from ssdet.results.queries.stage_files import RESCORED, result_digest
from ssdet.store.base import Store
from ssdet.studies.data import Source
from ssdet.system.safe_files import make_folder, write_json

if TYPE_CHECKING:
    from ssdet.results.queries.results import Results

FOLDER = "scores"
OWN = "dense"
"""Protocol that stages report themselves."""


@dataclass(frozen=True)
class Rescored:
    """What came of scoring one run again."""

    run: str
    readings: Mapping[str, tuple[Reading, ...]]
    """By split."""
    refused: Mapping[str, str]
    """Why protocols do not apply, by name and split."""


def rescore(
    results: "Results",
    run: str,
    protocols: Sequence[str] | None = None,
    splits: Sequence[str] = ("test",),
) -> Rescored:
    """Score a finished run's predictions under further protocols and keep the numbers beside it.

    All that apply by default. Before anything is written, the dense score is computed again and
    must be the one that the stage reported. ValueError where it is not, where the run, its plan or
    a protocol is unknown, or where a protocol that was asked for does not apply; FileNotFoundError
    without annotation or predictions.
    """
    names = [name for name in PROTOCOLS if name != OWN] if protocols is None else list(protocols)
    if OWN in names:
        raise ValueError(f"{OWN} is what runs report themselves: see their dense_map")
    found: dict[str, tuple[Reading, ...]] = {}
    refused: dict[str, str] = {}
    for split in splits:
        material = run_material(results, run, split)
        _check(results, run, split, material)
        for name in names:
            readings, why = score_all(material, [name], chosen=protocols is not None)
            refused |= {f"{name}, {split}": reason for reason in why.values()}
            if why and protocols is not None:
                raise ValueError(f"{run}: {name} does not apply to split {split}: {why[name]}")
            if readings:
                _keep(results.store, run, name, split, readings)
            found[split] = (*found.get(split, ()), *readings)
    return Rescored(run, found, refused)


def run_material(results: "Results", run: str, split: str) -> Material:
    """What a run of a store gives to score: its predictions, and the annotation of its data."""
    predictions = results.run(run).predictions(split)
    if (record := results.record_with(run)) is None:
        raise ValueError(f"no study has {run}: where its annotation is is not known")
    data = record.plan().study.data
    source, part = data.downstream, data.split("downstream", split)
    expected = {*(video.id for video in part.videos), *part.missing}
    manifest = annotation(source.format, source.path, expected)
    truth = official_truth(source, split, expected)
    return Material(
        frame_labels(manifest, predictions), predictions, manifest, truth, format=source.format
    )


def annotation(format: str, path: str | Path, videos: set[str]) -> Manifest:
    """Annotation of these videos alone, with that of videos whose file is missing.

    ValueError for a video that is not annotated.
    """
    manifest = load_manifest(format, path)
    if unknown := sorted(videos - {video.id for video in manifest.videos}):
        raise ValueError(f"{path}: no annotation of {len(unknown)} videos ({unknown[0]}, …)")
    kept = tuple(replace(video, path="") for video in manifest.videos if video.id in videos)
    return replace(manifest, videos=kept, missing=(), missing_splits=())


def official_truth(source: Source, split: str, videos: set[str]) -> OfficialTruth | None:
    """Labels at the 25 points as the official CSV has them; None where the source is another."""
    path = Path(source.path)
    path = path / f"Charades_v1_{split}.csv" if path.is_dir() else path
    if source.format != "charades" or path.suffix != ".csv" or not path.is_file():
        return None
    return read_truth(path).only(videos)


def _check(results: "Results", run: str, split: str, material: Material) -> None:
    reported = results.run(run).scores.get(split, {})
    if reported.get("protocol") != "dense_map/v1":
        return
    again = dense_map(*material.dense).value
    if again != reported["value"]:
        raise ValueError(
            f"{run}: dense_map of split {split} is {again!r}, the stage reported "
            f"{reported['value']!r}: its predictions or the annotation are not what they were"
        )


def _keep(store: Store, run: str, name: str, split: str, readings: Sequence[Reading]) -> None:
    folder = store.folder(run)
    with store.lock(run):
        path = make_folder(store.root, "stages", run, FOLDER) / f"{name}.json"
        head = {
            "format": RESCORED,
            "protocol": name,
            "ssdet": ssdet.__version__,
            "scorer": source_digest(),
            "result": result_digest(folder),
        }
        scores = {
            **_of_other_splits(path, head),
            split: {one.column: to_json(one) for one in readings},
        }
        write_json(path, {**head, "scores": scores})
        store.publish_files(path)


def _of_other_splits(path: Path, head: Mapping[str, str]) -> dict[str, Any]:
    """What the file holds already, if the same scorer scored the same result."""
    try:
        known = json.loads(path.read_bytes())
        return dict(known["scores"]) if {key: known[key] for key in head} == head else {}
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # it is written anew
        return {}
