"""A store on a remote file system: a mirror on this machine, and what keeps the two equal.

| remote | holds |
|---|---|
| `done/ID.json` | a finished stage: its result, small files, names and checksums of the others |
| `resume/ID.json` | the same of a half-done stage's last checkpoint |
| `stages/ID/FILE.HASH` | files, each under a name that no other content has |
| `leases/…` | who is at work on what |
| `studies/ tables/ estimates/ searches/` | as in a folder |
| `scores/ID/` | what is in a folder's `stages/ID/scores/` |

The mirror has the layout of any store; what it knows of the remote side lies in its `remote/`.
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
from ssdet.store.base import STAGE_ID, Store, locked, write_json
from ssdet.store.leases import Lease
from ssdet.store.uploads import Pointer, Pusher, drop, of_stage, pack, read, unpack

T = TypeVar("T")
log = logging.getLogger(__name__)

SHARED = ("studies", "tables", "estimates", "searches", "scores")
AT_ONCE = 16
"""Small files that are fetched at the same time."""


@dataclass(frozen=True)
class RemoteStore(Store):
    """A store at a URI; `root` is its mirror in the cache folder of this machine."""

    address: str

    @classmethod
    def of(cls, uri: str) -> "RemoteStore":
        """Store at a URI; the mirror's own folder is made, nothing is asked of the other side."""
        base, mark, query = uri.partition("?")
        address = base.rstrip("/") + mark + query
        Remote(address)
        key = hashlib.sha256(address.encode()).hexdigest()[:20]
        store = cls(cache_folder() / "stores" / key, address)
        (store.root / "remote" / "done").mkdir(parents=True, exist_ok=True)
        (store.root / "stages").mkdir(exist_ok=True)
        return store

    @property
    def uri(self) -> str:
        return self.address

    @property
    def remote(self) -> Remote:
        """The other side."""
        return Remote(self.address)

    @property
    def machine(self) -> str:
        """Names this mirror; processes that share it keep apart by its locks."""
        path = self.root / "remote" / "machine"
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                path.write_text(uuid.uuid4().hex)
            return path.read_text()

    def inside(self, name: str) -> Store:
        base, mark, query = self.address.partition("?")
        return Store.open(f"{base}/{name}{mark}{query}")

    def exists(self) -> bool:
        return self.remote.exists()

    def result(self, stage_id: str) -> dict[str, Any] | None:
        if (known := super().result(stage_id)) is not None:
            return known
        found = read(self.remote, f"done/{stage_id}.json")
        return None if found is None else dict(found.result or {})

    @contextmanager
    def lock(self, stage_id: str, wait: bool = True) -> Iterator[None]:
        with super().lock(stage_id, wait), self._lease(stage_id).held(wait):
            yield

    def busy(self, stage_id: str) -> bool:
        return super().busy(stage_id) or self._lease(stage_id).holder() is not None

    @contextmanager
    def guard(self) -> Iterator[None]:
        with super().guard(), self._lease("guard").held():
            yield

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        with self._lease(name).held(wait=False):
            yield

    def local(self, stage_id: str, part: str = "") -> Path:
        folder = self.folder(stage_id)
        pointer = self._known(stage_id)
        if pointer is None or not (folder / "DONE").is_file():
            if (pointer := read(self.remote, f"done/{stage_id}.json")) is None:
                return folder
            with locked(folder.with_suffix(".lock"), wait=False):
                self._adopt(stage_id, pointer)
        for name, parcel in pointer.files.items():
            wanted = not part or name == part or name.startswith(f"{part}/")
            if wanted and not _there(folder / name, parcel.size):
                try:
                    unpack(self.remote, parcel, folder / name)
                except FileNotFoundError as error:
                    raise _gone(self.remote, f"done/{stage_id}.json") from error
        return folder

    def holds(self, stage_id: str, name: str) -> bool:
        pointer = self._known(stage_id)
        return super().holds(stage_id, name) or (pointer is not None and name in pointer.files)

    def finish(self, stage_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        write_json(self._unpublished(stage_id), result)
        published = self.publish(stage_id)
        assert published is not None
        return published

    def publish(self, stage_id: str) -> dict[str, Any] | None:
        path, folder = self._unpublished(stage_id), self.folder(stage_id)
        if not path.is_file() or not folder.is_dir():
            return None
        result = json.loads(path.read_text())
        done, remote = f"done/{stage_id}.json", self.remote
        if (found := read(remote, done)) is None:
            ours = Pointer(pack(remote, stage_id, folder, of_stage(folder)), result)
            found = read(remote, done)
        if found is not None:
            log.warning("%s: was finished before, perhaps elsewhere: that one counts", stage_id)
            self._adopt(stage_id, found)
        else:
            remote.write(done, (found := ours).to_bytes())
            write_json(folder / "DONE", result)
            self._know(stage_id, found)
        path.unlink(missing_ok=True)
        self._end_progress(stage_id, found)
        return dict(found.result or {})

    def progress(self, stage_id: str) -> Pusher:
        return Pusher(self.remote, stage_id, self.folder(stage_id))

    def offer(self, stage_id: str) -> None:
        pusher = self.progress(stage_id)
        pusher.look()
        pusher.push()

    def resume(self, stage_id: str, exactly: bool = False) -> None:
        folder, name = self.folder(stage_id), f"resume/{stage_id}.json"
        for last in (False, False, True):
            pointer = read(self.remote, name)
            if pointer is None or self._is_here(stage_id, pointer, exactly):
                return
            # The checkpoint comes last: what is killed before it fetches all again.
            order = sorted(pointer.files, key=lambda file: file == "checkpoints/last.pt")
            try:
                for file in order:
                    unpack(self.remote, pointer.files[file], folder / file)
                    os.utime(folder / file, ns=(pointer.mtime_ns, pointer.mtime_ns))
                return
            except FileNotFoundError as error:  # replaced by a newer one meanwhile
                if last:
                    raise _gone(self.remote, name) from error

    def forget(self, stage_id: str) -> None:
        for pointer in ("done", "resume"):
            self.remote.delete(f"{pointer}/{stage_id}.json")
        for folder in ("stages", "scores"):
            self.remote.delete_folder(f"{folder}/{stage_id}")
        for path in (self._known_path(stage_id), self._unpublished(stage_id)):
            path.unlink(missing_ok=True)

    def elsewhere(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for folder in ("stages", "done", "resume"):
            for name, stamp in self.remote.list(folder, deep=True).items():
                stage_id = name.split("/")[1].removesuffix(".json")
                sizes[stage_id] = sizes.get(stage_id, 0) + stamp.size
        return sizes

    def refresh(self) -> None:
        with locked(self.root / "remote" / "lock"):
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
        pointers = _many(lambda name: read(self.remote, f"done/{name}.json"), new)
        gone = known.keys() - there.keys()
        changed = dict(zip(new, pointers, strict=True)) | dict.fromkeys(gone)
        for name, pointer in changed.items():
            # What a process of this machine is at work on is its own to bring up to date.
            with suppress(BlockingIOError), locked(self._lock_path(name), wait=False):
                if pointer is not None:
                    self._adopt(name, pointer, there[name])
                else:
                    self._drop(name)

    def _refresh_folder(self, folder: str) -> None:
        path = self.root / "remote" / f"{folder}.json"
        known = {k: Stamp(*v) for k, v in (_json(path) or {}).items()}
        there = self.remote.list(folder, deep=True)
        new = [n for n, stamp in there.items() if known.get(n) != stamp or not self._at(n).exists()]
        stamps = _many(lambda name: self.remote.fetch(name, self._at(name)), new)
        for gone in known.keys() - there.keys():
            self._at(gone).unlink(missing_ok=True)
        if new or known.keys() != there.keys():
            write_json(path, there | dict(zip(new, stamps, strict=True)))

    def _at(self, name: str) -> Path:
        """Where a shared file lies in the mirror."""
        folder, _, rest = name.partition("/")
        stage_id, _, file = rest.partition("/")
        return self.folder(stage_id) / "scores" / file if folder == "scores" else self.root / name

    def _shared_name(self, path: Path) -> str:
        """Name of a file or folder of the mirror on the other side."""
        parts = path.relative_to(self.root).parts
        if parts[0] == "stages" and parts[2:3] == ("scores",):
            return "/".join(("scores", parts[1], *parts[3:]))
        if parts[0] not in SHARED:
            raise ValueError(f"{path} is nothing that stores share")
        return "/".join(parts)

    def share(self, path: Path) -> None:
        name = self._shared_name(path)
        files = [name] if path.is_file() else [f"{name}/{below}" for below, _ in walk(path)]
        files = [file for file in files if not file.endswith("lock") and "/ray/" not in file]
        ledger = self.root / "remote" / f"{name.partition('/')[0]}.json"
        with locked(self.root / "remote" / "lock"):  # else a refresh takes it for another's
            for file in files:
                with open(self._at(file), "rb") as source:
                    self.remote.push(source, file)
                write_json(ledger, {**(_json(ledger) or {}), file: self.remote.stat(file)})

    def erase(self, path: Path) -> None:
        name = self._shared_name(path)
        (self.remote.delete if path.is_file() else self.remote.delete_folder)(name)
        super().erase(path)

    def tidy(self, age: float, busy: Collection[str], dry_run: bool) -> dict[str, int]:
        """Remove files of stages (but these) that no pointer names and that are older than `age`
        seconds: what interrupted uploads and lost races left. Bytes by name."""
        found: dict[str, dict[str, int]] = {}
        for name, stamp in self.remote.list("stages", deep=True).items():
            if time.time() - stamp.mtime_ns / 1e9 > age:
                found.setdefault(name.split("/")[1], {})[name] = stamp.size
        sizes: dict[str, int] = {}
        for stage_id in found.keys() - set(busy):
            files = found[stage_id]
            pointers = [read(self.remote, f"{kind}/{stage_id}.json") for kind in ("done", "resume")]
            named = {key for pointer in pointers if pointer for key in pointer.keys}
            sizes |= {name: size for name, size in files.items() if name not in named}
        if not dry_run:
            drop(self.remote, sizes)
        return sizes

    def _is_here(self, stage_id: str, pointer: Pointer, exactly: bool) -> bool:
        """Whether the checkpoint here is as new as the shown one, or exactly that."""
        mine = self.progress(stage_id).written()
        if not exactly:
            return mine >= pointer.mtime_ns
        folder = self.folder(stage_id)
        whole = all(_there(folder / name, file.size) for name, file in pointer.files.items())
        return mine == pointer.mtime_ns and whole

    def _lease(self, name: str) -> Lease:
        return Lease(self.remote, f"leases/{name}.json", self.machine)

    def _lock_path(self, stage_id: str) -> Path:
        return self.folder(stage_id).with_suffix(".lock")

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
        """Note what the other side says of a finished stage."""
        path = self._known_path(stage_id)
        work = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        work.write_bytes(pointer.to_bytes())
        if stamp := stamp or self.remote.stat(f"done/{stage_id}.json"):
            os.utime(work, ns=(stamp.mtime_ns, stamp.mtime_ns))
        os.replace(work, path)

    def _adopt(self, stage_id: str, pointer: Pointer, stamp: Stamp | None = None) -> None:
        """Make the mirror say what the other side says of a finished stage; the caller holds the
        stage's lock. Of an own attempt nothing stays: its files are not what the result is of."""
        self._drop(stage_id)
        folder = self.folder(stage_id)
        for name, parcel in pointer.files.items():
            if not parcel.key:
                unpack(self.remote, parcel, folder / name)
        folder.mkdir(exist_ok=True)
        write_json(folder / "DONE", pointer.result)
        self._know(stage_id, pointer, stamp)

    def _drop(self, stage_id: str) -> None:
        """Remove a stage from the mirror."""
        self._known_path(stage_id).unlink(missing_ok=True)
        self._unpublished(stage_id).unlink(missing_ok=True)
        if self.folder(stage_id).is_dir():
            self.discard(self.folder(stage_id))

    def _end_progress(self, stage_id: str, done: Pointer) -> None:
        """Remove the checkpoint of a stage that is finished."""
        name = f"resume/{stage_id}.json"
        try:
            if (pointer := read(self.remote, name)) is not None:
                self.remote.delete(name)
                drop(self.remote, pointer.keys - done.keys)
        except RemoteError as error:
            log.warning("%s: its last checkpoint stays until `gc`: %s", stage_id, error)


def _there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _many(act: Callable[[str], T], names: list[str]) -> list[T]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(act, names))


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _gone(remote: Remote, pointer: str) -> RemoteError:
    return RemoteError(
        f"{join(remote.uri, pointer)} names a file that is not there any more: restore it, or "
        "remove the pointer, and the stage runs again"
    )
