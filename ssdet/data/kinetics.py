"""Clips with one label each: Kinetics as published, a table of files, or a folder per class."""

import os
from collections.abc import Iterable
from pathlib import Path

from ssdet.data.files import (
    EXTENSIONS,
    SPLITS,
    class_names,
    inside,
    number,
    read_table,
    split_name,
)
from ssdet.data.manifest import Manifest, Video, join_files

Row = dict[str, str]


def read_kinetics(path: Path, videos: Path | None) -> Manifest:
    """Single-label clips from a folder per class or from a CSV file.

    * A folder: `class/clip.mp4`, or `split/class/clip.mp4` where all its folders are splits;
      without splits all is train.
    * A CSV with the published columns `label,youtube_id,time_start,time_end,split`. Clips are
      looked for in `videos` (without it: beside the CSV) as `ID_START_END.mp4` (six digits each)
      or `ID.mp4`, there or in folders of class, split, or split and class.
    * A CSV with columns `file,label` and perhaps `split` (else train), files relative to `videos`.

    Classes are the labels that occur, sorted, or the lines of a `classes.txt` beside the CSV, of
    which a label is the name or the number. So files stay where they are and keep their names:

        file,label,split
        0_1_4.avi,punch,train
        1_1_2.avi,kick,test

    `load_manifest("kinetics", "clips.csv", videos="ut-interaction")`. ValueError for a table that
    does not hold together.
    """
    if path.is_dir():
        return _read_folders(path if videos is None else videos)
    rows = read_table(path)
    columns = set(rows[0]) if rows else set()
    if {"label", "youtube_id", "time_start", "time_end", "split"} <= columns:
        read = _published
    elif {"label", "file"} <= columns:
        read = _listed
    else:
        raise ValueError(
            f"{path}: columns {sorted(columns)}, expected label, youtube_id, time_start, time_end "
            "and split, or file, label and perhaps split"
        )
    classes, codes = _classes(path, [row["label"] for row in rows])
    found, stems = [], []
    for line, row in enumerate(rows, 2):
        where = f"{path}: line {line}"
        if row["label"] not in codes:
            raise ValueError(f"{where}: class {row['label']!r} is not in classes.txt")
        video, names = read(where, row, codes[row["label"]])
        found.append(video)
        stems.append(names)
    folder = path.parent if videos is None else videos
    return join_files(path.stem, classes, found, stems, folder, {})


def _classes(path: Path, labels: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    names = path.with_name("classes.txt")
    if names.is_file():
        classes = class_names(names)
        numbers = {str(code): code for code in range(len(classes))}
        return classes, numbers | {name: code for code, name in enumerate(classes)}
    found = set(labels)
    numeric = all(label.isdecimal() for label in found)
    classes = tuple(sorted(found, key=int if numeric else None))
    return classes, {name: code for code, name in enumerate(classes)}


def _published(where: str, row: Row, label: int) -> tuple[Video, list[str]]:
    start = number(row["time_start"], f"{where}: time_start")
    end = number(row["time_end"], f"{where}: time_end")
    inside(row["youtube_id"], f"{where}: youtube_id")
    if not 0 <= start < end < 1e6:
        raise ValueError(f"{where}: times {start} to {end}, expected seconds, start < end")
    split = split_name(row["split"], where)
    clip = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
    kind = row["label"]
    folders = ["", f"{kind}/", f"{kind.replace(' ', '_')}/"]
    folders += [f"{name}/{inner}" for name in (row["split"], split) for inner in folders]
    stems = [folder + name for name in (clip, row["youtube_id"]) for folder in folders]
    return Video(clip, "", split, label, duration=end - start), list(dict.fromkeys(stems))


def _listed(where: str, row: Row, label: int) -> tuple[Video, list[str]]:
    file = inside(row["file"], f"{where}: file")
    split = split_name(row.get("split", "train"), where)
    return Video(os.path.splitext(file)[0], "", split, label), [file]


def _read_folders(root: Path) -> Manifest:
    tops = _folders(root)
    splits = (
        {top: split_name(top, f"{root}") for top in tops} if _are_splits(tops) else {"": "train"}
    )
    classes = sorted({name for top in splits for name in _folders(root / top)})
    found = [
        Video((file.relative_to(root).with_suffix("")).as_posix(), str(file), split, label)
        for top, split in splits.items()
        for label, name in enumerate(classes)
        for file in sorted((root / top / name).glob("*"))
        if file.suffix.lower() in EXTENSIONS
    ]
    if not found:
        raise ValueError(f"{root}: no videos in folders of classes ({', '.join(EXTENSIONS)})")
    return Manifest(root.name, tuple(classes), tuple(found))


def _folders(root: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))


def _are_splits(names: list[str]) -> bool:
    return bool(names) and all(name in SPLITS for name in names)
