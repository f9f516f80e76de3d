"""Status of stages that are under way, from their small files and leases.

Checkpoints, predictions and features are not read, and nothing is written.

| state | `DONE` | lock | else |
|---|---|---|---|
| done | there | | |
| running | | held | |
| failed | | free | `error.txt`, newer than the last attempt and than the start of the study |
| gone | | free | `attempt.json`: its process died or was stopped, and nothing has gone on yet |
| waiting | | | nothing, or the study was started again since the stage failed |
"""

import os
import platform
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ssdet.store.base import StageElsewhere, Store

UNDER_WAY = ("attempt.json", "metrics.jsonl", "error.txt")
TAIL = 64 << 10
"""Bytes at the end of a file of a stage under way that are read."""


@dataclass(frozen=True)
class StageStatus:
    """Status of one stage."""

    state: str = "waiting"
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By name; of long ones the end."""
    seen: float | None = None
    """Epoch seconds of the last sign of life."""
    host: str = ""
    note: str = ""


class StatusSource:
    """Looks up the stages of a store: what this machine has of them, and what others show."""

    def __init__(self, store: Store) -> None:
        self._store, self._look = store, store.view_elsewhere()
        self._elsewhere: Mapping[str, StageElsewhere] = {}
        self._done: dict[str, tuple[int, StageStatus]] = {}
        self._dead: dict[str, int] = {}

    def prepare(self, stages: Collection[str]) -> None:
        """A new look at these stages begins. OSError where the store cannot be read."""
        self._elsewhere = self._look(stages)

    def find(self, stage: str, since: float) -> StageStatus:
        """The status of a stage of a study that was started last at `since` (epoch seconds).

        A stage that another machine works on shows that it lives by its lease, and its figures
        with each checkpoint. Why one failed is known on the machine that ran it only.
        """
        other = self._elsewhere.get(stage)
        if other is not None and other.finished:
            return StageStatus("failed" if other.fault else "done", other.files, note=other.fault)
        here = self._here(stage, since)
        if here.state in ("done", "running", "failed") or other is None:
            return replace(here, host=platform.node()) if other else here
        return _of_another_machine(other)

    def _here(self, stage: str, since: float) -> StageStatus:
        """What the files on this machine show."""
        folder = self._store.folder(stage)
        if (done := stamp(folder / "DONE")) is not None:
            return self._finished(stage, done)
        began, failed = stamp(folder / "attempt.json") or 0, stamp(folder / "error.txt")
        if failed is not None and failed >= began:
            state = "failed" if failed / 1e9 >= since else "waiting"
        elif not began:
            return StageStatus()
        else:
            state = "running" if self._works(stage, began) else "gone"
        if state == "gone" and (done := stamp(folder / "DONE")) is not None:
            return self._finished(stage, done)  # it ended between the two looks
        # What an earlier attempt left says nothing of this one.
        names = [name for name in UNDER_WAY if (stamp(folder / name) or -1) >= began]
        return StageStatus(
            state, {name: _tail(folder / name) for name in names}, _last_sign(folder)
        )

    def _works(self, stage: str, began: int) -> bool:
        """Whether a process works on it. An attempt once found dead is not asked about again."""
        if self._dead.get(stage) != began and self._store.works_here(stage):
            return True
        self._dead[stage] = began
        return False

    def _finished(self, stage: str, done: int) -> StageStatus:
        known = self._done.get(stage)
        if known is None or known[0] != done:
            folder = self._store.folder(stage)
            names = [name for name in ("provenance.json", "DONE") if (folder / name).is_file()]
            files = {name: (folder / name).read_bytes() for name in names}
            known = self._done[stage] = done, StageStatus("done", files, done / 1e9)
        return known[1]


def _of_another_machine(other: StageElsewhere) -> StageStatus:
    """A stage that another machine works on, or did when it vanished."""
    note = other.fault
    if not note and other.uploaded is None:
        note = "nothing of it was uploaded yet"
    elif not note:
        at = time.strftime("%H:%M:%S", time.localtime(other.uploaded))
        note = f"as uploaded with the checkpoint of {at}; what came since shows with the next"
    seen = max(filter(None, (other.seen, other.uploaded)), default=None)
    return StageStatus("running" if other.working else "gone", other.files, seen, other.host, note)


def stamp(path: Path) -> int | None:
    """When a file was changed (ns), None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _last_sign(folder: Path) -> float:
    newest = 0.0
    for where, _, names in os.walk(folder):
        for name in (".", *names):
            with suppress(FileNotFoundError):
                newest = max(newest, os.stat(f"{where}/{name}").st_mtime)
    return newest


def _tail(path: Path) -> bytes:
    """The end of a file; where its beginning is left out, from the first whole line on, if any."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        text = file.read(TAIL)
    return text if size <= TAIL else text.partition(b"\n")[2] or text
