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

CLASS_FILES = ("classes.txt", "label_map_k400.txt", "classInd.txt")
FROM_ONE = "lists whose classes count from 1"
TopFolders = list[tuple[str, set[str]]]
"""Folders that may contain files (prefix ending in /), with the names of their subfolders."""
_REPLACED = "replacement/replacement_for_corrupted_k400"
_PUBLISHED = {"label", "youtube_id", "time_start", "time_end"}
_LINE = re.compile(r"(\S.*?)\s+(-?\d+)")


@dataclass(frozen=True)
class Clip:
    """A row of a list: a video whose class number is not yet resolved."""

    where: str
    video: Video
    label: str
    files: tuple[str, ...]
    """File names in the order of search, without folders of split and class."""
    by_class: bool = False
    """Whether the file may be in a folder named after its class."""
    unnumbered: bool = False
    """Whether the line has no number; its label is then the folder of its file."""


def read_kinetics(paths: Sequence[Path], videos: Path | None) -> Manifest:
    """Read single-label clips from lists of files or class folders.

    * CSV with the published columns `label,youtube_id,time_start,time_end` and optionally `split`.
      Files are `ID_START_END` (six digits each) or `ID`.
    * CSV with columns `file,label` and optionally `split`.
    * Text of lines `path number` with class numbers from 0, or from 1 if no list has a 0 and that
      agrees with the numbers of the class list, the folders of the files or, without either, if 1
      occurs. In lists with numbers, the class of a line without one is its folder's name (test
      lists of UCF-101).
    * A folder with such lists, one per split, in it or in its `annotations`.
    * A folder `class/clip.mp4`, or `split/class/clip.mp4` if all its folders are splits; without
      splits all clips are train.

    The split of a list without a column `split` is the one in its name, else train. Files are
    searched for in `videos` (default: beside the list, or beside `annotations`): directly, in
    folders named after split (`train`, `videos_train`, `train_256`), class (spaces may be `_`,
    brackets `-`), or both, and first among the replacements for broken files of one mirror.

    Classes are the labels that occur, sorted, or the lines of `classes.txt`, `label_map_k400.txt`
    or `classInd.txt` beside the list, which labels name or number. Example of a list:

        file,label,split
        0_1_4.avi,punch,train
        1_1_2.avi,kick,test

    `load_manifest("kinetics", "clips.csv", videos="ut-interaction")`. Raises ValueError for an
    inconsistent list or one without labels.
    """
    lists = [file for path in paths for file in (_lists(path) if path.is_dir() else [path])]
    if not lists:
        return _read_folders(paths[0] if videos is None else videos)
    unique = UniqueVideos()
    clips = [clip for file in lists for clip in _read_list(file)]
    for clip in clips:
        unique.add(clip.video.id, clip.where)
    folder = lists[0].parent
    home = folder.parent if folder.name == "annotations" else folder
    notes: Counter[str] = Counter()
    classes, codes = _classes(folder, clips, any(_is_text(file) for file in lists), notes)
    labelled = [_labelled(clip, codes) for clip in clips]
    root = home if videos is None else videos
    name = lists[0].stem if len(lists) == 1 else home.name
    return join_files(name, classes, labelled, _candidates(root, clips), root, notes)


def _lists(folder: Path) -> list[Path]:
    """Lists of clips in a folder or else in its `annotations`, one per split."""
    for parent in (folder, folder / "annotations"):
        names = sorted(os.listdir(parent)) if parent.is_dir() else []
        lists = [parent / name for name in names if name.endswith((".csv", ".txt"))]
        by_split: dict[str, Path] = {}
        for file in (file for file in lists if split_in_name(file.name)):
            split = split_in_name(file.name)
            if split in by_split:
                raise ValueError(
                    f"{folder}: two lists for {split}, {by_split[split].name} and {file.name}: "
                    "give one list per split instead of the folder"
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


def _published(where: str, row: dict[str, str], split: str) -> Clip:
    start = number(row["time_start"], f"{where}: time_start")
    end = number(row["time_end"], f"{where}: time_end")
    if not 0 <= start < end < 1e6:
        raise ValueError(f"{where}: times {start} to {end}, expected seconds, start < end")
    safe_name(row["youtube_id"], f"{where}: youtube_id")
    safe_name(_label(where, row), f"{where}: label")
    name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
    video = Video(name, "", split_name(row.get("split", split), where), duration=end - start)
    return Clip(where, video, row["label"], (name, row["youtube_id"]), by_class=True)


def _listed(where: str, row: dict[str, str], split: str) -> Clip:
    file = safe_name(row["file"], f"{where}: file")
    split = split_name(row.get("split", split), where)
    return Clip(where, Video(os.path.splitext(file)[0], "", split), _label(where, row), (file,))


def _label(where: str, row: dict[str, str]) -> str:
    if not row["label"]:
        raise ValueError(f"{where}: no label: leave a list without labels out")
    return row["label"]


def _line(where: str, text: str, split: str) -> Clip:
    parts = _LINE.fullmatch(text)
    path, label = (parts[1], parts[2]) if parts else (text, "")
    folder = clean(Path(path).parent.name)
    if (parts and int(label) < 0) or not (parts or (folder and path.lower().endswith(EXTENSIONS))):
        raise ValueError(f"{where}: no label in {text!r}, expected 'path number': leave it out")
    if _LINE.fullmatch(path):
        raise ValueError(f"{where}: {text!r}, expected two columns, 'path number'")
    if not split:
        raise ValueError(f"{where}: expected train, val or test in the file's name")
    file = clean(safe_name(path, f"{where}: path"))
    video = Video(os.path.splitext(file)[0], "", split)
    return Clip(where, video, label or folder, (file,), unnumbered=not parts)


def _classes(
    folder: Path, clips: list[Clip], numbered: bool, notes: Counter[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the classes, and class numbers by label."""
    for name in CLASS_FILES:
        if (folder / name).is_file():
            classes, list_first = class_list(folder / name)
            first = _first_number(clips, classes, list_first) if numbered else 0
            notes[FROM_ONE] += first
            numbers = {str(code + first): code for code in range(len(classes))}
            return classes, numbers | _by_name(classes)
    labels = {clip.label for clip in clips if not clip.unnumbered}
    numeric = all(label.isdecimal() for label in labels)
    if numbered and not labels:
        raise ValueError(f"{clips[0].where}: no label, expected 'path number': leave it out")
    if numbered and not numeric:
        raise ValueError(f"{folder}: names in one list, numbers in another: add {CLASS_FILES[0]}")
    if numbered:
        return _numbered(folder, clips, notes)
    classes = tuple(sorted(labels, key=int if numeric else None))
    return classes, {name: code for code, name in enumerate(classes)}


def _by_name(classes: Sequence[str]) -> dict[str, int]:
    """Class numbers by class name and by the names that folders may have."""
    codes = {form: code for code, name in enumerate(classes) for form in _folder_names(name)}
    return codes | {name: code for code, name in enumerate(classes)}


def _first_number(clips: Sequence[Clip], classes: Sequence[str], list_first: int | None) -> int:
    """Number of the first class in the lists, 0 or 1.

    If both fit, the folders of the files decide if they are named after classes, else the numbers
    of the class list.
    """
    pairs = {
        (int(c.label), clean(Path(c.files[0]).parent.name)) for c in clips if c.label.isdecimal()
    }
    fits = [n for n in (0, 1) if all(n <= number < n + len(classes) for number, _ in pairs)]
    if len(fits) < 2:
        return fits[0] if fits else 0
    by_name = _by_name(classes)
    agree = [
        n for n in fits if any(f in by_name for _, f in pairs)
        and all(by_name.get(f, number - n) == number - n for number, f in pairs)
    ]  # fmt: skip
    return agree[0] if len(agree) == 1 else (list_first or 0)


def _numbered(
    folder: Path, clips: list[Clip], notes: Counter[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes up to the highest number, named after the folders of their files if unambiguous."""
    counted = [clip for clip in clips if not clip.unnumbered]
    numbers = [int(clip.label) for clip in counted]
    first, highest = int(min(numbers) == 1), max(numbers)
    if highest >= MAX_CLASSES:
        raise ValueError(f"{folder}: class {highest}, expected fewer than {MAX_CLASSES}")
    notes[FROM_ONE] += first
    names: dict[int, set[str]] = {}
    for clip, code in zip(counted, numbers, strict=True):
        names.setdefault(code, set()).add(clean(Path(clip.files[0]).parent.name))
    unique = {code: min(forms) for code, forms in names.items() if len(forms) == 1 and all(forms)}
    if len(unique) < len(names) or len(set(unique.values())) < len(unique):
        unique = {}
    classes = tuple(unique.get(n, f"class {n}") for n in range(first, highest + 1))
    by_name = {name: number - first for number, name in unique.items()}
    return classes, by_name | {clip.label: int(clip.label) - first for clip in counted}


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


def _candidates(root: Path, clips: Iterable[Clip]) -> Iterator[Iterator[str]]:
    """For each clip the possible names of its file, the most likely first."""
    tops_by_split: dict[str, TopFolders] = {}
    for split in set(SPLITS.values()):
        names = [name for name in SPLITS if SPLITS[name] == split]
        tops = [top for name in names for top in (name, f"videos_{name}", f"{name}_256")]
        folders = [top for top in (_REPLACED, "", *tops) if (root / top).is_dir()]
        tops_by_split[split] = [
            (f"{top}/" if top else "", {*subfolders(root / top)}) for top in folders
        ]
    return (_stems(clip, tops_by_split[clip.video.split]) for clip in clips)


def _folder_names(label: str) -> tuple[str, ...]:
    """Names of a class's folder in the mirrors of the data set."""
    flat = label.replace(" ", "_")
    return label, flat, flat.replace("(", "-").replace(")", "-")


def _stems(clip: Clip, tops: TopFolders) -> Iterator[str]:
    class_folders = _folder_names(clip.label) if clip.by_class else ()
    for name in clip.files:
        for top, folders in tops:
            yield f"{top}{name}"
            yield from (f"{top}{form}/{name}" for form in class_folders if form in folders)


def _read_folders(root: Path) -> Manifest:
    splits = _split_folders(root) or [(root, "train")]
    folders = [
        (split, name, paths) for top, split in splits for name, paths in subfolders(top).items()
    ]
    classes = sorted({name for _, name, _ in folders})
    clips: list[Video] = []
    dangling: list[Video] = []
    ignored = 0
    for split, name, paths in folders:
        for file in sorted(file for path in paths for file in path.iterdir()):
            stems = video_stems(file.name)
            ignored += not stems and not file.is_dir() and is_noise(file.name)
            if stems and not file.is_dir():
                stem = file.relative_to(root).parent / stems[-1]
                video = Video(clean(stem.as_posix()), str(file), split, classes.index(name))
                (clips if file.is_file() else dangling).append(video)
    if not clips and not dangling:
        raise ValueError(f"{root}: no videos in folders of classes ({', '.join(EXTENSIONS)})")
    return Manifest(
        root.name,
        tuple(classes),
        tuple(clips),
        tuple(video.id for video in dangling),
        tuple(video.split for video in dangling),
        missing_reasons=dict.fromkeys((video.id for video in dangling), DANGLING),
        notes={NOISE: ignored} if ignored else {},
    )


def _split_folders(root: Path) -> list[tuple[Path, str]]:
    """Folders with their splits if all are splits (or companions of those in mirrors), else []."""
    folders = subfolders(root)
    names = [name for name in folders if name not in ("annotations", "replacement")]
    words = {name: name.removeprefix("videos_").removesuffix("_256").lower() for name in names}
    if not names or not all(word in SPLITS for word in words.values()):
        return []
    return [(path, SPLITS[words[name]]) for name in names for path in folders[name]]
