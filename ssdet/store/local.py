"""A store in a folder that all processes see: on a disk, or mounted on several machines."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdet.data.storage.filesystem import Stamp, walk
from ssdet.store.base import StageElsewhere, Store, read_json
from ssdet.system.safe_files import (
    below,
    file_lock,
    is_locked,
    make_folder,
    remove,
    write_bytes,
    write_json,
)  # fmt: skip


@dataclass(frozen=True)
class LocalStore(Store):
    """A store in the folder `root`; nothing is anywhere else, so nothing is fetched or published.

    Locks are `flock`s of files, which a mounted file system must support.
    """

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def substore(self, name: str) -> Store:
        return Store.open(make_folder(self.root, name))

    def exists(self) -> bool:
        return (self.root / "stages").is_dir()

    def refresh(self) -> None:
        """The folder is always up to date."""

    def begin(self, stage_id: str) -> Path:
        return make_folder(self.root, "stages", self.folder(stage_id).name)

    def result(self, stage_id: str) -> dict[str, Any] | None:
        return read_json(self.folder(stage_id) / "DONE", "remove the folder, and it runs again")

    def finish(self, stage_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        if (earlier := self.result(stage_id)) is not None:
            return earlier
        write_json(self.begin(stage_id) / "DONE", result)
        return dict(result)

    def retry_finish(self, stage_id: str) -> dict[str, Any] | None:
        """Nothing can fail between the work and `DONE`, which is written in one step."""
        return None

    def fetch(self, stage_id: str, part: str = "") -> Path:
        return self.folder(stage_id)

    def has_file(self, stage_id: str, name: str) -> bool:
        return (self.folder(stage_id) / name).is_file()

    def fetch_progress(self, stage_id: str, exactly: bool = False) -> None:
        """It lies in the stage's folder."""

    def publish_progress(self, stage_id: str) -> None:
        """Everybody sees the stage's folder."""

    def keep_progress_published(self, stage_id: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def remove(self, stage_id: str) -> None:
        folder, lock = self.folder(stage_id), self.lock_path(stage_id)
        with self.lock(stage_id, wait=False):
            if os.path.lexists(folder):
                remove(self.root, folder)
            remove(self.root, lock)

    def remote_sizes(self) -> dict[str, int]:
        return {}

    def remove_unreferenced(
        self, age: float, busy: Collection[str], dry_run: bool
    ) -> dict[str, int]:
        return {}

    def view_elsewhere(self) -> Callable[[Collection[str]], Mapping[str, StageElsewhere]]:
        return lambda stages: {}

    @contextmanager
    def lock(self, stage_id: str, wait: bool = True) -> Iterator[None]:
        with file_lock(self.lock_path(stage_id), wait):
            yield

    def busy(self, stage_id: str) -> bool:
        return self.works_here(stage_id)

    @contextmanager
    def search_lock(self, name: str) -> Iterator[None]:
        folder = self.search_folder(name)
        with file_lock(folder / "lock", wait=False):
            if live_drivers(folder):
                raise BlockingIOError(f"search {name!r} has a driver")
            yield

    def search_busy(self, name: str) -> bool:
        folder = self.root / "searches" / name
        return is_locked(folder / "lock") or bool(live_drivers(folder))

    def drive_search(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def recording_lock(self) -> Iterator[None]:
        with file_lock(make_folder(self.root, "studies") / ".lock"):
            yield

    def publish_files(self, path: Path) -> None:
        self.shared_name(path)  # nothing else to do: everybody sees the folder

    def remove_files(self, path: Path) -> None:
        remove(self.root, path)

    def list_shared(self, folder: str) -> dict[str, Stamp]:
        stamps = {}
        for name, path in walk(below(self.root, folder)):
            with suppress(FileNotFoundError):  # removed meanwhile
                status = path.stat()
                stamps[f"{folder}/{name}"] = Stamp(status.st_size, status.st_mtime_ns)
        return stamps

    def read_shared(self, name: str) -> bytes:
        return below(self.root, name).read_bytes()

    def write_shared(self, name: str, data: bytes) -> None:
        path = below(self.root, name)
        self.root.mkdir(parents=True, exist_ok=True)
        make_folder(self.root, *path.relative_to(self.root).parts[:-1])
        write_bytes(path, data)

    def remove_shared(self, name: str) -> None:
        path = below(self.root, name)
        with suppress(FileNotFoundError):
            remove(self.root, path)
        with suppress(OSError):  # others' files are in it
            path.parent.rmdir()


def live_drivers(folder: Path) -> set[str]:
    """Ids of the drivers that work on the search in this folder: each holds `drivers/ID.lock`."""
    return {lock.stem for lock in (folder / "drivers").glob("*.lock") if is_locked(lock)}
