"""Files of a stage in a remote store: each under a name with its content's hash, and listed by a
small pointer file that is written last, so that a reader sees one whole state or another."""

import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssdet.data.storage.filesystem import Remote, RemoteError, checksum, join, walk
from ssdet.system.safe_files import below, write_bytes
from ssdet.training.context import WORKERS_RESULT

log = logging.getLogger(__name__)

FORMAT = "ssdet-remote/1"
INLINE = 64 << 10
"""Bytes up to which a file at the top of a stage's folder stands in the pointer itself."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a stage."""

    size: int
    sha256: str
    key: str = ""
    """Its name in the store; empty for a file whose `text` stands here."""
    text: str = ""

    def read(self, remote: Remote) -> bytes:
        """Content of a small file."""
        return remote.read(self.key) if self.key else self.text.encode()


@dataclass(frozen=True)
class Pointer:
    """Content of a pointer file."""

    files: Mapping[str, RemoteFile]
    """By name in the stage's folder."""
    result: Mapping[str, Any] | None = None
    """What the stage reported; None for one that is half done."""
    mtime_ns: int = 0
    """When the last checkpoint of a half-done stage was written."""

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Pointer":
        """ValueError for what is no pointer, and for file names that lead out of the folder."""
        try:
            values = json.loads(data)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            files = {name: RemoteFile(**file) for name, file in values.pop("files").items()}
            for name in files:
                below(Path(), name)
            return cls(files, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{where} is damaged ({error}): remove the stage (ssdet results rm), and it runs "
                "again"
            ) from error

    @property
    def keys(self) -> set[str]:
        """Names in the store that it needs."""
        return {file.key for file in self.files.values() if file.key}


def stage_files(folder: Path) -> list[str]:
    """Names of the files that belong to a finished stage."""
    return [
        n for n, _ in walk(folder) if n not in ("DONE", WORKERS_RESULT) and not n.startswith("ray/")
    ]


def progress_files(folder: Path) -> list[str]:
    """Names of the files that another machine needs to go on: checkpoints and notes."""
    names = [name for name, _ in walk(folder) if name != "DONE"]
    return [name for name in names if "/" not in name or name.startswith("checkpoints/")]


def upload(
    remote: Remote, stage_id: str, folder: Path, names: Iterable[str]
) -> dict[str, RemoteFile]:
    """Upload files of a stage's folder, but for those that are there already."""
    there = {key: stamp.size for key, stamp in remote.list(f"stages/{stage_id}", deep=True).items()}
    files = {}
    for name in names:
        with open(folder / name, "rb") as file:  # a file that is replaced meanwhile stays this one
            size, sha = os.fstat(file.fileno()).st_size, checksum(file)
            if "/" not in name and size <= INLINE:
                file.seek(0)
                files[name] = RemoteFile(size, sha, text=file.read().decode())
                continue
            key = f"stages/{stage_id}/{name}.{sha[:16]}"
            if there.get(key) != size:
                remote.push(file, key)
            files[name] = RemoteFile(size, sha, key)
    return files


def download(remote: Remote, file: RemoteFile, target: Path) -> None:
    """Write a file of a stage, checked, whole or not at all. FileNotFoundError where it is gone."""
    if file.key:
        remote.fetch(file.key, target, file.sha256)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, file.text.encode())


def read_pointer(remote: Remote, name: str) -> Pointer | None:
    """A pointer file, None where there is none. ValueError for a damaged one."""
    try:
        return Pointer.parse(remote.read(name), join(remote.uri, name))
    except FileNotFoundError:
        return None


def delete_files(remote: Remote, keys: Iterable[str]) -> None:
    """Remove files that no pointer names any more."""
    for key in keys:
        remote.delete(key)


class CheckpointUploader:
    """Uploads the checkpoints of a stage under way as they are written, in a thread of its own."""

    LOOK = 0.5
    """Seconds between two looks at the checkpoint."""

    def __init__(self, remote: Remote, stage_id: str, folder: Path) -> None:
        self.remote, self.stage_id, self.folder = remote, stage_id, folder
        self.name = f"resume/{stage_id}.json"
        self.last = Pointer({})
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CheckpointUploader":
        self.read_last()
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
                    self.upload()
                except RemoteError as error:  # training goes on; the next checkpoint tries again
                    log.warning("%s: checkpoint not uploaded: %s", self.stage_id, error)

    def read_last(self) -> None:
        """Note what was uploaded before; it is removed when there is something newer."""
        self.last = read_pointer(self.remote, self.name) or Pointer({})

    def written(self) -> int:
        """When the checkpoint on this machine was written (ns), 0 where there is none."""
        try:
            return (self.folder / "checkpoints" / "last.pt").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def upload(self) -> None:
        """Upload what is there now, and remove what was uploaded before."""
        written = self.written()
        files = upload(self.remote, self.stage_id, self.folder, progress_files(self.folder))
        pointer = Pointer(files, mtime_ns=written)
        self.remote.write(self.name, pointer.to_bytes())
        old, self.last = self.last, pointer
        delete_files(self.remote, old.keys - pointer.keys)
