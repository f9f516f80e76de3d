"""Reader of Charades: the official CSV files, or `charades.json` of published detection code."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssdet.data.datasets.manifest import Manifest, Video, join_files
from ssdet.data.datasets.segments import from_entries, seconds, to_segments
from ssdet.data.storage.folders import UniqueVideos, safe_name
from ssdet.data.storage.text import class_names, number, read_json, read_table

NUM_CLASSES = 157
_SPLITS = ("train", "test")


def read_charades(paths: Sequence[Path], videos: Path | None) -> Manifest:
    """Read `Charades_v1_{train,test}.csv`, the folder with both, or `charades.json`.

    Class names come from `Charades_v1_classes.txt` beside the file, else they are c000 to c156.
    `videos` contains `ID.mp4` (of any size) or folders `ID` of the frames at 24 a second.
    Example: `load_manifest("charades", "Charades/", videos="Charades_v1_480")`.
    """
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    names = folder / "Charades_v1_classes.txt"
    classes = (
        class_names(names) if names.is_file() else tuple(f"c{k:03d}" for k in range(NUM_CLASSES))
    )
    notes: Counter[str] = Counter()
    if paths[0].suffix == ".json":
        if len(paths) > 1:
            raise ValueError(f"{paths[1]}: charades.json is the whole annotation, give it alone")
        return from_entries(paths[0], read_json(paths[0]), classes, videos, notes)
    tables = [
        table
        for path in paths
        for table in ([path / f"Charades_v1_{s}.csv" for s in _SPLITS] if path.is_dir() else [path])
    ]
    unique = UniqueVideos()
    rows = [video for table in tables for video in _read_csv(table, len(classes), notes, unique)]
    return join_files("charades", classes, rows, [(v.id,) for v in rows], videos, notes)


def _read_csv(path: Path, classes: int, notes: Counter[str], unique: UniqueVideos) -> list[Video]:
    splits = [split for split in _SPLITS if split in path.stem.lower()]
    if len(splits) != 1:
        raise ValueError(f"{path}: expected train or test (the split) in the file name")
    codes = {f"c{code:03d}": code for code in range(classes)}
    annotated = []
    for row in read_table(path):
        if not {"id", "actions", "length"} <= row.keys():
            raise ValueError(f"{path}: columns {[*row]}, expected id, actions and length")
        where = f"{path}: video {row['id']!r}"
        safe_name(row["id"], f"{path}: video")
        unique.add(row["id"], f"{path}")
        length = seconds(where, "length", number(row["length"], f"{where}: length"))
        actions = [_action(where, text) for text in row["actions"].split(";") if text]
        segments = to_segments(where, actions, codes, length, notes)
        left_out = len(actions) - len(segments)
        annotated.append(Video(row["id"], "", splits[0], None, segments, length, left_out))
    return annotated


def _action(where: str, text: str) -> tuple[str, float, float]:
    parts = text.split()
    if len(parts) != 3:
        raise ValueError(f"{where}: action {text!r}, expected 'c000 start end'")
    return parts[0], number(parts[1], f"{where}: start"), number(parts[2], f"{where}: end")
