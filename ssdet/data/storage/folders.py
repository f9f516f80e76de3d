"""Names of splits and video files, search of video folders, and quarantine lists."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ssdet.data.storage.text import clean, read_json

EXTENSIONS = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".pack", ".m4v", ".3gp", ".3g2", ".mpg", ".mpeg",
    ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
)  # fmt: skip
"""Extensions of video files."""
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
    """Normalise the name of a split (training, validate, Testing, …) to train, val or test."""
    if (split := clean(name).lower()) not in SPLITS:
        raise ValueError(f"{where}: split {name!r}, expected one of {', '.join(SPLITS)}")
    return SPLITS[split]


def split_in_name(file: str) -> str:
    """train, val or test if the name of a list contains it (`kinetics_val.csv`), else ''."""
    words = {match[1] for match in _WORD.finditer(file.lower())}
    return words.pop() if len(words) == 1 else ""


def is_noise(name: str) -> bool:
    """Whether a file or folder is no data by its name: hidden files, unfinished downloads, and
    companion files of macOS, Synology and Windows."""
    return name.startswith(".") or name.casefold() in _NOISE or name.lower().endswith(_UNFINISHED)


def subfolders(root: Path) -> dict[str, list[Path]]:
    """Subfolders by name in composed Unicode, sorted; two Unicode forms of a name are merged."""
    folders: dict[str, list[Path]] = {}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not is_noise(entry.name):
            folders.setdefault(clean(entry.name), []).append(Path(entry.path))
    return dict(sorted(folders.items()))


def video_stems(name: str) -> list[str]:
    """Names of a video file without its extension, and without two (`ID.mp4.mkv` of downloaders).

    Empty for other files.
    """
    stem, extension = os.path.splitext(name)
    if extension.lower() not in EXTENSIONS or is_noise(name):
        return []
    inner, second = os.path.splitext(stem)
    return [clean(stem), *([clean(inner)] if second.lower() in EXTENSIONS and inner else [])]


class VideoFolder:
    """Search for videos in a folder by name, with or without extension; lists the folder once.

    A video is a file with one of `EXTENSIONS` or, if there is none, a folder of images. Names are
    compared in composed Unicode. Of several files with one name the extension that comes first in
    `EXTENSIONS` wins, then one extension before two, then the order of names.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"video folder {os.fspath(root)!r} is not there")
        self.root = root
        self._listed: dict[str, dict[str, str]] = {}
        self._dangling: dict[str, set[str]] = {}
        self.ignored = 0
        """Number of files and folders ignored by `is_noise`."""

    def find(self, stems: Iterable[str]) -> str:
        """Path of the first existing video of these (`name` or `folder/name`), or ''.

        Raises ValueError for a name that leads out of the folder.
        """
        for stem in stems:
            parent, _, name = clean(safe_name(stem, "video")).rpartition("/")
            bare, extension = os.path.splitext(name)
            paths = self._listing(parent)
            # A converted copy has another extension than the annotated file.
            copy = paths.get(bare) if extension.lower() in EXTENSIONS else None
            if path := paths.get(name) or copy:
                return path
        return ""

    def reason(self, stems: Iterable[str]) -> str:
        """Reason why none of these exists, if there is a specific one, or ''."""
        for stem in stems:
            parent, _, name = clean(safe_name(stem, "video")).rpartition("/")
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
                        self.ignored += 1
                        continue
                    if entry.is_dir():
                        folders.setdefault(clean(entry.name), entry.path)
                        continue
                    extension = os.path.splitext(entry.name)[1].lower()
                    names = [*video_stems(entry.name), clean(entry.name)]
                    if not entry.is_file():
                        self._dangling[parent].update(names)
                    elif extension in EXTENSIONS:
                        rank = EXTENSIONS.index(extension)
                        files += [(rank, n, entry.path, name) for n, name in enumerate(names)]
            listed: dict[str, str] = {}
            for _, _, path, name in sorted(files):
                listed.setdefault(name, path)
            self._listed[parent] = folders | listed
        return self._listed[parent]

    def _folders(self, parent: str) -> list[Path]:
        """Folders of this name below the root, which may exist in several Unicode forms."""
        folders = [self.root]
        for part in parent.split("/") if parent else []:
            folders = [path for folder in folders for path in subfolders(folder).get(part, [])]
        return folders


def safe_name(name: str, where: str) -> str:
    """Return `name` if, as a path, it stays in its folder on any system; else raise ValueError."""
    if _PLAIN.fullmatch(name):
        return name
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or ".." in parts or "\0" in name or name in ("", "."):
        raise ValueError(f"{where} {name!r} leads out: expected a name inside the video folder")
    return name


class UniqueVideos:
    """Check that no video of a data set is annotated twice."""

    def __init__(self) -> None:
        self._annotations: dict[str, str] = {}

    def add(self, video: str, where: str) -> None:
        """Record a video. Raises ValueError naming both annotations of a duplicate."""
        if video in self._annotations:
            raise ValueError(
                f"{where}: video {video!r} is there twice, first in {self._annotations[video]}: "
                "leave one of them out"
            )
        self._annotations[video] = where


def quarantine_file(annotation: Path) -> Path:
    """Path of the quarantine list of an annotation file or folder."""
    return (annotation if annotation.is_dir() else annotation.parent) / QUARANTINE


def quarantine_beside(annotation: Path) -> dict[str, str]:
    """Content of the quarantine list beside an annotation; {} if there is none."""
    path = quarantine_file(annotation)
    return read_quarantine(path) if path.is_file() else {}


def read_quarantine(path: Path) -> dict[str, str]:
    """Reasons by id of the videos that a check of the files excluded.

    The file is JSON `{"format": 1, "videos": {id: reason}}`. Raises ValueError for other content.
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
