"""A store on a remote file system: a mirror on this machine, and what keeps the two equal.

| remote | holds |
|---|---|
| `done/ID.json` | a finished stage: its result, small files, names and checksums of the others |
| `resume/ID.json` | the same of a half-done stage's last checkpoint |
| `stages/ID/FILE.HASH` | files, each under a name that no other content has |
| `leases/…` | which machine works on what |
| `studies/ tables/ estimates/ searches/` | as in a folder |
| `scores/ID/` | the files of a folder's `stages/ID/scores/` |

The mirror has the layout of any store; its `remote/` holds what was read of the remote side.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ssdet.data.storage.cache import cache_folder
from ssdet.data.storage.filesystem import Remote, RemoteError, Stamp, join, walk
from ssdet.store.base import SHARED, STAGE_ID, StageElsewhere, Store
from ssdet.store.leases import Lease
from ssdet.store.local import LocalStore
from ssdet.store.remote_view import AT_ONCE, RemoteView
from ssdet.store.uploads import (
    CheckpointUploader,
    Pointer,
    delete_files,
    download,
    read_pointer,
    stage_files,
    upload,
)  # fmt: skip
from ssdet.system.safe_files import (
    below,
    file_lock,
    make_folder,
    refuse_links,
    remove,
    replacing,
    write_json,
    write_text,
)  # fmt: skip

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteStore(Store):
    """A store at a URI; `root` is its mirror in the cache folder of this machine.

    Processes of one machine exclude each other by the mirror's locks, machines by leases.
    """

    root: Path
    address: str

    @classmethod
    def of(cls, uri: str) -> "RemoteStore":
        """Store at a URI; its mirror's folder is made, the remote side is not asked for anything.
        ValueError for a URI that pyarrow does not know."""
        base, mark, query = uri.partition("?")
        address = base.rstrip("/") + mark + query
        Remote(address)
        key = hashlib.sha256(address.encode()).hexdigest()[:20]
        store = cls(cache_folder() / "stores" / key, address)
        store.root.mkdir(parents=True, exist_ok=True)
        make_folder(store.root, "remote", "done")
        make_folder(store.root, "stages")
        return store

    @property
    def uri(self) -> str:
        return self.address

    @property
    def remote(self) -> Remote:
        """The other side."""
        return Remote(self.address)

    @property
    def mirror(self) -> LocalStore:
        """This machine's side."""
        return LocalStore(self.root)

    @property
    def machine(self) -> str:
        """Names this mirror; processes that share it exclude each other by its locks."""
        path = self.root / "remote" / "machine"
        with file_lock(path.with_suffix(".lock")):
            if not path.is_file():
                write_text(path, uuid.uuid4().hex)
            return path.read_text()

    def substore(self, name: str) -> Store:
        return Store.open(join(self.address, name))

    def exists(self) -> bool:
        return self.remote.exists()

    def begin(self, stage_id: str) -> Path:
        folder = self.mirror.begin(stage_id)
        self.fetch_progress(stage_id)
        return folder

    def result(self, stage_id: str) -> dict[str, Any] | None:
        if (known := self.mirror.result(stage_id)) is not None:
            return known
        pointer = read_pointer(self.remote, f"done/{stage_id}.json")
        return None if pointer is None else dict(pointer.result or {})

    @contextmanager
    def lock(self, stage_id: str, wait: bool = True) -> Iterator[None]:
        with self.mirror.lock(stage_id, wait), self._lease(stage_id).held(wait):
            yield

    def busy(self, stage_id: str) -> bool:
        return self.works_here(stage_id) or self._lease(stage_id).holder() is not None

    @contextmanager
    def recording_lock(self) -> Iterator[None]:
        with self.mirror.recording_lock(), self._lease("guard").held():
            yield

    @contextmanager
    def search_lock(self, name: str) -> Iterator[None]:
        with self.mirror.search_lock(name), self._lease(f"searches-{name}").held(wait=False):
            yield

    @contextmanager
    def drive_search(self, name: str) -> Iterator[None]:
        lock = self.root / "remote" / f"searches-{name}.lock"
        with file_lock(lock, wait=False), self._lease(f"searches-{name}").held(wait=False):
            yield

    def search_busy(self, name: str) -> bool:
        held_elsewhere = self._lease(f"searches-{name}").holder() is not None
        return self.mirror.search_busy(name) or held_elsewhere

    def fetch(self, stage_id: str, part: str = "") -> Path:
        folder = self.folder(stage_id)
        pointer = self._known(stage_id)
        if pointer is None or not (folder / "DONE").is_file():
            if (pointer := read_pointer(self.remote, f"done/{stage_id}.json")) is None:
                return folder
            with self.mirror.lock(stage_id, wait=False):
                self._adopt(stage_id, pointer)
        for name, file in pointer.files.items():
            wanted = not part or name == part or name.startswith(f"{part}/")
            if wanted and not _has_size(folder / name, file.size):
                try:
                    download(self.remote, file, folder / name)
                except FileNotFoundError as error:
                    raise _missing(self.remote, f"done/{stage_id}.json") from error
        return folder

    def has_file(self, stage_id: str, name: str) -> bool:
        pointer = self._known(stage_id)
        listed = pointer is not None and name in pointer.files
        return listed or self.mirror.has_file(stage_id, name)

    def finish(self, stage_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        make_folder(self.root, "stages", self.folder(stage_id).name)
        write_json(self._unpublished(stage_id), result)
        published = self.retry_finish(stage_id)
        assert published is not None
        return published

    def retry_finish(self, stage_id: str) -> dict[str, Any] | None:
        path, folder = self._unpublished(stage_id), self.folder(stage_id)
        if not path.is_file() or not folder.is_dir():
            return None
        result = json.loads(path.read_text())
        done, remote = f"done/{stage_id}.json", self.remote
        if (pointer := read_pointer(remote, done)) is None:
            ours = Pointer(upload(remote, stage_id, folder, stage_files(folder)), result)
            pointer = read_pointer(remote, done)
        if pointer is not None:
            log.warning("%s: was finished before, perhaps elsewhere: that one counts", stage_id)
            self._adopt(stage_id, pointer)
        else:
            remote.write(done, (pointer := ours).to_bytes())
            write_json(folder / "DONE", result)
            self._know(stage_id, pointer)
        path.unlink(missing_ok=True)
        self._end_progress(stage_id, pointer)
        return dict(pointer.result or {})

    def keep_progress_published(self, stage_id: str) -> CheckpointUploader:
        return CheckpointUploader(self.remote, stage_id, self.folder(stage_id))

    def publish_progress(self, stage_id: str) -> None:
        uploader = self.keep_progress_published(stage_id)
        uploader.read_last()
        uploader.upload()

    def fetch_progress(self, stage_id: str, exactly: bool = False) -> None:
        folder, name = self.folder(stage_id), f"resume/{stage_id}.json"
        for last in (False, False, True):
            pointer = read_pointer(self.remote, name)
            if pointer is None or self._is_here(stage_id, pointer, exactly):
                return
            # The checkpoint comes last: a process that is killed before fetches all again.
            order = sorted(pointer.files, key=lambda file: file == "checkpoints/last.pt")
            try:
                for file in order:
                    download(self.remote, pointer.files[file], folder / file)
                    os.utime(folder / file, ns=(pointer.mtime_ns, pointer.mtime_ns))
                return
            except FileNotFoundError as error:  # replaced by a newer one meanwhile
                if last:
                    raise _missing(self.remote, name) from error

    def remove(self, stage_id: str) -> None:
        refuse_links(self.root, self.folder(stage_id))
        with self.lock(stage_id, wait=False):
            for pointer in ("done", "resume"):
                self.remote.delete(f"{pointer}/{stage_id}.json")
            for folder in ("stages", "scores"):
                self.remote.delete_folder(f"{folder}/{stage_id}")
            self._drop(stage_id)
            remove(self.root, self.lock_path(stage_id))

    def remote_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for folder in ("stages", "done", "resume"):
            for name, stamp in self.remote.list(folder, deep=True).items():
                stage_id = name.split("/")[1].removesuffix(".json")
                sizes[stage_id] = sizes.get(stage_id, 0) + stamp.size
        return {name: size for name, size in sizes.items() if STAGE_ID.fullmatch(name)}

    def view_elsewhere(self) -> Callable[[Collection[str]], Mapping[str, StageElsewhere]]:
        return RemoteView(self.remote, self.root / "remote" / "machine").look

    def refresh(self) -> None:
        with file_lock(self.root / "remote" / "lock"):
            self._refresh_stages()
            for folder in SHARED:
                self._refresh_folder(folder)

    def _refresh_stages(self) -> None:
        there = {Path(name).stem: s for name, s in self.remote.list("done").items()}
        there = {name: stamp for name, stamp in there.items() if STAGE_ID.fullmatch(name)}
        known, stages = self._known_stamps(), str(self.root / "stages")
        new = [
            name
            for name, stamp in there.items()
            if known.get(name) != stamp or not os.access(f"{stages}/{name}/DONE", os.F_OK)
        ]
        pointers = _many(lambda name: read_pointer(self.remote, f"done/{name}.json"), new)
        gone = known.keys() - there.keys()
        changed = dict(zip(new, pointers, strict=True)) | dict.fromkeys(gone)
        for name, pointer in changed.items():
            # A process of this machine that works on a stage brings it up to date itself.
            with suppress(BlockingIOError), self.mirror.lock(name, wait=False):
                if pointer is not None:
                    self._adopt(name, pointer, there[name])
                else:
                    self._drop(name)

    def _refresh_folder(self, folder: str) -> None:
        path = self.root / "remote" / f"{folder}.json"
        known = {k: Stamp(*v) for k, v in (_json(path) or {}).items()}
        there = self.remote.list(folder, deep=True)
        new = [n for n, stamp in there.items() if known.get(n) != stamp or not self._at(n).exists()]
        for name in new:
            refuse_links(self.root, self._at(name))
        stamps = _many(lambda name: self.remote.fetch(name, self._at(name)), new)
        for gone in known.keys() - there.keys():
            with suppress(FileNotFoundError):
                remove(self.root, self._at(gone))
        if new or known.keys() != there.keys():
            write_json(path, there | dict(zip(new, stamps, strict=True)))

    def _at(self, name: str) -> Path:
        """Where a shared file lies in the mirror; ValueError for a name that leads out of it."""
        path = below(self.root, name)
        folder, _, rest = name.partition("/")
        stage_id, _, file = rest.partition("/")
        return self.folder(stage_id) / "scores" / file if folder == "scores" else path

    def publish_files(self, path: Path) -> None:
        name = self.shared_name(path)
        files = [name] if path.is_file() else [f"{name}/{inner}" for inner, _ in walk(path)]
        files = [file for file in files if not file.endswith("lock") and "/ray/" not in file]
        ledger = self.root / "remote" / f"{name.partition('/')[0]}.json"
        with file_lock(self.root / "remote" / "lock"):  # else a refresh takes it for another's
            for file in files:
                refuse_links(self.root, self._at(file))
                with open(self._at(file), "rb") as source:
                    self.remote.push(source, file)
                write_json(ledger, {**(_json(ledger) or {}), file: self.remote.stat(file)})

    def remove_files(self, path: Path) -> None:
        name = self.shared_name(path)
        refuse_links(self.root, path)
        (self.remote.delete if path.is_file() else self.remote.delete_folder)(name)
        remove(self.root, path)

    def list_shared(self, folder: str) -> dict[str, Stamp]:
        return self.remote.list(folder, deep=True)

    def read_shared(self, name: str) -> bytes:
        self._at(name)
        return self.remote.read(name)

    def write_shared(self, name: str, data: bytes) -> None:
        self._at(name)
        self.remote.write(name, data)

    def remove_shared(self, name: str) -> None:
        self._at(name)
        self.remote.delete(name)

    def remove_unreferenced(
        self, age: float, busy: Collection[str], dry_run: bool
    ) -> dict[str, int]:
        old: dict[str, dict[str, int]] = {}
        for name, stamp in self.remote.list("stages", deep=True).items():
            if time.time() - stamp.mtime_ns / 1e9 > age:
                old.setdefault(name.split("/")[1], {})[name] = stamp.size
        sizes: dict[str, int] = {}
        for stage_id in old.keys() - set(busy):
            names = [f"{kind}/{stage_id}.json" for kind in ("done", "resume")]
            pointers = [read_pointer(self.remote, name) for name in names]
            needed = {key for pointer in pointers if pointer for key in pointer.keys}
            sizes |= {name: size for name, size in old[stage_id].items() if name not in needed}
        if not dry_run:
            delete_files(self.remote, sizes)
        return sizes

    def _is_here(self, stage_id: str, pointer: Pointer, exactly: bool) -> bool:
        """Whether the checkpoint here is as new as the uploaded one, or exactly that."""
        mine = self.keep_progress_published(stage_id).written()
        if not exactly:
            return mine >= pointer.mtime_ns
        folder = self.folder(stage_id)
        whole = all(_has_size(folder / name, file.size) for name, file in pointer.files.items())
        return mine == pointer.mtime_ns and whole

    def _lease(self, name: str) -> Lease:
        return Lease(self.remote, f"leases/{name}.json", self.machine)

    def _unpublished(self, stage_id: str) -> Path:
        return self.root / "remote" / f"{stage_id}.unpublished"

    def _known_path(self, stage_id: str) -> Path:
        return self.root / "remote" / "done" / f"{stage_id}.json"

    def _known(self, stage_id: str) -> Pointer | None:
        path = self._known_path(stage_id)
        return Pointer.parse(path.read_bytes(), str(path)) if path.is_file() else None

    def _known_stamps(self) -> dict[str, Stamp]:
        """Stamps of the remote pointers that the mirror was last made equal to, by stage."""
        stamps = {}
        with os.scandir(self.root / "remote" / "done") as entries:
            for entry in entries:
                name, ending = os.path.splitext(entry.name)
                if ending == ".json":
                    with suppress(FileNotFoundError):  # another process of this machine is at work
                        status = entry.stat()
                        stamps[name] = Stamp(status.st_size, status.st_mtime_ns)
        return stamps

    def _know(self, stage_id: str, pointer: Pointer, stamp: Stamp | None = None) -> None:
        """Keep the pointer of a finished stage, with the time of the remote one."""
        stamp = stamp or self.remote.stat(f"done/{stage_id}.json")
        with replacing(self._known_path(stage_id)) as work:
            work.write_bytes(pointer.to_bytes())
            if stamp:
                os.utime(work, ns=(stamp.mtime_ns, stamp.mtime_ns))

    def _adopt(self, stage_id: str, pointer: Pointer, stamp: Stamp | None = None) -> None:
        """Make the mirror's stage equal to the finished remote one; the caller holds the mirror's
        lock of it. Nothing of an own attempt stays: the result is not of its files."""
        self._drop(stage_id)
        folder = self.mirror.begin(stage_id)
        for name, file in pointer.files.items():
            if not file.key:
                download(self.remote, file, folder / name)
        write_json(folder / "DONE", pointer.result)
        self._know(stage_id, pointer, stamp)

    def _drop(self, stage_id: str) -> None:
        """Remove a stage from the mirror."""
        self._known_path(stage_id).unlink(missing_ok=True)
        self._unpublished(stage_id).unlink(missing_ok=True)
        if os.path.lexists(self.folder(stage_id)):
            remove(self.root, self.folder(stage_id))

    def _end_progress(self, stage_id: str, done: Pointer) -> None:
        """Remove the checkpoint of a stage that is finished."""
        name = f"resume/{stage_id}.json"
        try:
            if (pointer := read_pointer(self.remote, name)) is not None:
                self.remote.delete(name)
                delete_files(self.remote, pointer.keys - done.keys)
        except RemoteError as error:
            log.warning("%s: its last checkpoint stays until `gc`: %s", stage_id, error)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _many(act: Callable[[str], T], names: list[str]) -> list[T]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(act, names))


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _missing(remote: Remote, pointer: str) -> RemoteError:
    return RemoteError(
        f"{join(remote.uri, pointer)} names a file that is not there any more: restore it, or "
        "remove the pointer, and the stage runs again"
    )
