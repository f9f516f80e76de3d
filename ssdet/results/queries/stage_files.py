"""Reader of the index: modification times, finished stages and study records of a store."""

import json
import os
import time
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssdet.results.queries.run_frame import KINDS, Summary, Uses, checked, short_score, summarise
from ssdet.store.base import STAGE_ID
from ssdet.studies import score_files

UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError
)  # fmt: skip
"""What files of another content than expected raise."""
TICK = 20_000_000
"""Nanoseconds within which two writes of a file may leave the same time."""
SKEW = 3_600_000_000_000
"""Nanoseconds by which the clock of a file server may be ahead of this machine's."""
NEVER = -1
"""Size in a stamp that no file has, so that the file is read again."""
ABSENT = (0, 0, -2, 0)
"""Stamp of what is not there."""


class Stamp(NamedTuple):
    """Times (ns) and size of a file; another stamp is another content."""

    mtime: int
    ctime: int
    size: int
    scored: int = 0
    """Modification time of a stage's folder `scores`, 0 where there is none."""

    def settled(self, now: int) -> "Stamp":
        """The stamp to remember of a file that was read after `now` (ns): a file that has just
        been written may change once more without another time, and must be read again."""
        last = max(self.ctime, self.scored)
        return self._replace(size=NEVER) if now - TICK <= last < now + SKEW else self


class Record(NamedTuple):
    """What the index keeps of a study's record."""

    stamp: Stamp
    name: str
    digest: str
    written: float


@dataclass(frozen=True)
class Planned:
    """The stages of a record: how its runs use them, and their summaries."""

    record: Record
    uses: Mapping[str, Uses]
    summaries: Mapping[str, Summary]


@dataclass(frozen=True)
class Finished:
    """A finished stage."""

    stamp: Stamp
    summary: Summary
    odd: Mapping[str, str]
    """Why files of its folder `scores` are left out, by name."""


def stage_stamps(folder: Path, names: Iterable[str]) -> np.ndarray:
    """Stamps int64 [len(names), 4] of stages; `ABSENT` for those that are not finished."""
    values, root = array("q"), str(folder)  # no work is done twice for 100,000 stages
    for name in names:
        stage = f"{root}/{name}"
        try:
            done = os.stat(f"{stage}/DONE")
        except (FileNotFoundError, NotADirectoryError):
            values.extend(ABSENT)
            continue
        may_score = name.startswith(_SCORED) and os.access(f"{stage}/scores", os.F_OK)
        scored = _time(f"{stage}/scores") if may_score else 0
        values.extend((done.st_mtime_ns, done.st_ctime_ns, done.st_size, scored))
    return np.frombuffer(values, np.int64).reshape(-1, len(ABSENT))


def other_stages(folder: Path, names: Iterable[str]) -> list[str]:
    """Ids of the stages that have a folder or a file there, but for these."""
    return sorted(filter(STAGE_ID.fullmatch, {*os.listdir(folder)}.difference(names)))


_SCORED = tuple(f"{kind}-" for kind in KINDS)


def _time(folder: str) -> int:
    with suppress(FileNotFoundError):
        return os.stat(folder).st_mtime_ns
    return 0


def record_stamps(folder: Path) -> dict[str, Stamp]:
    """Stamp of every record by its path below the folder `studies`."""
    stamps = {}
    for path in folder.glob("*/*.json"):
        with suppress(FileNotFoundError):
            found = path.stat()
            stamp = Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size)
            stamps[str(path.relative_to(folder))] = stamp
    return stamps


def read_stages(
    folder: Path, stamps: Mapping[str, Stamp]
) -> tuple[dict[str, Finished], dict[str, str]]:
    """Finished stages by id, and why others cannot be read."""
    stages, faults = {}, {}
    for name in sorted(stamps):
        now = time.time_ns()
        try:
            stages[name] = _read_stage(folder / name, stamps[name], now)
        except FileNotFoundError as error:
            if (folder / name / "DONE").exists():  # else it was removed meanwhile
                faults[name] = f"{error.filename} is missing: remove the folder, and it runs again"
        except UNREADABLE as error:
            told = error if isinstance(error, ValueError) else repr(error)
            faults[name] = f"{told}: remove the folder, and it runs again"
    return stages, faults


def _read_stage(folder: Path, stamp: Stamp, now: int) -> Finished:
    result, identity = _json(folder / "DONE"), _json(folder / "recipe.json")
    if identity["kind"] != folder.name.split("-")[0]:
        raise ValueError(f"{folder}/recipe.json is of a stage {identity['kind']!r}")
    try:
        how = _json(folder / "provenance.json")
    except FileNotFoundError:
        how = {}
    scores = {split: short_score(score) for split, score in result.get("scores", {}).items()}
    started, seconds = (checked(how.get(name), "number") for name in ("started", "seconds"))
    finished = stamp.mtime / 1e9
    if started is not None and seconds is not None:  # a copy of the store has new times
        finished = started + seconds
    rescored, odd = _rescored(folder) if stamp.scored else ({}, {})
    summary = replace(
        summarise(identity), finished=finished, seconds=seconds or 0.0, scores=scores,
        revision=checked(how.get("revision"), "text"), host=checked(how.get("host"), "text"),
        rescored=rescored,
    )  # fmt: skip
    return Finished(stamp.settled(now), summary, odd)


def _rescored(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Scores under further protocols by split and column, and why files are left out."""
    scores: dict[str, dict[str, Any]] = {}
    odd: dict[str, str] = {}
    digest = score_files.result_digest(folder)
    for path in sorted((folder / score_files.FOLDER).glob("*.json")):
        try:
            content = _json(path)
            if content.get("format") != score_files.FORMAT or content.get("result") != digest:
                raise ValueError(f"{path} is not of this stage's result")
            for split, columns in content["scores"].items():
                short = {column: short_score(score) for column, score in columns.items()}
                scores.setdefault(split, {}).update(short)
        except UNREADABLE as error:
            told = error if isinstance(error, ValueError) else repr(error)
            odd[f"scores/{path.name}"] = f"{told}: score the run again"
    return scores, odd


def read_plans(
    folder: Path, stamps: Mapping[str, Stamp]
) -> tuple[dict[str, Planned], dict[str, str]]:
    """What records hold by their path, and by whole path why others cannot be read."""
    plans, faults = {}, {}
    for path, stamp in sorted(stamps.items()):
        from ssdet.studies.graph.record import read_record  # loads what plans are made of

        now = time.time_ns()
        try:
            record = read_record(folder / path)
            uses: dict[str, list[Any]] = {}
            for run in record.runs:
                uses.setdefault(run.predict, []).append((path, run.arm, run.probe))
                if run.probe:
                    uses.setdefault(run.probe, []).append((path, run.arm, None))
            for stage in record.stages:
                uses.setdefault(stage, [(path, None, None)])
            summaries = {name: summarise(identity) for name, identity in record.stages.items()}
        except FileNotFoundError:
            continue  # removed by another process
        except UNREADABLE as error:
            faults[str(folder / path)] = str(error)
            continue
        kept = Record(stamp.settled(now), record.name, record.digest, record.written)
        plans[path] = Planned(kept, uses, summaries)
    return plans, faults


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return value
