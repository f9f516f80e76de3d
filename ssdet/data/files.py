"""What annotation readers share: names of splits, classes and videos, tables and JSON."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

EXTENSIONS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".pack")
QUARANTINE = "quarantine.json"
SPLITS = {
    "train": "train", "training": "train", "val": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


_PLAIN = re.compile(r"(?![. ])[^/\\:\0]+(/(?![. ])[^/\\:\0]+)*")
_WORD = re.compile(r"(?<![a-z])(train|val|test)(ing|idate|idation|list)?(?![a-z])")


def split_name(name: str, where: str) -> str:
    """train, val or test for the names in use (training, validate, Testing, …)."""
    if name.lower() not in SPLITS:
        raise ValueError(f"{where}: split {name!r}, expected one of {', '.join(SPLITS)}")
    return SPLITS[name.lower()]


def told_split(file: str) -> str:
    """train, val or test where the name of a list says so (`kinetics_val.csv`), or nothing."""
    words = {found[1] for found in _WORD.finditer(file.lower())}
    return words.pop() if len(words) == 1 else ""


def class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file: one a line, numbered (`0 name`, `1 name`, `c000 name`) or not.

    Raises ValueError for an empty file, an empty line or a name that is there twice.
    """
    lines = read_text(path).rstrip().splitlines()
    parts = [re.fullmatch(r"c?(\d+)\s+(\S.*)", line.strip()) for line in lines]
    numbers = [int(part[1]) if part else -1 for part in parts]
    numbered = numbers in (list(range(len(lines))), list(range(1, len(lines) + 1)))
    names = [
        part[2] if numbered and part else line.strip()
        for part, line in zip(parts, lines, strict=True)
    ]
    if not all(names) or len(set(names)) < len(names) or not names:
        raise ValueError(f"{path}: expected distinct class names, one a line")
    return tuple(names)


class VideoFolder:
    """Finds videos in a folder by name, with or without extension; lists it once.

    A video is a file with one of the usual endings or, where there is none, a folder (of pictures).
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"video folder {os.fspath(root)!r} is not there")
        self.root = root
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, stems: Iterable[str]) -> str:
        """Path of the first of these (`name` or `folder/name`) that is there, or an empty string.

        Raises ValueError for a name that leads out of the folder.
        """
        for stem in stems:
            parent, _, name = inside(stem, "video").rpartition("/")
            bare, ending = os.path.splitext(name)
            known = self._listing(parent)
            # A converted copy has another ending than the file that was annotated.
            copy = known.get(bare) if ending.lower() in EXTENSIONS else None
            if found := known.get(name) or copy:
                return os.path.join(self.root, parent, found)
        return ""

    def _listing(self, parent: str) -> dict[str, str]:
        if parent not in self._listed:
            folder = self.root / parent
            entries = sorted(os.scandir(folder), key=lambda e: e.name) if folder.is_dir() else []
            folders = {entry.name: entry.name for entry in entries if entry.is_dir()}
            videos = [os.path.splitext(entry.name) for entry in entries if not entry.is_dir()]
            videos = [pair for pair in videos if pair[1].lower() in EXTENSIONS]
            videos.sort(key=lambda pair: -EXTENSIONS.index(pair[1].lower()))
            files = {stem: stem + extension for stem, extension in videos}
            whole = {stem + extension: stem + extension for stem, extension in videos}
            self._listed[parent] = folders | files | whole
        return self._listed[parent]


def inside(name: str, where: str) -> str:
    """`name` if, as a path, it stays in its folder on any system; ValueError otherwise."""
    if _PLAIN.fullmatch(name):
        return name
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or ".." in parts or "\0" in name or name in ("", "."):
        raise ValueError(f"{where} {name!r} leads out: expected a name inside the video folder")
    return name


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; ValueError naming the file and line that do not fit."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"columns {header}, expected names that differ")
            rows = []
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} columns, expected {len(header)}: {header}")
                rows.append(dict(zip(header, row, strict=True)))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """Top-level object of a JSON file; ValueError naming the file if it is none, or has twins."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice")
        return dict(pairs)

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not usable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected video ids as keys")
    return content


def read_text(path: Path) -> str:
    """A text file; ValueError naming the file that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error


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


def number(text: str, where: str) -> float:
    """A number in a table; ValueError naming where it stands."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r}, expected a number") from None
