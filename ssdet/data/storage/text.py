"""Readers of hand-written tables, JSON, lists and names, as spreadsheets and editors save them.

Byte order marks are skipped (UTF-16 is read by its mark). White space of all kinds at the ends of
a name is ignored and names are compared in composed Unicode (NFC). Other deviations raise
ValueError with file and line.
"""

import codecs
import csv
import json
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

_BLANKS = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"
"""Invisible characters that `str.strip` does not remove."""


def clean(text: str) -> str:
    """Compose a name (NFC) and strip white space, no-break and zero-width characters."""
    before = None
    while text != before:  # both kinds may alternate
        before, text = text, text.strip().strip(_BLANKS)
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """Read a text file. Raises ValueError naming the file if it is not UTF-8."""
    return decode(path.read_bytes(), path)


def decode(content: bytes, path: Path) -> str:
    """Decode UTF-8, or UTF-16 by its byte order mark, without the mark. Raises as `read_text`."""
    try:
        if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: not UTF-8 text: line {line}: {error}; save as UTF-8") from error


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, values cleaned; empty lines are skipped.

    Raises ValueError naming file and line.
    """
    content = path.read_bytes()
    try:
        text = decode(content, path)
    except ValueError as error:
        line = content.count(b"\n", 0, getattr(error.__cause__, "start", 0)) + 1
        raise ValueError(f"{path}: line {line}: {error}") from error
    reader = csv.reader(text.splitlines(keepends=True))
    try:
        header = [clean(name) for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise ValueError(f"columns {header}, expected distinct names")
        rows = []
        for row in reader:
            if not any(map(clean, row)):
                continue
            if len(row) != len(header):
                raise ValueError(f"{len(row)} columns, expected {len(header)}: {header}")
            rows.append(dict(zip(header, map(clean, row), strict=True)))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(f"{path}: line 1: columns {header}: separate them by commas, not ';'")
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """Top-level object of a JSON file, keys and top-level strings cleaned.

    Raises ValueError naming the file if it is no JSON object or has a key twice.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        cleaned = [(clean(key), clean(v) if isinstance(v, str) else v) for key, v in pairs]
        twice = [key for key, count in Counter(key for key, _ in cleaned).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice")
        return dict(cleaned)

    try:
        content = json.loads(read_text(path), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not usable JSON: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected video ids as keys")
    return content


def class_list(path: Path) -> tuple[tuple[str, ...], int | None]:
    """Class names of a text file, one a line, and the number of the first class.

    The number is 0 or 1 if lines are numbered (`0 name`, `1 name`, `c000 name`), else None. Raises
    ValueError for an empty file, an empty line or a duplicate name.
    """
    lines = [clean(line) for line in read_text(path).rstrip().splitlines()]
    parts = [re.fullmatch(r"c?(\d+)\s+(\S.*)", line) for line in lines]
    numbers = [int(part[1]) if part else -1 for part in parts]
    first = next((n for n in (0, 1) if numbers == list(range(n, n + len(lines)))), None)
    names = lines if first is None else [part[2] for part in parts if part]
    if not all(names) or len(set(names)) < len(names) or not names:
        raise ValueError(f"{path}: expected distinct class names, one a line")
    return tuple(names), first


def class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file. Raises as `class_list`."""
    return class_list(path)[0]


def number(text: str, where: str) -> float:
    """Parse a number of a table. Raises ValueError starting with `where`."""
    try:
        return float(clean(text))
    except ValueError:
        raise ValueError(f"{where}: {text!r}, expected a number") from None


def as_number(value: Any) -> Any:
    """A JSON value as a number if it is one, also where a spreadsheet wrote it as text."""
    if not isinstance(value, str):
        return value
    try:
        parsed = float(clean(value))
    except ValueError:
        return value
    return parsed if math.isfinite(parsed) else value
