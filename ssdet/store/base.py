"""The place that stages write to and tables are made from: what every kind of store guarantees."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ssdet.data.storage.filesystem import SCHEMES, Stamp, is_remote
from ssdet.plugins import Registry
from ssdet.system.safe_files import is_locked, make_folder, remove, write_json, write_text

STAGE_ID = re.compile(r"[a-z_]+-[0-9a-f]{16}")
SHARED = ("studies", "tables", "estimates", "searches", "scores")
"""Folders of what is published beside the stages; `scores/ID` is `stages/ID/scores` of a folder."""
Opener = TypeVar("Opener", bound="Callable[[str], Store]")


@dataclass(frozen=True)
class StageElsewhere:
    """What other machines show of a stage that is not finished on this one."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """Its small files, by name, as they were uploaded last."""
    finished: bool = False
    uploaded: float | None = None
    """Epoch seconds of the checkpoint that was uploaded last."""
    working: bool = False
    """Whether a machine holds the stage's lock and has renewed it lately."""
    host: str = ""
    """Of the machine that holds the stage's lock, or held it when it vanished."""
    seen: float | None = None
    """Epoch seconds of the last renewal of the lock."""
    fault: str = ""
    """Why its files cannot be read."""


class Store(ABC):
    """Stages, records of studies, searches and tables, by which processes and machines that share
    nothing else work together.

    `root` is a folder of this machine: the store itself, or a mirror of it. It holds

    | path | written by |
    |---|---|
    | `stages/ID/` | the process that holds the stage's `lock`, between `begin` and `finish` |
    | `stages/ID/DONE` | `finish` alone, last; a stage with it is finished and not changed again |
    | `stages/ID/scores/` | any process that holds the stage's `lock`, after `finish` |
    | `studies/STUDY/PLAN.json` | any process, within `recording_lock` |
    | `searches/NAME/` | drivers of the search, under its file `lock` |
    | `tables/STUDY/`, `estimates/` | any process; of two writers of one file the last counts |

    **Atomicity.** A file is written beside and renamed (`ssdet.system.safe_files`): a reader sees
    the old file or the new one, whole. A stage is finished for every reader at once, when its
    `DONE` appears, and its other files are there before. A folder is removed whole: it vanishes
    first. A process that is killed at any moment leaves the store as before or after, and
    `*.partial` files that `ssdet results gc` removes.

    **Processes, threads and machines.** Every method may be called by many of them at once. Locks
    are not re-entrant: a thread that asks for one that it holds waits for itself. The lock of a
    process that dies is free at once; that of a machine that vanishes when it is recognised as
    lost. What two machines do under one lock, because one was cut off, must stay whole: the first
    result that is complete counts for both.

    **Visibility.** What another process of this machine wrote is seen at once. What another machine
    wrote is seen at once by `result`, `busy`, `fetch`, `fetch_progress`, the methods that end in
    `_shared` and `view_elsewhere`; all else after `refresh`.

    **Errors.** ValueError for names that are no stage id or no folder name and for damaged files,
    BlockingIOError for locks that are held, `LinkError` for symbolic links in the store, other
    OSErrors (for remote stores `RemoteError`) where the file system fails; each names the file and
    the way out.

    A further kind of store is a class with these methods, which passes
    `ssdet.testing.check_store`, and a function under `register` that opens it.
    """

    root: Path

    @staticmethod
    def open(uri: "str | os.PathLike[str] | Store") -> "Store":
        """Store at a path, a file:// URI, one that pyarrow knows (s3://…, docs/storage.md) or one
        of a registered kind, created if absent. ValueError for what is none of them."""
        store = Store.at(uri)
        store.root.mkdir(parents=True, exist_ok=True)
        make_folder(store.root, "stages")
        return store

    @staticmethod
    def at(uri: "str | os.PathLike[str] | Store") -> "Store":
        """The same, but no store is created."""
        if isinstance(uri, Store):
            return uri
        text = os.fspath(uri)
        # By name: both kinds of store import this module.
        if not is_remote(text):
            store: Store = import_module("ssdet.store.local").LocalStore(_local_path(text))
            return store
        scheme = text.partition("://")[0]
        if scheme in _OPENERS and scheme not in SCHEMES and not scheme.startswith("fsspec+"):
            return _OPENERS[scheme](text)
        remote: Store = import_module("ssdet.store.remote").RemoteStore.of(text)
        return remote

    @staticmethod
    def existing(uri: "str | os.PathLike[str] | Store") -> "Store":
        """The store at a place; FileNotFoundError where there is none."""
        store = Store.at(uri)
        if not store.exists():
            raise FileNotFoundError(f"no store in {store.uri}: it has no folder 'stages'")
        return store

    @property
    @abstractmethod
    def uri(self) -> str:
        """What opens this store in another process, or on another machine that sees it."""

    @abstractmethod
    def substore(self, name: str) -> "Store":
        """A store of its own in a folder of this one, created if absent."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a store."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring records, searches, tables, estimates, scores and the small files of finished stages
        in `root` up to date with what other machines wrote; nothing of the store is changed."""

    @abstractmethod
    def begin(self, stage_id: str) -> Path:
        """Create the stage's folder and bring into it what another machine uploaded of the
        half-done stage where that got further. The caller holds the stage's `lock`."""

    @abstractmethod
    def result(self, stage_id: str) -> dict[str, Any] | None:
        """What a finished stage reported, None for one that is not finished.

        ValueError for a file that holds no result: the stage must then be removed.
        """

    @abstractmethod
    def finish(self, stage_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Mark a stage as finished with its result, when all its files are where readers find them;
        returns the result that counts, which is the earlier one of a stage that was finished
        before. The caller holds the stage's `lock`."""

    @abstractmethod
    def retry_finish(self, stage_id: str) -> dict[str, Any] | None:
        """Finish a stage whose `finish` failed or was killed after the work was done; its result,
        None where there is nothing of that kind. The caller holds the stage's `lock`."""

    @abstractmethod
    def fetch(self, stage_id: str, part: str = "") -> Path:
        """Folder of a stage with all of its files, or with this file or folder of it, on this
        machine; what is read goes through here."""

    @abstractmethod
    def has_file(self, stage_id: str, name: str) -> bool:
        """Whether a finished stage has this file, on this machine or elsewhere."""

    @abstractmethod
    def fetch_progress(self, stage_id: str, exactly: bool = False) -> None:
        """Bring here what another machine uploaded of a half-done stage where it got further;
        `exactly`: in any case, so that several workers go on from the same checkpoint."""

    @abstractmethod
    def publish_progress(self, stage_id: str) -> None:
        """Let other machines see what is here of a half-done stage: all of it, or what they saw
        before."""

    @abstractmethod
    def keep_progress_published(self, stage_id: str) -> AbstractContextManager[Any]:
        """While the block lasts, checkpoints of the stage are published as they are written. One
        that cannot be is logged and does not end the work."""

    @abstractmethod
    def remove(self, stage_id: str) -> None:
        """Remove a stage, for all machines; it vanishes at once, whole.

        BlockingIOError where a process works on it.
        """

    @abstractmethod
    def remote_sizes(self) -> dict[str, int]:
        """Bytes by id of stages that lie (also) on another file system than `root`."""

    @abstractmethod
    def remove_unreferenced(
        self, age: float, busy: Collection[str], dry_run: bool
    ) -> dict[str, int]:
        """Remove what interrupted uploads left, older than `age` seconds and not of the stages
        `busy`; bytes by name."""

    @abstractmethod
    def view_elsewhere(self) -> Callable[[Collection[str]], Mapping[str, StageElsewhere]]:
        """A function that reads what other machines show of stages now, by id; it writes nothing
        and reads again only what has changed since its last call. OSError where the store cannot
        be read."""

    @abstractmethod
    def lock(self, stage_id: str, wait: bool = True) -> AbstractContextManager[None]:
        """Wait until no other process works on the stage, and keep others out.

        Without `wait`, BlockingIOError where another process holds it.
        """

    @abstractmethod
    def busy(self, stage_id: str) -> bool:
        """Whether a process holds the stage's lock now; writes nothing."""

    def validations(self, stage_id: str) -> dict[int, float]:
        """Validation scores of a training by step, in their order, as far as it got."""
        log = self.fetch(stage_id, "metrics.jsonl") / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        reports = [values for line in lines if "validation" in (values := json.loads(line))]
        scores = {values["step"]: float(values["validation"]) for values in reports}
        return dict(sorted(scores.items()))

    @abstractmethod
    def drive_search(self, name: str) -> AbstractContextManager[None]:
        """Work on a search while the block lasts. Processes may share a search of a folder; a
        remote store takes one at a time: BlockingIOError where another works on it."""

    @abstractmethod
    def search_lock(self, name: str) -> AbstractContextManager[None]:
        """Keep every driver out of a search; BlockingIOError where one works on it."""

    @abstractmethod
    def search_busy(self, name: str) -> bool:
        """Whether a driver works on the search, or its lock is held; writes nothing."""

    @abstractmethod
    def recording_lock(self) -> AbstractContextManager[None]:
        """Held while a study is recorded and while stages are removed: what a record that is being
        written will need is not removed meanwhile."""

    @abstractmethod
    def publish_files(self, path: Path) -> None:
        """Let other machines see a file or folder that was written in `root`: of records, tables,
        estimates, searches, and of stages only the `scores`. ValueError for any other."""

    @abstractmethod
    def remove_files(self, path: Path) -> None:
        """Remove a file or folder in `root` outside `stages`, for all machines."""

    @abstractmethod
    def list_shared(self, folder: str) -> dict[str, Stamp]:
        """Files in and below a folder such as `studies`, by name in the store, as all machines see
        them at this moment."""

    @abstractmethod
    def read_shared(self, name: str) -> bytes:
        """Content of a small file, as all machines see it at this moment. FileNotFoundError without
        one."""

    @abstractmethod
    def write_shared(self, name: str, data: bytes) -> None:
        """Write a small file that all machines see at once through `read_shared`."""

    @abstractmethod
    def remove_shared(self, name: str) -> None:
        """Remove a file that `write_shared` wrote, its folder with the last one; nothing happens
        where there is none."""

    def folder(self, stage_id: str) -> Path:
        """Folder of a stage in `root`; ValueError for what is no stage id."""
        if not STAGE_ID.fullmatch(stage_id):
            raise ValueError(f"{stage_id!r} is no stage id (kind-16 hex digits)")
        return self.root / "stages" / stage_id

    def shared_name(self, path: Path) -> str:
        """Name under `SHARED` of a file or folder in `root`; ValueError for what is not shared."""
        parts = path.relative_to(self.root).parts
        if parts[0] == "stages" and parts[2:3] == ("scores",):
            parts = ("scores", parts[1], *parts[3:])
        if parts[0] not in SHARED:
            raise ValueError(f"{path} cannot be published: it is none of {', '.join(SHARED)}")
        return "/".join(parts)

    def lock_path(self, stage_id: str) -> Path:
        """File in `root` whose `flock` a process of this machine has while it holds the lock."""
        return self.folder(stage_id).with_suffix(".lock")

    def works_here(self, stage_id: str) -> bool:
        """Whether a process of this machine holds the stage's lock now; writes nothing."""
        return is_locked(self.lock_path(stage_id))

    @property
    def studies(self) -> Path:
        """Folder of the records of studies."""
        return self.root / "studies"

    def table_folder(self, study: str) -> Path:
        """Folder of a study's tables, created if absent."""
        return make_folder(self.root, "tables", study)

    def search_folder(self, name: str) -> Path:
        """Folder of a search, created if absent."""
        return make_folder(self.root, "searches", name)

    def provenance(self, stage_id: str) -> dict[str, Any] | None:
        """How a finished stage ran, None where nothing says so. ValueError for a damaged file."""
        return read_json(self.folder(stage_id) / "provenance.json")

    def keep_estimate(self, digest: str, costs: Mapping[str, Any]) -> None:
        """Keep what a plan (by the digest of its record) was expected to cost."""
        path = make_folder(self.root, "estimates") / f"{digest}.json"
        write_json(path, costs)
        self.publish_files(path)

    def estimate(self, digest: str) -> dict[str, Any] | None:
        """What `keep_estimate` kept, None where no plan was made. ValueError for a damaged file."""
        return read_json(self.root / "estimates" / f"{digest}.json")

    def discard(self, path: Path) -> None:
        """Remove a file or folder of `root` on this machine alone."""
        remove(self.root, path)


_OPENERS: Registry[Callable[[str], Store]] = Registry("kind of store")


def register(opener: Opener) -> Opener:
    """Have `Store.open` call ``opener(uri) -> Store`` for URIs whose scheme is its name. Nothing
    of the store is created by it but, where it has one, the mirror on this machine."""
    _OPENERS.add(opener.__name__, opener, opener.__module__)
    return opener


def _local_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise ValueError(f"store {uri!r}: expected a folder, or a URI such as s3://bucket/runs")
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"store {uri!r}: file://{parts.netloc} is another machine; mount it")
    return Path(unquote(parts.path) if parts.scheme else uri).expanduser().absolute()


def read_json(path: Path, way_out: str = "remove it") -> dict[str, Any] | None:
    """A JSON object, None where there is no file. ValueError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {way_out}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (no JSON object): {way_out}")
    return value


def note_error(folder: Path, trace: str) -> str:
    """Write why a stage failed into its folder; returns where it is written, or why it is not."""
    path = folder / "error.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, trace)
    except OSError as error:  # a full disk fails a stage, and this as well
        return f"its traceback could not be kept: {error}"
    return f"traceback in {path}"
