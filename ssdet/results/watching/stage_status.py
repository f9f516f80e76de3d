"""Status of unfinished stages, from their small files and leases.

Reads no checkpoints, predictions or features, and writes nothing.

| state | `DONE` | lock | other files |
|---|---|---|---|
| done | yes | | |
| running | | held | |
| failed | | free | `error.txt`, newer than the last attempt and than the start of the study |
| gone | | free | `attempt.json`: its process died or was stopped, and no other has resumed it |
| waiting | | | none, or the study was started again since the stage failed |
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

ATTEMPT_FILES = ("attempt.json", "metrics.jsonl", "error.txt")
TAIL = 64 << 10
"""Bytes that are read of a file of an unfinished stage, from its end."""


@dataclass(frozen=True)
class StageStatus:
    """Status and small files of one stage."""

    state: str = "waiting"
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents by file name; of long files the end."""
    seen: float | None = None
    """Epoch seconds of the last sign of life."""
    host: str = ""
    note: str = ""


class StatusSource(Protocol):
    """Reads the status of stages from a store."""

    def prepare(self, stages: Iterable[str]) -> None:
        """Call it before `find` is called for these stages. OSError where the store cannot be
        read."""

    def find(self, stage: str, since: float) -> StageStatus:
        """Status of a stage of a study that was last started at `since` (epoch seconds)."""


def status_source(store: Store) -> StatusSource:
    """Source of the status of a store's stages."""
    return RemoteStatus(store) if isinstance(store, RemoteStore) else LocalStatus(store.root)


class LocalStatus:
    """Status of stages in a local store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._done: dict[str, tuple[int, StageStatus]] = {}
        self._dead: dict[str, int] = {}

    def prepare(self, stages: Iterable[str]) -> None:
        """Nothing to prepare: `find` reads the folder itself."""

    def find(self, stage: str, since: float) -> StageStatus:
        """See `StatusSource.find`."""
        folder = self.root / "stages" / stage
        if (done := stamp(folder / "DONE")) is not None:
            return self._finished(stage, done)
        began, failed = stamp(folder / "attempt.json") or 0, stamp(folder / "error.txt")
        if failed is not None and failed >= began:
            state = "failed" if failed / 1e9 >= since else "waiting"
        elif not began:
            return StageStatus()
        else:
            state = "running" if self._is_running(stage, began) else "gone"
        if state == "gone" and (done := stamp(folder / "DONE")) is not None:
            return self._finished(stage, done)  # it ended in the meantime
        # Files that an earlier attempt left are not of this one.
        names = [name for name in ATTEMPT_FILES if (stamp(folder / name) or -1) >= began]
        return StageStatus(
            state, {name: _tail(folder / name) for name in names}, _last_sign(folder)
        )

    def _is_running(self, stage: str, began: int) -> bool:
        """Whether a process runs the attempt; cached once it is dead."""
        if self._dead.get(stage) != began and held(self.root / "stages" / f"{stage}.lock"):
            return True
        self._dead[stage] = began
        return False

    def _finished(self, stage: str, done: int) -> StageStatus:
        cached = self._done.get(stage)
        if cached is None or cached[0] != done:
            folder = self.root / "stages" / stage
            names = [name for name in ("provenance.json", "DONE") if (folder / name).is_file()]
            files = {name: (folder / name).read_bytes() for name in names}
            cached = self._done[stage] = done, StageStatus("done", files, done / 1e9)
        return cached[1]


class RemoteStatus:
    """Status of stages in a remote store: uploads of all machines, and local files of this one.

    A stage of another machine is running while its lease is renewed; its metrics are uploaded with
    each checkpoint. The reason of a failure is on the machine that ran the stage alone.
    """

    def __init__(self, store: RemoteStore) -> None:
        self.remote, self.root, self.local = store.remote, store.root, LocalStatus(store.root)
        self._pointers: dict[str, tuple[Stamp, StageStatus]] = {}
        self._leases: dict[str, Stamp] = {}

    def prepare(self, stages: Iterable[str]) -> None:
        """List the uploaded pointers and leases, and read the pointers that are new."""
        wanted = {f"{folder}/{stage}.json" for stage in stages for folder in ("done", "resume")}
        listed = self.remote.list("done") | self.remote.list("resume")
        there = {name: listed[name] for name in wanted & listed.keys()}
        self._leases = self.remote.list("leases")
        self._pointers = {n: p for n, p in self._pointers.items() if there.get(n) == p[0]}
        new = sorted(there.keys() - self._pointers.keys())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, status in zip(new, pool.map(self._read, new), strict=True):
                if status is not None:
                    self._pointers[name] = there[name], status

    def find(self, stage: str, since: float) -> StageStatus:
        """See `StatusSource.find`."""
        if (done := self._pointers.get(f"done/{stage}.json")) is not None:
            return done[1]
        local = self.local.find(stage, since)
        if local.state in ("done", "running", "failed"):
            return replace(local, host=platform.node())
        resume = self._pointers.get(f"resume/{stage}.json")
        if (lease := self._leases.get(f"leases/{stage}.json")) is not None:
            return self._leased(stage, lease, resume[1] if resume else StageStatus())
        return resume[1] if resume else local

    def _leased(self, stage: str, lease: Stamp, uploaded: StageStatus) -> StageStatus:
        """Status of a stage with a lease: running, or gone if its machine vanished."""
        try:
            holder = json.loads(self.remote.read(f"leases/{stage}.json"))
            host, machine = str(holder["host"]), holder["machine"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            host, machine = "", None
        seen, me = lease.mtime_ns / 1e9, self.root / "remote" / "machine"
        # No process of this machine has the stage's lock, so its own lease is of a dead one.
        own = me.is_file() and me.read_text() == machine
        state = "gone" if own or time.time() - seen > STALE else "running"
        note = uploaded.note or "nothing of it was uploaded yet"
        seen = max(seen, uploaded.seen or 0.0)
        return replace(uploaded, state=state, seen=seen, host=host, note=note)

    def _read(self, name: str) -> StageStatus | None:
        """Status from a pointer; None where it was deleted since it was listed."""
        done = name.startswith("done/")
        try:
            if (pointer := read(self.remote, name)) is None:
                return None
            return _of_done(pointer) if done else self._of_resume(pointer)
        except FileNotFoundError:
            return None
        except ValueError as error:
            return StageStatus("failed" if done else "gone", note=str(error))

    def _of_resume(self, pointer: Pointer) -> StageStatus:
        seen = pointer.mtime_ns / 1e9
        at = time.strftime("%H:%M:%S", time.localtime(seen))
        note = f"as uploaded with the checkpoint of {at}; what came since shows with the next"
        names = [name for name in ("attempt.json", "metrics.jsonl") if name in pointer.files]
        files = {name: self._content(pointer.files[name]) for name in names}
        return StageStatus("gone", files, seen, note=note)

    def _content(self, parcel: Parcel) -> bytes:
        return self.remote.read(parcel.key) if parcel.key else parcel.text.encode()


def _of_done(pointer: Pointer) -> StageStatus:
    provenance = pointer.files.get("provenance.json")
    files = {"provenance.json": provenance.text.encode()} if provenance else {}
    return StageStatus("done", {**files, "DONE": json.dumps(pointer.result).encode()})


def held(lock: Path) -> bool:
    """Whether a process holds a stage's lock; does not wait or write.

    A free lock can only be detected by taking it, shared, for an instant; a process that wants it
    in that very instant tries again two seconds later.
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
    """Modification time of a file in ns; None where there is no file."""
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
    """The last `TAIL` bytes of a file; if it is longer, from the first whole line on, if any."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        text = file.read(TAIL)
    return text if size <= TAIL else text.partition(b"\n")[2] or text
