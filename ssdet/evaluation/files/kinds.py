"""Recognition of prediction files by content, and error messages that name other files."""

import codecs
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssdet.data.storage.text import read_json
from ssdet.evaluation.protocols.segments import detection_fields, is_float

Kind = Literal["activitynet", "detections", "submission"]
HEAD = 1 << 16
"""Bytes at the start of a text that its kind is recognised by."""
MANY_FIELDS = 8
"""A line of more fields, almost all of them numbers, is a row of class scores."""
EXPECTED = (
    "expected a prediction set (folder), ActivityNet's result JSON, lines `video start end class "
    "score`, or Charades' lines `id frame s0 … s156`"
)
FEATURES = "features are imported with `ssdet data import-features`"
CONVERT = "convert it to ActivityNet's result JSON with the tool that wrote it"
_ARCHIVE = "unpack it"
_VIDEO = "videos are for `ssdet infer`"
SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x93NUMPY", "a NumPy array (.npy)", FEATURES),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", FEATURES),
    (0, b"MATLAB 5.0", "a MATLAB file", "save its arrays as .npz"),
    (0, b"PAR1", "a Parquet table", "write its rows as lines `video start end class score`"),
    (0, b"SQLite format 3", "an SQLite database", CONVERT),
    (0, b"\x1f\x8b", "a gzip archive", _ARCHIVE),
    (0, b"BZh", "a bzip2 archive", _ARCHIVE),
    (0, b"\xfd7zXZ", "an xz archive", _ARCHIVE),
    (0, b"7z\xbc\xaf", "a 7z archive", _ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _ARCHIVE),
    (257, b"ustar", "a tar archive", _ARCHIVE),
    (4, b"ftyp", "a video", _VIDEO),
    (0, b"\x1aE\xdf\xa3", "a video", _VIDEO),
    (0, b"RIFF", "a video", _VIDEO),
    (0, b"\x89PNG", "a picture", "give a file of predictions"),
    (0, b"\xff\xd8\xff", "a picture", "give a file of predictions"),
    (0, b"%PDF", "a PDF document", "give a file of predictions"),
)
"""Offset, bytes at it, kind of file, advice."""


class UnusableFile(ValueError):
    """A file that has no predictions or is ambiguous; the message says what to do."""


@dataclass(frozen=True)
class Recognised:
    """The kind of a file."""

    kind: Kind
    results: Mapping[str, Any] | None = None
    """Lists of detections by video of a JSON file."""


def recognise(path: Path, classes: int) -> Recognised:
    """The kind of a prediction file for an annotation of this many classes, by its content.

    Raises UnusableFile with the apparent kind and advice for any other file, OSError for an
    unreadable one, ValueError for broken JSON.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    _refuse_binary(path, head)
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = head.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    if not text.strip():
        raise _unusable(path, "an empty file", "check that the tool wrote its results")
    if text.lstrip()[0] in "{[":
        return Recognised("activitynet", _results(path, text.strip()))
    kind = _text_kind(path, text, classes)
    if utf16 and kind == "submission":
        raise _unusable(path, "a submission in UTF-16", "save it as UTF-8")
    return Recognised(kind)


def describe_folder(folder: Path) -> UnusableFile:
    """The error for a folder without a prediction set."""
    endings = {path.suffix.lower() for path in folder.iterdir() if path.is_file()}
    if endings & {".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pt"} or ".bin" in endings:
        return _unusable(folder, "a folder of features", FEATURES)
    if endings & {".mp4", ".avi", ".mkv", ".webm", ".mov"}:
        return _unusable(folder, "a folder of videos", _VIDEO)
    return _unusable(folder, "a folder without NAME.f16 and NAME.json", "give the file inside")


def _unusable(path: Path, what: str, advice: str) -> UnusableFile:
    return UnusableFile(f"{path}: looks like {what}; {EXPECTED}: {advice}")


def _refuse_binary(path: Path, head: bytes) -> None:
    for offset, signature, what, advice in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            raise _unusable(path, what, advice)
    if head.startswith(b"PK\x03\x04"):
        raise _unusable(path, *_zip_kind(path))
    if head[:1] == b"\x80" and head[1:2] and head[1] <= 5:
        raise _unusable(
            path,
            "a Python pickle (ActionFormer's eval_results.pkl is one), which could run code and is "
            "not opened",
            f"{CONVERT}; {FEATURES}",
        )
    if b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _unusable(path, "a binary file", CONVERT)


def _zip_kind(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return "a damaged zip archive", "write it again"
    if names and all(name.endswith(".npy") for name in names):
        arrays = ", ".join(name.removesuffix(".npy") for name in names[:3])
        return f"a NumPy archive (.npz) of {arrays}", FEATURES
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file", FEATURES
    if "[Content_Types].xml" in names:
        return "an Office document", "save lines `video start end class score` as text"
    return "a zip archive", _ARCHIVE


def _results(path: Path, text: str) -> Mapping[str, Any]:
    """Lists of detections by video of a JSON file."""
    if text[0] == "[":
        raise _unusable(path, *_json_list_kind(text))
    if _is_json_lines(text):
        raise _unusable(path, "JSON lines", CONVERT)
    content = read_json(path)
    results = content.get("results", content)
    if not isinstance(results, dict) or not all(isinstance(v, list) for v in results.values()):
        raise _unusable(path, *_json_kind(content))
    item = next((item for items in results.values() for item in items), None)
    if item is None and "results" not in content:
        raise _unusable(path, *_json_kind(content))
    if item is not None and not _is_detection(item):
        raise _unusable(path, *_item_kind(item))
    return results


def _is_detection(item: Any) -> bool:
    return isinstance(item, dict) and {"label", "score", "segment"} <= item.keys()


def _item_kind(item: Any) -> tuple[str, str]:
    """Kind of results whose items are no detections, and advice."""
    fields = item.keys() if isinstance(item, dict) else {}
    if {"bbox", "box"} & set(fields):
        return "boxes of objects in JSON", "write segments in time with label and score"
    if {"verb", "noun", "action"} & set(fields):
        return "EPIC-Kitchens results in JSON", "write `label` in place of verb, noun and action"
    if {"sentence", "timestamp"} & set(fields):
        return "captions in JSON", "captions are not scored"
    if "triplet" in fields:
        return "relations (VidVRD) in JSON", "relations are not scored"
    if {"label", "score"} <= set(fields):
        return "results of classification in JSON (no `segment`)", "whole videos are not scored"
    if {"segment", "score"} <= set(fields):
        return (
            "proposals in JSON (BMN's, no `label`)",
            "combine them with the labels of a video classifier",
        )
    listed = ", ".join(map(str, fields)) or type(item).__name__
    return f"JSON results with items of {listed}", "write items of label, score and segment"


def _json_list_kind(text: str) -> tuple[str, str]:
    if '"bbox"' in text or '"segmentation"' in text:
        return "COCO results (boxes of objects) in JSON", "write segments in time"
    return "a JSON list", 'write {"results": {video: [{"label", "score", "segment"}]}}'


def _json_kind(content: Mapping[str, Any]) -> tuple[str, str]:
    """Kind of a JSON object without lists of detections, and advice."""
    keys = content.keys()
    swap = "give it second, after the predictions"
    if "database" in keys:
        return "an annotation (ActivityNet's JSON)", swap
    if {"images", "annotations"} <= keys:
        return "a COCO annotation (boxes of objects) in JSON", "write segments in time"
    if {"video", "frames"} <= keys or {"video", "segments"} <= keys:
        return (
            "JSON of `ssdet infer`, one video",
            "write its segments as lines `video start end class score`",
        )
    first = next(iter(content.values()), None)
    if isinstance(first, dict) and "subset" in first:
        return "an annotation in JSON", swap
    listed = ", ".join(map(repr, list(keys)[:5])) or "nothing"
    return f"JSON with {listed}", 'write {"results": {video: [{"label", "score", "segment"}]}}'


def _is_json_lines(text: str) -> bool:
    lines = text.split("\n", 2)
    if len(lines) < 2 or not lines[1].lstrip().startswith("{"):
        return False
    try:
        json.loads(lines[0])
    except ValueError:
        return False
    return True


def _text_kind(path: Path, text: str, classes: int) -> Kind:
    lines = [line for line in text.splitlines() if line.strip()][:3]
    fields = lines[0].split()
    if _is_submission(fields, classes):
        return "submission"
    if _is_detection_line(lines[0]):
        return "detections"
    raise _unusable(path, *_line_kind(lines, fields, classes))


def _is_submission(fields: Sequence[str], classes: int) -> bool:
    """Whether a line is `id frame s0 …`; with 5 fields it is `video start end class score`."""
    complete = len(fields) == classes + 2
    if _is_score_row(fields):
        return complete or _is_whole(fields[1])
    return complete and len(fields) != 5 and all(map(is_float, fields[1:]))


def _is_score_row(fields: Sequence[str]) -> bool:
    numbers = sum(map(is_float, fields[1:]))
    return len(fields) > MANY_FIELDS and numbers > 0.9 * len(fields)


def _is_detection_line(line: str) -> bool:
    fields = detection_fields(line)
    if len(fields) != 5 or _is_score_row(line.split()):
        return False
    return all(is_float(fields[i]) for i in (1, 2, 4))


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _line_kind(lines: Sequence[str], fields: Sequence[str], classes: int) -> tuple[str, str]:
    """Kind of a text by its first lines, and advice."""
    first, numeric = lines[0].strip(), all(map(is_float, fields[1:]))
    if first.startswith("<"):
        return "XML or HTML", CONVERT
    if any("-->" in line for line in lines):
        return "subtitles", "write lines `video start end class score`"
    if len(lines) > 1 and _is_detection_line(lines[1]):
        return "detections below a header", "remove the first line"
    for separator, name in ((",", "a CSV table"), (";", "a CSV table"), ("\t", "a TSV table")):
        if separator in first and not (separator == "\t" and numeric):
            return _table_kind(name, [column.strip('" ') for column in first.split(separator)])
    if numeric and len(fields) == classes + 1 and not _is_whole(fields[1]):
        return (
            "scores of whole videos (Charades' classification, `id s0 …`)",
            "localisation needs `id frame s0 …` at 25 frames of each video",
        )
    if numeric and len(fields) in (2, 3) and all(map(_is_whole, fields[1:])):
        return "a list of clips with labels (Kinetics)", _CLIPS
    if len(fields) == 4 and is_float(fields[1]) and is_float(fields[2]):
        return "lines `video start end class` without a score", "add the score as fifth field"
    return f"text with lines such as {first[:60]!r}", "write lines `video start end class score`"


_CLIPS = "labels of whole clips are not scored; an annotation is given second"


def _table_kind(name: str, columns: Sequence[str]) -> tuple[str, str]:
    lower = {column.lower() for column in columns}
    listed = ", ".join(columns[:6])
    if {"label", "youtube_id"} <= lower:
        return f"{name} of Kinetics clips ({listed})", _CLIPS
    if {"id", "actions", "length"} <= lower:
        return "Charades' annotation", "give it second, after the predictions"
    if {"frame", "time"} <= lower:
        return "frames.csv of `ssdet infer`, one video", "score a prediction set"
    return f"{name} ({listed})", "write its rows as lines `video start end class score`"
