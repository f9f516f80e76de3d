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

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ssdet.data.storage.filesystem import Stamp
from ssdet.store.base import Store
from ssdet.store.leases import STALE
from ssdet.store.remote import AT_ONCE, RemoteStore
from ssdet.store.uploads import Parcel, Pointer, read

UNDER_WAY = ("attempt.json", "metrics.jsonl", "error.txt")
TAIL = 64 << 10
"""Bytes at the end of a file of a stage under way that are read."""


@dataclass(frozen=True)
class Found:
    """What a store tells of one stage."""

    state: str = "waiting"
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By name; of long ones the end."""
    seen: float | None = None
    """Epoch seconds of the last sign of life."""
    host: str = ""
    note: str = ""


class Place(Protocol):
    """Where stages are looked up."""

    def prepare(self, stages: Iterable[str]) -> None:
        """A new look at these stages begins. OSError where the store cannot be read."""

    def find(self, stage: str, since: float) -> Found:
        """What is told of a stage of a study that was started last at `since` (epoch seconds)."""


def place(store: Store) -> Place:
    """Where the stages of a store are looked up."""
    return Afar(store) if isinstance(store, RemoteStore) else Here(store.root)


class Here:
    """Stages in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._done: dict[str, tuple[int, Found]] = {}
        self._dead: dict[str, int] = {}

    def prepare(self, stages: Iterable[str]) -> None:
        """A folder is always as it is."""

    def find(self, stage: str, since: float) -> Found:
        """See `Place.find`."""
        folder = self.root / "stages" / stage
        if (done := stamp(folder / "DONE")) is not None:
            return self._finished(stage, done)
        began, failed = stamp(folder / "attempt.json") or 0, stamp(folder / "error.txt")
        if failed is not None and failed >= began:
            state = "failed" if failed / 1e9 >= since else "waiting"
        elif not began:
            return Found()
        else:
            state = "running" if self._works(stage, began) else "gone"
        if state == "gone" and (done := stamp(folder / "DONE")) is not None:
            return self._finished(stage, done)  # it ended between the two looks
        # What an earlier attempt left says nothing of this one.
        names = [name for name in UNDER_WAY if (stamp(folder / name) or -1) >= began]
        return Found(state, {name: _tail(folder / name) for name in names}, _last_sign(folder))

    def _works(self, stage: str, began: int) -> bool:
        """Whether a process works on it. An attempt once found dead is not asked about again."""
        if self._dead.get(stage) != began and held(self.root / "stages" / f"{stage}.lock"):
            return True
        self._dead[stage] = began
        return False

    def _finished(self, stage: str, done: int) -> Found:
        known = self._done.get(stage)
        if known is None or known[0] != done:
            folder = self.root / "stages" / stage
            names = [name for name in ("provenance.json", "DONE") if (folder / name).is_file()]
            files = {name: (folder / name).read_bytes() for name in names}
            known = self._done[stage] = done, Found("done", files, done / 1e9)
        return known[1]


class Afar:
    """Stages of a remote store: what their machines uploaded, and what works on this machine.

    A stage that another machine works on shows that it lives by its lease, and its figures with
    each checkpoint. Why one failed is known on the machine that ran it only.
    """

    def __init__(self, store: RemoteStore) -> None:
        self.remote, self.root, self.here = store.remote, store.root, Here(store.root)
        self._known: dict[str, tuple[Stamp, Found]] = {}
        self._leases: dict[str, Stamp] = {}

    def prepare(self, stages: Iterable[str]) -> None:
        """List what is there, and read what is new of it."""
        wanted = {f"{folder}/{stage}.json" for stage in stages for folder in ("done", "resume")}
        listed = self.remote.list("done") | self.remote.list("resume")
        there = {name: listed[name] for name in wanted & listed.keys()}
        self._leases = self.remote.list("leases")
        self._known = {n: known for n, known in self._known.items() if there.get(n) == known[0]}
        new = sorted(there.keys() - self._known.keys())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, found in zip(new, pool.map(self._read, new), strict=True):
                if found is not None:
                    self._known[name] = there[name], found

    def find(self, stage: str, since: float) -> Found:
        """See `Place.find`."""
        if (done := self._known.get(f"done/{stage}.json")) is not None:
            return done[1]
        mine = self.here.find(stage, since)
        if mine.state in ("done", "running", "failed"):
            return replace(mine, host=platform.node())
        known = self._known.get(f"resume/{stage}.json")
        if (lease := self._leases.get(f"leases/{stage}.json")) is not None:
            return self._leased(stage, lease, known[1] if known else Found())
        return known[1] if known else mine

    def _leased(self, stage: str, lease: Stamp, shown: Found) -> Found:
        """A stage that a machine works on, or did when it vanished."""
        try:
            holder = json.loads(self.remote.read(f"leases/{stage}.json"))
            host, machine = str(holder["host"]), holder["machine"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            host, machine = "", None
        seen, me = lease.mtime_ns / 1e9, self.root / "remote" / "machine"
        # Of this machine, where no process has its lock: a dead one's.
        own = me.is_file() and me.read_text() == machine
        state = "gone" if own or time.time() - seen > STALE else "running"
        note = shown.note or "nothing of it was uploaded yet"
        return replace(shown, state=state, seen=max(seen, shown.seen or 0.0), host=host, note=note)

    def _read(self, name: str) -> Found | None:
        """What a pointer tells; None where it is gone by now."""
        done = name.startswith("done/")
        try:
            if (pointer := read(self.remote, name)) is None:
                return None
            return _of_done(pointer) if done else self._of_resume(pointer)
        except FileNotFoundError:
            return None
        except ValueError as error:
            return Found("failed" if done else "gone", note=str(error))

    def _of_resume(self, pointer: Pointer) -> Found:
        seen = pointer.mtime_ns / 1e9
        at = time.strftime("%H:%M:%S", time.localtime(seen))
        note = f"as uploaded with the checkpoint of {at}; what came since shows with the next"
        names = [name for name in ("attempt.json", "metrics.jsonl") if name in pointer.files]
        files = {name: self._content(pointer.files[name]) for name in names}
        return Found("gone", files, seen, note=note)

    def _content(self, parcel: Parcel) -> bytes:
        return self.remote.read(parcel.key) if parcel.key else parcel.text.encode()


def _of_done(pointer: Pointer) -> Found:
    how = pointer.files.get("provenance.json")
    files = {"provenance.json": how.text.encode()} if how else {}
    return Found("done", {**files, "DONE": json.dumps(pointer.result).encode()})


def held(lock: Path) -> bool:
    """Whether a process holds a stage's lock.

    The file is left as it is, and nothing waits. The system has no way to merely ask: a lock that
    is free is taken, shared, for an instant; a process that wants it in that very instant looks
    again two seconds later.
    """
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


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
