"""Clips with one label each: Kinetics as published, tables and lists of files, class folders."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssdet.data.datasets.manifest import Manifest, Video, join_files
from ssdet.data.datasets.segments import MAX_CLASSES
from ssdet.data.storage.folders import (
    DANGLING,
    EXTENSIONS,
    NOISE,
    SPLITS,
    UniqueVideos,
    is_noise,
    safe_name,
    split_in_name,
    split_name,
    subfolders,
    video_stems,
)
from ssdet.data.storage.text import class_list, clean, number, read_table, read_text

Row = dict[str, str]
CLASS_FILES = ("classes.txt", "label_map_k400.txt", "classInd.txt")
FROM_ONE = "lists whose classes count from 1"
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
    unnumbered: bool = False
    """A line without a number: its label is the folder of its file."""


def read_kinetics(paths: Sequence[Path], videos: Path | None) -> Manifest:
    """Single-label clips from lists of files, or from a folder per class.

    * CSV with the published columns `label,youtube_id,time_start,time_end` and perhaps `split`.
      Files are `ID_START_END` (six digits each) or `ID`.
    * CSV with columns `file,label` and perhaps `split`.
    * Text of lines `path number`, the number being the class from 0, or from 1 where no list has
      a 0 and that fits: as the class list is numbered, as the folders of the files are named, or,
      without either, where 1 occurs. In lists with numbers, a line without one is of the class that
      its folder is named after (UCF-101's test lists).
    * A folder with such lists, one a split, in it or in its `annotations`.
    * A folder `class/clip.mp4`, or `split/class/clip.mp4` where all its folders are splits; without
      splits all is train.

    A list without a column `split` is of the split that its name tells, else train. Files are
    looked for in `videos` (without it: beside the list, or beside `annotations`): there, in folders
    named after split (`train`, `videos_train`, `train_256`), class (spaces may be `_`, brackets
    `-`), or both, and first among the replacements for broken files that one mirror has.

    Classes are the labels that occur, sorted, or the lines of `classes.txt`, `label_map_k400.txt`
    or `classInd.txt` beside the list, of which a label is the name or the number. So files keep
    their places:

        file,label,split
        0_1_4.avi,punch,train
        1_1_2.avi,kick,test

    `load_manifest("kinetics", "clips.csv", videos="ut-interaction")`. ValueError for a list that
    does not hold together or has no labels.
    """
    lists = [file for path in paths for file in (_lists(path) if path.is_dir() else [path])]
    if not lists:
        return _read_folders(paths[0] if videos is None else videos)
    once = UniqueVideos()
    clips = [clip for file in lists for clip in _read_list(file)]
    for clip in clips:
        once.add(clip.video.id, clip.where)
    folder = lists[0].parent
    home = folder.parent if folder.name == "annotations" else folder
    notes: Counter[str] = Counter()
    classes, codes = _classes(folder, clips, any(_is_text(file) for file in lists), notes)
    found = [_labelled(clip, codes) for clip in clips]
    root = home if videos is None else videos
    name = lists[0].stem if len(lists) == 1 else home.name
    return join_files(name, classes, found, _places(root, clips), root, notes)


def _lists(folder: Path) -> list[Path]:
    """Lists of clips in a folder, or else in its `annotations`; one a split."""
    for place in (folder, folder / "annotations"):
        names = sorted(os.listdir(place)) if place.is_dir() else []
        lists = [place / name for name in names if name.endswith((".csv", ".txt"))]
        by_split: dict[str, Path] = {}
        for file in (file for file in lists if split_in_name(file.name)):
            split = split_in_name(file.name)
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
    split = split_in_name(path.name)
    if _is_text(path):
        lines = enumerate(read_text(path).splitlines(), 1)
        clips = [
            _line(f"{path}: line {at}", clean(text), split) for at, text in lines if clean(text)
        ]
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
    safe_name(row["youtube_id"], f"{where}: youtube_id")
    safe_name(_label(where, row), f"{where}: label")
    name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
    video = Video(name, "", split_name(row.get("split", told), where), duration=end - start)
    return Clip(where, video, row["label"], (name, row["youtube_id"]), by_class=True)


def _listed(where: str, row: Row, told: str) -> Clip:
    file = safe_name(row["file"], f"{where}: file")
    split = split_name(row.get("split", told), where)
    return Clip(where, Video(os.path.splitext(file)[0], "", split), _label(where, row), (file,))


def _label(where: str, row: Row) -> str:
    if not row["label"]:
        raise ValueError(f"{where}: no label: leave a list without labels out")
    return row["label"]


def _line(where: str, text: str, told: str) -> Clip:
    parts = _LINE.fullmatch(text)
    path, label = (parts[1], parts[2]) if parts else (text, "")
    folder = clean(Path(path).parent.name)
    if (parts and int(label) < 0) or not (parts or (folder and path.lower().endswith(EXTENSIONS))):
        raise ValueError(f"{where}: no label in {text!r}, expected 'path number': leave it out")
    if _LINE.fullmatch(path):
        raise ValueError(f"{where}: {text!r}, expected two columns, 'path number'")
    if not told:
        raise ValueError(f"{where}: expected train, val or test in the file's name")
    file = clean(safe_name(path, f"{where}: path"))
    video = Video(os.path.splitext(file)[0], "", told)
    return Clip(where, video, label or folder, (file,), unnumbered=not parts)


def _classes(
    folder: Path, clips: list[Clip], numbered: bool, notes: Counter[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the classes, and the number of each label."""
    for name in CLASS_FILES:
        if (folder / name).is_file():
            classes, listed = class_list(folder / name)
            first = _first_number(clips, classes, listed) if numbered else 0
            notes[FROM_ONE] += first
            numbers = {str(code + first): code for code in range(len(classes))}
            return classes, numbers | _by_name(classes)
    found = {clip.label for clip in clips if not clip.unnumbered}
    numeric = all(label.isdecimal() for label in found)
    if numbered and not found:
        raise ValueError(f"{clips[0].where}: no label, expected 'path number': leave it out")
    if numbered and not numeric:
        raise ValueError(f"{folder}: names in one list, numbers in another: add {CLASS_FILES[0]}")
    if numbered:
        return _numbered(folder, clips, notes)
    classes = tuple(sorted(found, key=int if numeric else None))
    return classes, {name: code for code, name in enumerate(classes)}


def _by_name(classes: Sequence[str]) -> dict[str, int]:
    """Codes of the classes by their names and by those that folders may have."""
    codes = {kind: code for code, name in enumerate(classes) for kind in _folder_names(name)}
    return codes | {name: code for code, name in enumerate(classes)}


def _first_number(clips: Sequence[Clip], classes: Sequence[str], listed: int | None) -> int:
    """0 or 1: the number that the lists give to the first class.

    Both may fit; then the folders of the files decide where they bear names of classes, else the
    numbers of the class list.
    """
    pairs = {
        (int(c.label), clean(Path(c.files[0]).parent.name)) for c in clips if c.label.isdecimal()
    }
    fits = [n for n in (0, 1) if all(n <= number < n + len(classes) for number, _ in pairs)]
    if len(fits) < 2:
        return fits[0] if fits else 0
    named = _by_name(classes)
    agree = [
        n for n in fits if any(f in named for _, f in pairs)
        and all(named.get(f, number - n) == number - n for number, f in pairs)
    ]  # fmt: skip
    return agree[0] if len(agree) == 1 else (listed or 0)


def _numbered(
    folder: Path, clips: list[Clip], notes: Counter[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes to the highest number, named after the folders of their files where those agree."""
    counted = [clip for clip in clips if not clip.unnumbered]
    numbers = [int(clip.label) for clip in counted]
    first, highest = int(min(numbers) == 1), max(numbers)
    if highest >= MAX_CLASSES:
        raise ValueError(f"{folder}: class {highest}, expected fewer than {MAX_CLASSES}")
    notes[FROM_ONE] += first
    names: dict[int, set[str]] = {}
    for clip, code in zip(counted, numbers, strict=True):
        names.setdefault(code, set()).add(clean(Path(clip.files[0]).parent.name))
    told = {code: min(found) for code, found in names.items() if len(found) == 1 and all(found)}
    if len(told) < len(names) or len(set(told.values())) < len(told):
        told = {}
    classes = tuple(told.get(n, f"class {n}") for n in range(first, highest + 1))
    named = {name: number - first for number, name in told.items()}
    return classes, named | {clip.label: int(clip.label) - first for clip in counted}


def _labelled(clip: Clip, codes: dict[str, int]) -> Video:
    if clip.unnumbered and clip.label not in codes:
        raise ValueError(
            f"{clip.where}: no label, and the folder {clip.label!r} is no class: expected 'path "
            "number': leave it out"
        )
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


def _folder_names(label: str) -> tuple[str, ...]:
    """Names that mirrors give to the folder of a class."""
    flat = label.replace(" ", "_")
    return label, flat, flat.replace("(", "-").replace(")", "-")


def _stems(clip: Clip, tops: Tops) -> Iterator[str]:
    kinds: tuple[str, ...] = ()
    if clip.by_class:
        kinds = _folder_names(clip.label)
    for name in clip.files:
        for top, folders in tops:
            yield f"{top}{name}"
            yield from (f"{top}{kind}/{name}" for kind in kinds if kind in folders)


def _read_folders(root: Path) -> Manifest:
    splits = _split_folders(root) or [(root, "train")]
    folders = [
        (split, name, paths) for top, split in splits for name, paths in subfolders(top).items()
    ]
    classes = sorted({name for _, name, _ in folders})
    found: list[Video] = []
    lost: list[Video] = []
    passed_over = 0
    for split, name, paths in folders:
        for file in sorted(file for path in paths for file in path.iterdir()):
            stems = video_stems(file.name)
            passed_over += not stems and not file.is_dir() and is_noise(file.name)
            if stems and not file.is_dir():
                place = file.relative_to(root).parent / stems[-1]
                video = Video(clean(place.as_posix()), str(file), split, classes.index(name))
                (found if file.is_file() else lost).append(video)
    if not found and not lost:
        raise ValueError(f"{root}: no videos in folders of classes ({', '.join(EXTENSIONS)})")
    return Manifest(
        root.name,
        tuple(classes),
        tuple(found),
        tuple(video.id for video in lost),
        tuple(video.split for video in lost),
        missing_reasons=dict.fromkeys((video.id for video in lost), DANGLING),
        notes={NOISE: passed_over} if passed_over else {},
    )


def _split_folders(root: Path) -> list[tuple[Path, str]]:
    """Folders with their splits, where all are splits (or what mirrors have beside them), or
    nothing."""
    named = subfolders(root)
    names = [name for name in named if name not in ("annotations", "replacement")]
    words = {name: name.removeprefix("videos_").removesuffix("_256").lower() for name in names}
    if not names or not all(word in SPLITS for word in words.values()):
        return []
    return [(path, SPLITS[words[name]]) for name in names for path in named[name]]


def _folders(root: Path) -> list[str]:
    return list(subfolders(root))
