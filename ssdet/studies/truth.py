"""Annotation and labels that a study's predictions are scored against."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest
from ssdet.evaluation.protocols.charades_official import OfficialTruth, read_truth
from ssdet.evaluation.protocols.registry import Material
from ssdet.inference.scoring import frame_targets

if TYPE_CHECKING:
    from ssdet.studies.data import Data, Source


def truth(data: "Data", split: str) -> Material:
    """What predictions of the untrimmed videos of a split are scored against: the dense labels of
    every frame, and the annotation."""
    labels = frame_targets(data.split("downstream", split), data.reader("downstream"))
    return replace(annotated(data, split), labels=labels)


def annotated(data: "Data", split: str) -> Material:
    """The annotation of the untrimmed videos of a split, those with a missing file among them."""
    source, part = data.downstream, data.split("downstream", split)
    expected = [*(video.id for video in part.videos), *part.missing]
    manifest = annotation(source.format, source.path, expected)
    official = official_truth(source, split, expected)
    return Material(manifest=manifest, truth=official, format=source.format)


def annotation(format: str, path: str | Path, videos: Iterable[str]) -> Manifest:
    """Annotation of these videos alone, with that of videos whose file is missing.

    ValueError for a video that is not annotated.
    """
    manifest, expected = load_manifest(format, path), set(videos)
    if unknown := sorted(expected - {video.id for video in manifest.videos}):
        raise ValueError(f"{path}: no annotation of {len(unknown)} videos ({unknown[0]}, …)")
    kept = tuple(replace(video, path="") for video in manifest.videos if video.id in expected)
    return replace(manifest, videos=kept, missing=(), missing_splits=())


def official_truth(source: "Source", split: str, videos: Iterable[str]) -> OfficialTruth | None:
    """Labels at the 25 points as the official CSV has them; None where the source is another."""
    path = Path(source.path)
    path = path / f"Charades_v1_{split}.csv" if path.is_dir() else path
    if source.format != "charades" or path.suffix != ".csv" or not path.is_file():
        return None
    return read_truth(path).only(videos)
