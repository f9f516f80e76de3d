"""Names of splits and videos, folders of videos, and lists of videos that cannot be read."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ssdet.data.storage.text import clean, read_json

EXTENSIONS = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".pack", ".m4v", ".3gp", ".3g2", ".mpg", ".mpeg",
    ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
)  # fmt: skip
"""Endings of files that are taken for videos; whether they can be read is seen when they are."""
_NOISE = {
    "@eadir", "__macosx", "thumbs.db", "desktop.ini", "lost+found", "#recycle", "$recycle.bin",
    "system volume information",
}  # fmt: skip
DANGLING = "a link to a file that is not there: fetch its content"
NOISE = "files passed over that systems and downloaders leave in folders"
_UNFINISHED = (".part", ".partial", ".crdownload", ".ytdl", ".tmp")
QUARANTINE = "quarantine.json"
SPLITS = {
    "train": "train", "training": "train", "val": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


_PLAIN = re.compile(r"(?![. ])[^/\\:\0]+(/(?![. ])[^/\\:\0]+)*")
_WORD = re.compile(r"(?<![a-z])(train|val|test)(ing|idate|idation|list)?(?![a-z])")


def split_name(name: str, where: str) -> str:
    """train, val or test for the names in use (training, validate, Testing, …)."""
    if (split := clean(name).lower()) not in SPLITS:
        raise ValueError(f"{where}: split {name!r}, expected one of {', '.join(SPLITS)}")
    return SPLITS[split]


def told_split(file: str) -> str:
    """train, val or test where the name of a list says so (`kinetics_val.csv`), or nothing."""
    words = {found[1] for found in _WORD.finditer(file.lower())}
    return words.pop() if len(words) == 1 else ""


def is_noise(name: str) -> bool:
    """Whether a file or folder of this name is what systems and downloaders leave in folders, and
    never data: hidden files, companions of macOS, Synology and Windows, unfinished downloads."""
    return name.startswith(".") or name.casefold() in _NOISE or name.lower().endswith(_UNFINISHED)


def subfolders(root: Path) -> dict[str, list[Path]]:
    """Folders in a folder by name in composed Unicode, sorted: two forms of a name are one."""
    folders: dict[str, list[Path]] = {}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not is_noise(entry.name):
            folders.setdefault(clean(entry.name), []).append(Path(entry.path))
    return dict(sorted(folders.items()))


def video_stems(name: str) -> list[str]:
    """Names by which a video file is looked for: without its ending, and without two of them, as
    downloaders write (`ID.mp4.mkv`); nothing for other files."""
    stem, ending = os.path.splitext(name)
    if ending.lower() not in EXTENSIONS or is_noise(name):
        return []
    inner, second = os.path.splitext(stem)
    return [clean(stem), *([clean(inner)] if second.lower() in EXTENSIONS and inner else [])]


class VideoFolder:
    """Finds videos in a folder by name, with or without extension; lists it once.

    A video is a file with one of the usual endings or, where there is none, a folder (of pictures).
    Names are compared in composed Unicode. Of several files of one name the ending that comes first
    in `EXTENSIONS` decides, then one ending before two, then the order of the names.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"video folder {os.fspath(root)!r} is not there")
        self.root = root
        self._listed: dict[str, dict[str, str]] = {}
        self._dangling: dict[str, set[str]] = {}
        self.passed_over = 0
        """Files and folders that systems and downloaders left in the folders looked into."""

    def find(self, stems: Iterable[str]) -> str:
        """Path of the first of these (`name` or `folder/name`) that is there, or an empty string.

        Raises ValueError for a name that leads out of the folder.
        """
        for stem in stems:
            parent, _, name = clean(inside(stem, "video")).rpartition("/")
            bare, ending = os.path.splitext(name)
            known = self._listing(parent)
            # A converted copy has another ending than the file that was annotated.
            copy = known.get(bare) if ending.lower() in EXTENSIONS else None
            if found := known.get(name) or copy:
                return found
        return ""

    def reason(self, stems: Iterable[str]) -> str:
        """Why none of these is there, where more is known than that."""
        for stem in stems:
            parent, _, name = clean(inside(stem, "video")).rpartition("/")
            self._listing(parent)
            if {name, os.path.splitext(name)[0]} & self._dangling[parent]:
                return DANGLING
        return ""

    def _listing(self, parent: str) -> dict[str, str]:
        """Paths of the videos of a folder by each of their names."""
        if parent not in self._listed:
            folders: dict[str, str] = {}
            files: list[tuple[int, int, str, str]] = []
            self._dangling[parent] = set()
            for folder in self._folders(parent):
                for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                    if is_noise(entry.name):
                        self.passed_over += 1
                        continue
                    if entry.is_dir():
                        folders.setdefault(clean(entry.name), entry.path)
                        continue
                    ending = os.path.splitext(entry.name)[1].lower()
                    names = [*video_stems(entry.name), clean(entry.name)]
                    if not entry.is_file():
                        self._dangling[parent].update(names)
                    elif ending in EXTENSIONS:
                        place = EXTENSIONS.index(ending)
                        files += [(place, n, entry.path, name) for n, name in enumerate(names)]
            listed: dict[str, str] = {}
            for _, _, path, name in sorted(files):
                listed.setdefault(name, path)
            self._listed[parent] = folders | listed
        return self._listed[parent]

    def _folders(self, parent: str) -> list[Path]:
        """The folders of a name below the root, whose names may have several forms on disk."""
        found = [self.root]
        for part in parent.split("/") if parent else []:
            found = [path for folder in found for path in subfolders(folder).get(part, [])]
        return found


def inside(name: str, where: str) -> str:
    """`name` if, as a path, it stays in its folder on any system; ValueError otherwise."""
    if _PLAIN.fullmatch(name):
        return name
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or ".." in parts or "\0" in name or name in ("", "."):
        raise ValueError(f"{where} {name!r} leads out: expected a name inside the video folder")
    return name


class Once:
    """Remembers where each video of a data set was annotated."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def add(self, video: str, where: str) -> None:
        """ValueError naming both places for a video that is there twice."""
        if video in self._places:
            raise ValueError(
                f"{where}: video {video!r} is there twice, first in {self._places[video]}: "
                "leave one of them out"
            )
        self._places[video] = where


def quarantine_file(annotation: Path) -> Path:
    """Where the list of unusable videos of an annotation file or folder lies."""
    return (annotation if annotation.is_dir() else annotation.parent) / QUARANTINE


def quarantine_beside(annotation: Path) -> dict[str, str]:
    """The quarantine list beside an annotation; empty where there is none."""
    path = quarantine_file(annotation)
    return read_quarantine(path) if path.is_file() else {}


def read_quarantine(path: Path) -> dict[str, str]:
    """Reason by id of the videos that are not to be read, as a check of the files wrote it down.

    The file is JSON: `{"format": 1, "videos": {id: reason}}`. ValueError for any other content.
    """
    content = read_json(path)
    if content.get("format") != 1:
        raise ValueError(f"{path}: format {content.get('format')!r}, expected 1: check again")
    videos = content.get("videos")
    if not isinstance(videos, dict):
        raise ValueError(f"{path}: videos {type(videos).__name__}, expected reasons by video id")
    for video, reason in videos.items():
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"{path}: video {video!r}: reason {reason!r}, expected a text")
    return videos
