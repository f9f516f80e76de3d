"""Clips with one label each: Kinetics as published, tables and lists of files, class folders."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssdet.data.files import (
    EXTENSIONS,
    SPLITS,
    Once,
    class_names,
    inside,
    number,
    read_table,
    read_text,
    split_name,
    told_split,
)
from ssdet.data.manifest import Manifest, Video, join_files
from ssdet.data.segments import MAX_CLASSES

Row = dict[str, str]
CLASS_FILES = ("classes.txt", "label_map_k400.txt")
Tops = list[tuple[str, set[str]]]
"""Folders in which files may lie, each with the names of the folders in it."""
_REPLACED = "replacement/replacement_for_corrupted_k400"
_PUBLISHED = {"label", "youtube_id", "time_start", "time_end"}
_LINE = re.compile(r"(\S.*?)\s+(-?\d+)")


@dataclass(frozen=True)
class Clip:
    """A row of a list: a video whose class is not known by number yet."""

    where: str
    video: Video
    label: str
    files: tuple[str, ...]
    """Names in the order in which they are looked for, without folders of split and class."""
    by_class: bool = False
    """Whether the file may lie in a folder named after its class."""


def read_kinetics(paths: Sequence[Path], videos: Path | None) -> Manifest:
    """Single-label clips from lists of files, or from a folder per class.

    * CSV with the published columns `label,youtube_id,time_start,time_end` and perhaps `split`.
      Files are `ID_START_END` (six digits each) or `ID`.
    * CSV with columns `file,label` and perhaps `split`.
    * Text of lines `path number`, the number being the class from 0.
    * A folder with such lists, one a split, in it or in its `annotations`.
    * A folder `class/clip.mp4`, or `split/class/clip.mp4` where all its folders are splits; without
      splits all is train.

    A list without a column `split` is of the split that its name tells, else train. Files are
    looked for in `videos` (without it: beside the list, or beside `annotations`): there, in folders
    named after split (`train`, `videos_train`, `train_256`), class (spaces may be `_`, brackets
    `-`), or both, and first among the replacements for broken files that one mirror has.

    Classes are the labels that occur, sorted, or the lines of `classes.txt` or `label_map_k400.txt`
    beside the list, of which a label is the name or the number. So files keep their places:

        file,label,split
        0_1_4.avi,punch,train
        1_1_2.avi,kick,test

    `load_manifest("kinetics", "clips.csv", videos="ut-interaction")`. ValueError for a list that
    does not hold together or has no labels.
    """
    lists = [file for path in paths for file in (_lists(path) if path.is_dir() else [path])]
    if not lists:
        return _read_folders(paths[0] if videos is None else videos)
    once = Once()
    clips = [clip for file in lists for clip in _read_list(file)]
    for clip in clips:
        once.add(clip.video.id, clip.where)
    folder = lists[0].parent
    home = folder.parent if folder.name == "annotations" else folder
    classes, codes = _classes(folder, clips, any(_is_text(file) for file in lists))
    found = [_labelled(clip, codes) for clip in clips]
    root = home if videos is None else videos
    name = lists[0].stem if len(lists) == 1 else home.name
    return join_files(name, classes, found, _places(root, clips), root, {})


def _lists(folder: Path) -> list[Path]:
    """Lists of clips in a folder, or else in its `annotations`; one a split."""
    for place in (folder, folder / "annotations"):
        names = sorted(os.listdir(place)) if place.is_dir() else []
        lists = [place / name for name in names if name.endswith((".csv", ".txt"))]
        by_split: dict[str, Path] = {}
        for file in (file for file in lists if told_split(file.name)):
            split = told_split(file.name)
            if split in by_split:
                raise ValueError(
                    f"{folder}: two lists for {split}, {by_split[split].name} and {file.name}: "
                    "give the lists that are meant instead of the folder"
                )
            by_split[split] = file
        if by_split:
            return list(by_split.values())
    return []


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _read_list(path: Path) -> list[Clip]:
    split = told_split(path.name)
    if _is_text(path):
        lines = enumerate(read_text(path).splitlines(), 1)
        clips = [_line(f"{path}: line {at}", text, split) for at, text in lines if text.strip()]
        if not clips:
            raise ValueError(f"{path}: no line 'path number' in it")
        return clips
    rows = read_table(path)
    columns = set(rows[0]) if rows else set()
    if "label" not in columns and columns & {"youtube_id", "file"}:
        raise ValueError(f"{path}: a list without labels (columns {sorted(columns)}): leave it out")
    if columns >= _PUBLISHED:
        read = _published
    elif {"label", "file"} <= columns:
        read = _listed
    else:
        raise ValueError(
            f"{path}: columns {sorted(columns)}, expected label, youtube_id, time_start, time_end "
            "and split, or file, label and perhaps split"
        )
    return [read(f"{path}: line {at}", row, split or "train") for at, row in enumerate(rows, 2)]


def _published(where: str, row: Row, told: str) -> Clip:
    start = number(row["time_start"], f"{where}: time_start")
    end = number(row["time_end"], f"{where}: time_end")
    if not 0 <= start < end < 1e6:
        raise ValueError(f"{where}: times {start} to {end}, expected seconds, start < end")
    inside(row["youtube_id"], f"{where}: youtube_id")
    inside(_label(where, row), f"{where}: label")
    name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
    video = Video(name, "", split_name(row.get("split", told), where), duration=end - start)
    return Clip(where, video, row["label"], (name, row["youtube_id"]), by_class=True)


def _listed(where: str, row: Row, told: str) -> Clip:
    file = inside(row["file"], f"{where}: file")
    split = split_name(row.get("split", told), where)
    return Clip(where, Video(os.path.splitext(file)[0], "", split), _label(where, row), (file,))


def _label(where: str, row: Row) -> str:
    if not row["label"]:
        raise ValueError(f"{where}: no label: leave a list without labels out")
    return row["label"]


def _line(where: str, text: str, told: str) -> Clip:
    parts = _LINE.fullmatch(text.strip())
    if not parts or int(parts[2]) < 0:
        raise ValueError(f"{where}: no label in {text!r}, expected 'path number': leave it out")
    if _LINE.fullmatch(parts[1]):
        raise ValueError(f"{where}: {text!r}, expected two columns, 'path number'")
    if not told:
        raise ValueError(f"{where}: expected train, val or test in the file's name")
    file = inside(parts[1], f"{where}: path")
    return Clip(where, Video(os.path.splitext(file)[0], "", told), parts[2], (file,))


def _classes(
    folder: Path, clips: list[Clip], numbered: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the classes, and the number of each label."""
    for name in CLASS_FILES:
        if (folder / name).is_file():
            classes = class_names(folder / name)
            numbers = {str(code): code for code in range(len(classes))}
            return classes, numbers | {name: code for code, name in enumerate(classes)}
    found = {clip.label for clip in clips}
    numeric = all(label.isdecimal() for label in found)
    if numbered and not numeric:
        raise ValueError(f"{folder}: names in one list, numbers in another: add {CLASS_FILES[0]}")
    if numbered:
        return _numbered(folder, clips)
    classes = tuple(sorted(found, key=int if numeric else None))
    return classes, {name: code for code, name in enumerate(classes)}


def _numbered(folder: Path, clips: list[Clip]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes 0 to the highest number, named after the folders of their files where those agree."""
    highest = max(int(clip.label) for clip in clips)
    if highest >= MAX_CLASSES:
        raise ValueError(f"{folder}: class {highest}, expected fewer than {MAX_CLASSES}")
    names: dict[int, set[str]] = {}
    for clip in clips:
        names.setdefault(int(clip.label), set()).add(Path(clip.files[0]).parent.name)
    told = {code: min(found) for code, found in names.items() if len(found) == 1 and all(found)}
    if len(told) < len(names) or len(set(told.values())) < len(told):
        told = {}
    classes = tuple(told.get(code, f"class {code}") for code in range(highest + 1))
    return classes, {clip.label: int(clip.label) for clip in clips}


def _labelled(clip: Clip, codes: dict[str, int]) -> Video:
    if clip.label not in codes:
        raise ValueError(f"{clip.where}: class {clip.label!r} is not in {' or '.join(CLASS_FILES)}")
    video = clip.video
    return Video(video.id, "", video.split, codes[clip.label], duration=video.duration)


def _places(root: Path, clips: Iterable[Clip]) -> Iterator[Iterator[str]]:
    """For each clip the names under which its file may be found, the likeliest first."""
    there: dict[str, Tops] = {}
    for split in set(SPLITS.values()):
        names = [name for name in SPLITS if SPLITS[name] == split]
        tops = [top for name in names for top in (name, f"videos_{name}", f"{name}_256")]
        folders = [top for top in (_REPLACED, "", *tops) if (root / top).is_dir()]
        there[split] = [(f"{top}/" if top else "", {*_folders(root / top)}) for top in folders]
    return (_stems(clip, there[clip.video.split]) for clip in clips)


def _stems(clip: Clip, tops: Tops) -> Iterator[str]:
    kinds: tuple[str, ...] = ()
    if clip.by_class:
        flat = clip.label.replace(" ", "_")
        kinds = (clip.label, flat, flat.replace("(", "-").replace(")", "-"))
    for name in clip.files:
        for top, folders in tops:
            yield f"{top}{name}"
            yield from (f"{top}{kind}/{name}" for kind in kinds if kind in folders)


def _read_folders(root: Path) -> Manifest:
    splits = _split_folders(root) or {"": "train"}
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


def _split_folders(root: Path) -> dict[str, str]:
    """Split of each folder, where all are splits (or what mirrors have beside them), or nothing."""
    names = [name for name in _folders(root) if name not in ("annotations", "replacement")]
    words = [name.removeprefix("videos_").removesuffix("_256") for name in names]
    if not all(word in SPLITS for word in words):
        return {}
    return {name: SPLITS[word] for name, word in zip(names, words, strict=True)}


def _folders(root: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(root) if not e.name.startswith(".") and e.is_dir())
