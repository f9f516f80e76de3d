"""What annotation readers share: names of splits, classes and videos, tables and JSON."""

import csv
import json
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

EXTENSIONS = (".mp4", ".avi", ".mkv", ".mov", ".webm")
SPLITS = {
    "train": "train", "training": "train", "val": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_name(name: str, where: str) -> str:
    """train, val or test for the names in use (training, validate, testing, …)."""
    if name not in SPLITS:
        raise ValueError(f"{where}: split {name!r}, expected one of {', '.join(SPLITS)}")
    return SPLITS[name]


def class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file: one a line, numbered (`0 name`, `1 name`, `c000 name`) or not.

    Raises ValueError for an empty file, an empty line or a name that is there twice.
    """
    lines = path.read_text(encoding="utf-8").rstrip().splitlines()
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
    """Finds videos in a folder by name, with or without extension; lists it once."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"video folder {os.fspath(root)!r} is not there")
        self.root = root
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, *stems: str) -> str:
        """Path of the first of these (`name` or `folder/name`) that is there, or an empty string.

        Raises ValueError for a name that leads out of the folder.
        """
        for stem in stems:
            parent, _, name = inside(stem, "video").rpartition("/")
            if found := self._listing(parent).get(name):
                return os.path.join(self.root, parent, found)
        return ""

    def _listing(self, parent: str) -> dict[str, str]:
        if parent not in self._listed:
            folder = self.root / parent
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            videos = [os.path.splitext(name) for name in names]
            videos = [pair for pair in videos if pair[1].lower() in EXTENSIONS]
            videos.sort(key=lambda pair: -EXTENSIONS.index(pair[1].lower()))
            whole = {stem + extension: stem + extension for stem, extension in videos}
            self._listed[parent] = {stem: stem + extension for stem, extension in videos} | whole
        return self._listed[parent]


def inside(name: str, where: str) -> str:
    """`name` if, as a path, it stays in its folder on any system; ValueError otherwise."""
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


def number(text: str, where: str) -> float:
    """A number in a table; ValueError naming where it stands."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r}, expected a number") from None
