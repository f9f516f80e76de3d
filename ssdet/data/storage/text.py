"""Text that people write: tables, JSON, lists and names, as spreadsheets and editors leave them.

Byte order marks are passed over (UTF-16 is read where one says so). Blanks of all kinds at the ends
of a name mean nothing, and names are compared in composed Unicode (NFC), whatever form a file has
them in. Anything else that is not text of the expected form is refused with the line where it is.
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
"""Characters that take no room and that `str.strip` leaves."""


def clean(text: str) -> str:
    """A name in composed Unicode, without blanks at its ends: no-break and zero-width ones, too."""
    before = None
    while text != before:  # blanks of both kinds may alternate
        before, text = text, text.strip().strip(_BLANKS)
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """A text file; ValueError naming the file that is not UTF-8, with the way out."""
    return decode(path.read_bytes(), path)


def decode(content: bytes, path: Path) -> str:
    """Text of a file's bytes, UTF-8 or what its byte order mark says (which is left out);
    ValueError as `read_text`."""
    try:
        if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: not UTF-8 text: line {line}: {error}; save as UTF-8") from error


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, values `clean`; empty lines are passed over.

    ValueError naming the file and line that do not fit.
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
            raise ValueError(f"columns {header}, expected names that differ")
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
    """Top-level object of a JSON file, its names and texts `clean`.

    ValueError naming the file if it is none, or has twins.
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
        told = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not usable JSON: {told}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected video ids as keys")
    return content


def class_list(path: Path) -> tuple[tuple[str, ...], int | None]:
    """Class names of a text file, one a line, and the number of the first: 0 or 1 where lines are
    numbered (`0 name`, `1 name`, `c000 name`), None where they are not.

    Raises ValueError for an empty file, an empty line or a name that is there twice.
    """
    lines = [clean(line) for line in read_text(path).rstrip().splitlines()]
    parts = [re.fullmatch(r"c?(\d+)\s+(\S.*)", line) for line in lines]
    numbers = [int(part[1]) if part else -1 for part in parts]
    first = next((n for n in (0, 1) if numbers == list(range(n, n + len(lines)))), None)
    numbered = first is not None
    names = [part[2] if numbered and part else t for part, t in zip(parts, lines, strict=True)]
    if not all(names) or len(set(names)) < len(names) or not names:
        raise ValueError(f"{path}: expected distinct class names, one a line")
    return tuple(names), first


def class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file; raises as `class_list`."""
    return class_list(path)[0]


def number(text: str, where: str) -> float:
    """A number in a table; ValueError naming where it stands."""
    try:
        return float(clean(text))
    except ValueError:
        raise ValueError(f"{where}: {text!r}, expected a number") from None


def as_number(value: Any) -> Any:
    """A JSON value, which spreadsheets may have written as text, as a number if it is one."""
    if not isinstance(value, str):
        return value
    try:
        parsed = float(clean(value))
    except ValueError:
        return value
    return parsed if math.isfinite(parsed) else value
