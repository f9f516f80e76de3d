"""Files of a stage in a remote store: kept under names that hold their content's hash, and named by
a small pointer file that is written last. So a reader sees one whole state or another whole one."""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssdet.data.storage.filesystem import Remote, RemoteError, checksum, join, walk
from ssdet.training.context import WORKERS_RESULT

log = logging.getLogger(__name__)

FORMAT = "ssdet-remote/1"
INLINE = 64 << 10
"""Bytes up to which a file at the top of a stage's folder stands in the pointer itself."""


@dataclass(frozen=True)
class Parcel:
    """One file of a stage."""

    size: int
    sha256: str
    key: str = ""
    """Its name in the store; empty for a file whose `text` stands here."""
    text: str = ""


@dataclass(frozen=True)
class Pointer:
    """What a pointer file says."""

    files: Mapping[str, Parcel]
    """By name in the stage's folder."""
    result: Mapping[str, Any] | None = None
    """What the stage reported; None for one that is half done."""
    mtime_ns: int = 0
    """When the last checkpoint of a half-done stage was written."""

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Pointer":
        """ValueError for what is no pointer."""
        try:
            values = json.loads(data)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            files = {_inside(n): Parcel(**parcel) for n, parcel in values.pop("files").items()}
            return cls(files, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{where} is damaged ({error}): remove the stage (ssdet results rm), and it runs "
                "again"
            ) from error

    @property
    def keys(self) -> set[str]:
        """Names in the store that it needs."""
        return {parcel.key for parcel in self.files.values() if parcel.key}


def _inside(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or not name:
        raise ValueError(f"file {name!r} leads out of the folder")
    return name


def of_stage(folder: Path) -> list[str]:
    """Names of the files of a stage that belong to it for good."""
    return [
        n for n, _ in walk(folder) if n not in ("DONE", WORKERS_RESULT) and not n.startswith("ray/")
    ]


def of_progress(folder: Path) -> list[str]:
    """Names of the files that another machine needs to go on: checkpoints and notes."""
    names = [name for name, _ in walk(folder) if name != "DONE"]
    return [name for name in names if "/" not in name or name.startswith("checkpoints/")]


def pack(remote: Remote, stage_id: str, folder: Path, names: Iterable[str]) -> dict[str, Parcel]:
    """Upload files of a stage's folder, but for those that are there already."""
    there = {key: stamp.size for key, stamp in remote.list(f"stages/{stage_id}", deep=True).items()}
    parcels = {}
    for name in names:
        with open(folder / name, "rb") as file:  # a file that is replaced meanwhile stays this one
            size, sha = os.fstat(file.fileno()).st_size, checksum(file)
            if "/" not in name and size <= INLINE:
                file.seek(0)
                parcels[name] = Parcel(size, sha, text=file.read().decode())
                continue
            key = f"stages/{stage_id}/{name}.{sha[:16]}"
            if there.get(key) != size:
                remote.push(file, key)
            parcels[name] = Parcel(size, sha, key)
    return parcels


def unpack(remote: Remote, parcel: Parcel, target: Path) -> None:
    """Write a file of a stage, checked, whole or not at all. FileNotFoundError where it is gone."""
    if parcel.key:
        remote.fetch(parcel.key, target, parcel.sha256)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    work.write_bytes(parcel.text.encode())
    os.replace(work, target)


def read(remote: Remote, name: str) -> Pointer | None:
    """A pointer file, None where there is none. ValueError for a damaged one."""
    try:
        return Pointer.parse(remote.read(name), join(remote.uri, name))
    except FileNotFoundError:
        return None


def drop(remote: Remote, keys: Iterable[str]) -> None:
    """Remove files that no pointer names any more."""
    for key in keys:
        remote.delete(key)


class Pusher:
    """Shows the checkpoints of a stage under way to other machines as they are written."""

    LOOK = 0.5
    """Seconds between two looks at the checkpoint."""

    def __init__(self, remote: Remote, stage_id: str, folder: Path) -> None:
        self.remote, self.stage_id, self.folder = remote, stage_id, folder
        self.name = f"resume/{stage_id}.json"
        self.last = Pointer({})
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Pusher":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        tried = self.written()
        while not self._ended.wait(self.LOOK):
            if (written := self.written()) != tried:
                tried = written
                try:
                    self.push()
                except RemoteError as error:  # training goes on; the next checkpoint tries again
                    log.warning("%s: checkpoint not shown to others: %s", self.stage_id, error)

    def look(self) -> None:
        """Take note of what is shown: it goes when there is something newer."""
        self.last = read(self.remote, self.name) or Pointer({})

    def written(self) -> int:
        """When the checkpoint was written (ns), 0 where there is none."""
        try:
            return (self.folder / "checkpoints" / "last.pt").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def push(self) -> None:
        """Show what is there now."""
        written = self.written()
        files = pack(self.remote, self.stage_id, self.folder, of_progress(self.folder))
        pointer = Pointer(files, mtime_ns=written)
        self.remote.write(self.name, pointer.to_bytes())
        old, self.last = self.last, pointer
        drop(self.remote, old.keys - pointer.keys)
