"""The place that stages write to and tables are made from: a folder, or a mirror of one."""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from ssdet.data.storage.filesystem import is_remote
from ssdet.system.text_files import write_text

STAGE_ID = re.compile(r"[a-z_]+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Store:
    """Stage folders `stages/ID` with `recipe.json`, `metrics.jsonl`, `checkpoints/`,
    `predictions/SPLIT/`, `provenance.json` and, written last, `DONE`; tables in `tables/STUDY`,
    the plans of what ran in `studies/STUDY`."""

    root: Path

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> "Store":
        """Store at a path, a file:// URI or one that pyarrow knows (s3://…, docs/storage.md),
        created if absent. ValueError for what is none of them."""
        store = cls.at(uri)
        (store.root / "stages").mkdir(parents=True, exist_ok=True)
        return store

    @classmethod
    def at(cls, uri: str | os.PathLike[str]) -> "Store":
        """The same, but nothing is created."""
        if is_remote(uri):
            from ssdet.store.remote import RemoteStore

            return RemoteStore.of(str(uri))
        parts = urlsplit(str(uri))
        if parts.scheme not in ("", "file"):
            raise ValueError(f"store {uri!r}: expected a folder, or a URI such as s3://bucket/runs")
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"store {uri!r}: file://{parts.netloc} is another machine; mount it")
        return cls(Path(unquote(parts.path) if parts.scheme else str(uri)).expanduser().absolute())

    @property
    def uri(self) -> str:
        """What opens this store from another process, or another machine that sees it."""
        return str(self.root)

    def inside(self, name: str) -> "Store":
        """A store of its own in a folder of this one."""
        return Store.open(self.root / name)

    def exists(self) -> bool:
        """Whether there is a store."""
        return (self.root / "stages").is_dir()

    def refresh(self) -> None:
        """Bring records, tables and what finished stages say up to date. A folder always is; the
        mirror of a remote store is as new as its last refresh."""

    def local(self, stage_id: str, part: str = "") -> Path:
        """Folder of a stage with all of its files, or with this file or folder of it, on this
        machine; what is read goes through here."""
        return self.folder(stage_id)

    def holds(self, stage_id: str, name: str) -> bool:
        """Whether a finished stage has this file, here or elsewhere."""
        return (self.folder(stage_id) / name).is_file()

    def share(self, path: Path) -> None:
        """Show others a file or folder that was written here: of what is in `stages`, only a
        stage's `scores`."""

    def resume(self, stage_id: str, exactly: bool = False) -> None:
        """Bring here what another machine left of a half-done stage where it got further;
        `exactly`: in any case, so that several workers go on from the same."""

    def offer(self, stage_id: str) -> None:
        """Show others what is here of a half-done stage."""

    def progress(self, stage_id: str) -> AbstractContextManager[Any]:
        """While the block lasts, checkpoints of the stage are shown to other machines."""
        return nullcontext()

    def publish(self, stage_id: str) -> dict[str, Any] | None:
        """Finish a stage whose work is done, but which could not be shown to others; its result.
        None where there is nothing of that kind."""
        return None

    def claim(self, name: str) -> AbstractContextManager[None]:
        """Keep other machines out of what has this name. BlockingIOError where one is in."""
        return nullcontext()

    def elsewhere(self) -> dict[str, int]:
        """Bytes by id of stages that lie on another file system than the folder."""
        return {}

    def folder(self, stage_id: str) -> Path:
        """Folder of a stage; ValueError for what is no stage id."""
        if not STAGE_ID.fullmatch(stage_id):
            raise ValueError(f"{stage_id!r} is no stage id (kind-16 hex digits)")
        return self.root / "stages" / stage_id

    def result(self, stage_id: str) -> dict[str, Any] | None:
        """What a finished stage reported, None for one that is not finished.

        ValueError for a file that holds no result: the stage must then be removed by hand.
        """
        path = self.folder(stage_id) / "DONE"
        try:
            result = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove the folder, and it runs again"
            ) from error
        if not isinstance(result, dict):
            raise ValueError(f"{path} is damaged: remove the folder, and it runs again")
        return result

    def provenance(self, stage_id: str) -> dict[str, Any] | None:
        """How a finished stage ran, None where nothing says so. ValueError for a damaged file."""
        return _read_json(self.folder(stage_id) / "provenance.json")

    def tidy(self, age: float, busy: Collection[str], dry_run: bool) -> dict[str, int]:
        """Remove what interrupted uploads left, older than `age` seconds and not of these stages;
        bytes by name."""
        return {}

    @contextmanager
    def lock(self, stage_id: str, wait: bool = True) -> Iterator[None]:
        """Wait until no other process works on the stage, and keep others out.

        The system releases the lock of a process that dies. Without `wait`, BlockingIOError where
        another process holds it.
        """
        with locked(self.folder(stage_id).with_suffix(".lock"), wait):
            yield

    def busy(self, stage_id: str) -> bool:
        """Whether a process works on the stage now."""
        lock = self.folder(stage_id).with_suffix(".lock")
        if not lock.exists():
            return False
        try:
            with locked(lock, wait=False):
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Held while a study is recorded and while stages are removed: what a record that is
        being written will need is not removed meanwhile."""
        self.studies.mkdir(parents=True, exist_ok=True)
        with locked(self.studies / ".lock"):
            yield

    def remove(self, stage_id: str) -> None:
        """Remove a stage's folder; it vanishes at once, whole.

        BlockingIOError where a process works on it.
        """
        folder = self.folder(stage_id)
        with self.lock(stage_id, wait=False):
            self.forget(stage_id)
            if folder.is_dir():
                self.discard(folder)
            folder.with_suffix(".lock").unlink()

    def forget(self, stage_id: str) -> None:
        """Remove what lies of a stage elsewhere than in its folder."""

    def erase(self, path: Path) -> None:
        """Remove a file or folder (outside `stages`)."""
        if path.is_dir():
            self.discard(path)
        else:
            path.unlink()

    def discard(self, folder: Path) -> None:
        """Remove a folder of the store so that a kill leaves no half of it where it was."""
        trash = self.root / "trash"
        trash.mkdir(exist_ok=True)
        gone = trash / f"{folder.name}.{uuid.uuid4().hex}"
        os.replace(folder, gone)
        shutil.rmtree(gone)

    @property
    def studies(self) -> Path:
        """Folder of the records of studies."""
        return self.root / "studies"

    def finish(self, stage_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Mark a stage as finished, with its result; returns the one that counts."""
        write_json(self.folder(stage_id) / "DONE", result)
        return dict(result)

    def keep_estimate(self, digest: str, costs: Mapping[str, Any]) -> None:
        """Keep what a plan (by the digest of its record) was expected to cost."""
        folder = self.root / "estimates"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{digest}.json", costs)
        self.share(folder / f"{digest}.json")

    def estimate(self, digest: str) -> dict[str, Any] | None:
        """What `keep_estimate` kept, None where no plan was made. ValueError for a damaged file."""
        return _read_json(self.root / "estimates" / f"{digest}.json")

    def table_folder(self, study: str) -> Path:
        """Folder of a study's tables, created if absent."""
        folder = self.root / "tables" / study
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file's exclusive lock; without `wait`, BlockingIOError where another process does.

    Who holds the lock may remove the file.
    """
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(file, path):  # else it was removed while this process waited for it
                yield
                return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is no file. ValueError for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (no JSON object): remove it")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that readers see the old or the new one, whole."""
    work = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(work, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)


def note_error(folder: Path, trace: str) -> str:
    """Write why a stage failed into its folder; says where it stands, or why it does not."""
    path = folder / "error.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, trace)
    except OSError as error:  # a full disk fails a stage, and this as well
        return f"its traceback could not be kept: {error}"
    return f"traceback in {path}"
