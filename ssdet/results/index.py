"""Index of the stages of a store, with a cache that is rebuilt whenever it is stale, damaged or
absent."""

import errno
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdet.studies.store import STAGE_ID

HEADER = "ssdet-index/1"
NAME = "index.jsonl"
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
KEPT = ("revision", "host", "gpu", "started", "seconds")
RESCORED = "ssdet-scores/1"
"""Format of the files in a stage's folder `scores`: its numbers under further protocols."""


@dataclass(frozen=True)
class Entry:
    """One finished stage."""

    id: str
    stamp: tuple[int, ...]
    """Time (ns) and size of `DONE`, time of the folder `scores` or 0; another stamp is another
    result."""
    identity: Mapping[str, Any]
    """`recipe.json`: kind, recipe, parents, data."""
    scores: Mapping[str, Mapping[str, Any]]
    """Score by split, without the classes."""
    provenance: Mapping[str, Any]
    """How it ran, in short; empty where it is not known."""
    finished: float
    """Epoch seconds."""
    rescored: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Scores under further protocols by split and column, without the classes."""
    odd: Mapping[str, str] = field(default_factory=dict)
    """Why files with such scores are left out."""


@dataclass(frozen=True)
class Index:
    """Finished stages by id, and why others cannot be read."""

    entries: Mapping[str, Entry]
    faults: Mapping[str, str]


def load(root: Path) -> Index:
    """What the store at `root` holds now.

    Reads the folders whose `DONE` is not the one in `index.jsonl`, and writes that file anew where
    something changed and it can be written. Safe beside other readers and writers: the file is
    replaced whole, and each of its lines carries a checksum.
    """
    cached = _read(root / NAME)
    entries, faults = {}, {}
    for name, stamp in _stamps(root / "stages"):
        known = cached.get(name)
        if known is not None and known.stamp == stamp:
            entries[name] = known
            continue
        try:
            entries[name] = _entry(root / "stages" / name, stamp)
        except FileNotFoundError as error:
            if (root / "stages" / name / "DONE").exists():  # else it was removed meanwhile
                faults[name] = f"{error.filename} is missing: remove the folder, and it runs again"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            faults[name] = f"{error}: remove the folder, and it runs again"
    if entries != cached:
        _write(root / NAME, entries)
    for entry in entries.values():
        faults |= {f"{entry.id}/{name}": why for name, why in entry.odd.items()}
    return Index(entries, faults)


def _stamps(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in sorted(os.listdir(folder)):
        if STAGE_ID.fullmatch(name):
            try:
                found = os.stat(f"{folder}/{name}/DONE")
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield name, (found.st_mtime_ns, found.st_size, _changed(f"{folder}/{name}/scores"))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0


def _entry(folder: Path, stamp: tuple[int, ...]) -> Entry:
    result = _json(folder / "DONE")
    identity = _json(folder / "recipe.json")
    if identity["kind"] != folder.name.split("-")[0]:
        raise ValueError(f"{folder}/recipe.json is of a stage {identity['kind']!r}")
    try:
        provenance = _json(folder / "provenance.json")
    except FileNotFoundError:
        provenance = {}
    scores = {
        split: {name: value for name, value in score.items() if name != "per_class"}
        for split, score in result.get("scores", {}).items()
    }
    finished = stamp[0] / 1e9
    if "started" in provenance and "seconds" in provenance:  # a copy of the store has new times
        finished = provenance["started"] + provenance["seconds"]
    short = {name: provenance[name] for name in KEPT if name in provenance}
    rescored, odd = _rescored(folder) if stamp[2] else ({}, {})
    return Entry(folder.name, stamp, identity, scores, short, finished, rescored, odd)


def result_digest(folder: Path) -> str:
    """Names the result of a finished stage, which scores under further protocols belong to."""
    return hashlib.sha256((folder / "DONE").read_bytes()).hexdigest()[:16]


def _rescored(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Scores under further protocols by split and column, and why files are left out."""
    found: dict[str, dict[str, Any]] = {}
    odd: dict[str, str] = {}
    digest = result_digest(folder)
    for path in sorted((folder / "scores").glob("*.json")):
        try:
            kept = _json(path)
            if kept.get("format") != RESCORED or kept.get("result") != digest:
                raise ValueError(f"{path} is not of this stage's result")
            for split, columns in kept["scores"].items():
                for column, score in columns.items():
                    short = {key: score[key] for key in score.keys() - {"per_class"}}
                    found.setdefault(split, {})[column] = short
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            odd[f"scores/{path.name}"] = f"{error}: score the run again"
    return found, odd


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return value


def _read(path: Path) -> dict[str, Entry]:
    """Entries of an index; none where a line of it is damaged."""
    try:
        header, *lines = path.read_bytes().splitlines()
        if header != HEADER.encode():
            return {}
        return dict(map(_parsed, lines))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _parsed(line: bytes) -> tuple[str, Entry]:
    checksum, _, text = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(text):
        raise ValueError("damaged line")
    values = json.loads(text)
    values["stamp"] = tuple(values["stamp"])
    return values["id"], Entry(**values)


def _write(path: Path, entries: Mapping[str, Entry]) -> None:
    texts = [json.dumps(vars(entry)) for entry in entries.values()]
    lines = [HEADER, *(f"{zlib.crc32(text.encode()):08x} {text}" for text in texts)]
    work = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        work.write_text("\n".join([*lines, ""]))
        os.replace(work, path)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        with suppress(OSError):  # the folders say it all; the next reader looks at them again
            work.unlink()
