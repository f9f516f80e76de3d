"""Readers of long videos with segments: the JSON layout of Charades, and MultiTHUMOS."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdet.data.datasets.manifest import Manifest, Segment, Video, join_files
from ssdet.data.storage.folders import SPLITS, safe_name, split_name
from ssdet.data.storage.text import as_number, class_names, clean, read_json

WITHHELD = "test videos left out: their labels are not published"
DROPPED = "instances left out: end <= start"
BEYOND = "instances that end after the video"
UNNAMED = "classes without a name (no classes.txt): numbered"
MULTITHUMOS_CLASSES = 65
MAX_CLASSES = 100_000
MAX_SECONDS = 1e9
EARLIEST = -1.0
"""Earliest start in seconds; an action in the first frame must begin a little before 0."""


def read_segments(path: Path, videos: Path | None) -> Manifest:
    """Read a JSON file `id: {subset, duration, actions: [[class, start, end], ...]}`.

    A class is a number from 0 or a name in `classes.txt` beside the file; times are in seconds.
    Example: `load_manifest("segments", "fir/annotations.json", videos="fir")`.
    """
    entries = read_json(path)
    notes: Counter[str] = Counter()
    names = path.with_name("classes.txt")
    classes = class_names(names) if names.is_file() else numbered(path, entries, notes)
    return from_entries(path, entries, classes, videos, notes)


def read_multithumos(path: Path, videos: Path | None) -> Manifest:
    """Read `multithumos.json`: the same layout with classes 1 to 65."""
    names = path.with_name("classes.txt")
    classes = (
        class_names(names)
        if names.is_file()
        else tuple(f"class {number}" for number in range(1, MULTITHUMOS_CLASSES + 1))
    )
    return from_entries(path, read_json(path), classes, videos, Counter(), first_class=1)


def numbered(path: Path, entries: Mapping[str, Any], notes: Counter[str]) -> tuple[str, ...]:
    """Names of the classes 0 to the highest annotated number."""
    highest = -1
    for video, entry in entries.items():
        if _withheld(entry):
            continue
        for action in _actions(f"{path}: video {video!r}", entry):
            if not isinstance(action[0], int):
                raise ValueError(
                    f"{path}: video {video!r}: class {action[0]!r} is no number: put the names "
                    "into classes.txt beside the file, one a line"
                )
            highest = max(highest, action[0])
    if highest >= MAX_CLASSES:
        raise ValueError(f"{path}: class {highest}, expected fewer than {MAX_CLASSES}")
    notes[UNNAMED] = highest + 1
    return tuple(f"class {number}" for number in range(highest + 1))


def from_entries(
    path: Path,
    entries: Mapping[str, Any],
    classes: tuple[str, ...],
    videos: Path | None,
    notes: Counter[str],
    first_class: int = 0,
) -> Manifest:
    """Manifest of parsed JSON entries whose class numbers begin at `first_class`."""
    codes: dict[Any, int] = {name: code for code, name in enumerate(classes)}
    codes |= {code + first_class: code for code in range(len(classes))}
    annotated = []
    for name, entry in entries.items():
        where = f"{path}: video {name!r}"
        safe_name(name, f"{path}: video")
        if _withheld(entry):
            notes[WITHHELD] += 1
            continue
        actions = _actions(where, entry)
        subset, duration = entry.get("subset"), entry.get("duration")
        if not isinstance(subset, str):
            raise ValueError(f"{where}: subset {subset!r}, expected a name")
        length = seconds(where, "duration", duration)
        segments = to_segments(where, actions, codes, length, notes)
        split, left_out = split_name(subset, where), len(actions) - len(segments)
        annotated.append(Video(name, "", split, None, segments, length, left_out))
    return join_files(path.stem, classes, annotated, [(v.id,) for v in annotated], videos, notes)


def to_segments(
    where: str, actions: list[Any], codes: Mapping[Any, int], duration: float, notes: Counter[str]
) -> tuple[Segment, ...]:
    """Convert actions [label, start, end]; count and drop those that end before they start."""
    segments = []
    for action in actions:
        label, start, end = action
        code = codes.get(label) if isinstance(label, str) or is_whole(label) else None
        if code is None:
            raise ValueError(
                f"{where}: class {label!r} is not one of the {len(set(codes.values()))} classes "
                f"of the data set, {_range_of(codes)}"
            )
        if not (is_number(start) and is_number(end)):
            raise ValueError(f"{where}: action {action!r}, expected [class, start, end] in seconds")
        if start < EARLIEST:
            raise ValueError(f"{where}: action {action!r}: start {start}, expected 0 s or later")
        notes[BEYOND] += end > duration
        if end <= start:
            notes[DROPPED] += 1
            continue
        segments.append(Segment(code, float(start), float(end)))
    return tuple(segments)


def _withheld(entry: Any) -> bool:
    """Whether this is a test video whose labels are not published."""
    return (
        isinstance(entry, dict)
        and "actions" not in entry
        and SPLITS.get(str(entry.get("subset")).lower()) == "test"
    )


def _actions(where: str, entry: Any) -> list[Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {type(entry).__name__}, expected subset, duration and actions")
    actions = entry.get("actions")
    if not isinstance(actions, list):
        raise ValueError(f"{where}: actions {type(actions).__name__}, expected a list")
    for action in actions:
        if not isinstance(action, list) or len(action) != 3:
            raise ValueError(f"{where}: action {action!r}, expected [class, start, end]")
    return [[_class_of(label), as_number(a), as_number(b)] for label, a, b in actions]


def _class_of(label: Any) -> Any:
    """A class number, also if a spreadsheet wrote it as text, or a class name."""
    if isinstance(label, str):
        label = clean(label)
        return int(label) if label.isdecimal() else label
    return label


def _range_of(codes: Mapping[Any, int]) -> str:
    """First and last class number (or name, without numbers), for messages."""
    keys = sorted((key for key in codes if is_whole(key)), key=codes.__getitem__) or [*codes]
    return f"{keys[0]} to {keys[-1]}" if keys else "which has none"


def seconds(where: str, field: str, value: Any) -> float:
    """Check a duration. Raises ValueError naming the field unless it is a number of seconds > 0."""
    length = as_number(value)
    if not is_number(length) or length <= 0:
        raise ValueError(f"{where}: {field} {value!r}, expected seconds > 0")
    return float(length)


def is_whole(value: Any) -> bool:
    """Whether a JSON value is an integer (and no boolean)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number within `MAX_SECONDS`."""
    return (is_whole(value) or isinstance(value, float)) and -MAX_SECONDS < value < MAX_SECONDS
