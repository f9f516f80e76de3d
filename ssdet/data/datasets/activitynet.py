"""Reader of ActivityNet's JSON layout of long videos with segments, used by many data sets."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdet.data.datasets.manifest import Manifest, Video, join_files
from ssdet.data.datasets.segments import WITHHELD, seconds, to_segments
from ssdet.data.storage.folders import safe_name, split_name
from ssdet.data.storage.text import as_number, class_names, read_json

Entries = Mapping[str, tuple[str, float, list[Any]]]


def read_activitynet(path: Path, videos: Path | None) -> Manifest:
    """Read a JSON file `{"database": {id: entry}, "taxonomy": [node, ...]}`.

    An entry is `{"subset", "duration", "annotations": [{"segment": [start, end], "label": name}]}`,
    times in seconds. Classes are the lines of a `classes.txt` beside the file, else the leaves of
    the taxonomy, else the labels that occur; the latter two sorted. Test videos are left out if
    none of them has labels. Files are named `ID` or `v_ID`.
    """
    content = read_json(path)
    database = content.get("database")
    if not isinstance(database, dict):
        raise ValueError(f"{path}: database {type(database).__name__}, expected videos by id")
    entries = {name: _entry(path, name, entry) for name, entry in database.items()}
    notes: Counter[str] = Counter()
    if not any(actions for split, _, actions in entries.values() if split == "test"):
        labelled = {name: entry for name, entry in entries.items() if entry[0] != "test"}
        notes[WITHHELD] = len(entries) - len(labelled)
        entries = labelled
    classes = _classes(path, content.get("taxonomy"), entries)
    codes = {name: code for code, name in enumerate(classes)}
    annotated = []
    for name, (split, duration, actions) in entries.items():
        segments = to_segments(f"{path}: video {name!r}", actions, codes, duration, notes)
        left_out = len(actions) - len(segments)
        annotated.append(Video(name, "", split, None, segments, duration, left_out))
    stems = [(video.id, f"v_{video.id}") for video in annotated]
    return join_files(path.stem, classes, annotated, stems, videos, notes)


def _entry(path: Path, name: str, entry: Any) -> tuple[str, float, list[Any]]:
    """Parse an entry: (split, duration, actions [label, start, end])."""
    where = f"{path}: video {name!r}"
    safe_name(name, f"{path}: video")
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: {type(entry).__name__}, expected subset, duration and annotations"
        )
    subset, annotations = entry.get("subset"), entry.get("annotations")
    if not isinstance(subset, str):
        raise ValueError(f"{where}: subset {subset!r}, expected a name")
    split, duration = split_name(subset, where), seconds(where, "duration", entry.get("duration"))
    if split == "test" and annotations is None:
        annotations = []  # withheld
    if not isinstance(annotations, list):
        raise ValueError(f"{where}: annotations {type(annotations).__name__}, expected a list")
    return split, duration, [_action(where, annotation) for annotation in annotations]


def _action(where: str, annotation: Any) -> list[Any]:
    if not isinstance(annotation, dict) or not {"segment", "label"} <= annotation.keys():
        raise ValueError(f"{where}: annotation {annotation!r}, expected segment and label")
    segment, label = annotation["segment"], annotation["label"]
    if not isinstance(segment, list) or len(segment) != 2:
        raise ValueError(f"{where}: segment {segment!r}, expected [start, end] in seconds")
    if not isinstance(label, str):
        raise ValueError(f"{where}: label {label!r}, expected the name of a class")
    return [label, *map(as_number, segment)]


def _classes(path: Path, taxonomy: Any, entries: Entries) -> tuple[str, ...]:
    names = path.with_name("classes.txt")
    if names.is_file():
        return class_names(names)
    if taxonomy:
        return _leaves(path, taxonomy)
    labels = {action[0] for _, _, actions in entries.values() for action in actions}
    return tuple(sorted(labels))


def _leaves(path: Path, taxonomy: Any) -> tuple[str, ...]:
    """Names of the nodes without children, sorted."""
    nodes = taxonomy if isinstance(taxonomy, list) else [taxonomy]
    for node in nodes:
        if not isinstance(node, dict) or not isinstance(node.get("nodeName"), str):
            raise ValueError(f"{path}: taxonomy: {node!r:.100}, expected a node with a nodeName")
    parents = [node.get("parentName") for node in nodes]
    return tuple(sorted({node["nodeName"] for node in nodes if node["nodeName"] not in parents}))
