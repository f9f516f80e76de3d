"""Removing from a store what no kept result needs."""

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ssdet.results.queries.index import load
from ssdet.search.trials import searches, stages_in_use
from ssdet.store.base import STAGE_ID, Store
from ssdet.studies.graph.record import read_records, record_folder
from ssdet.system.safe_files import TRASH, refuse_link, refuse_links

STALE = 3600.0
"""Seconds after which a partial file that no lock protects is nobody's work any more."""


@dataclass(frozen=True)
class Removed:
    """What was removed, or would be."""

    sizes: dict[str, int]
    """Bytes by path in the store."""
    busy: tuple[str, ...] = ()
    """Stages that a process works on; they were left alone."""

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def collect(store: Store, dry_run: bool = False) -> Removed:
    """Remove stages that no record of any study reaches, combinations of runs that are not kept,
    partial files that nobody writes any more, locks of stages that are not there, and what a
    killed removal left.

    What a record or a search's trial needs stays, and so does what a process works on. `dry_run`
    only looks: it writes nothing in the store, takes no lock, and what it lists may be out of date
    by the time it is read. ValueError where a record cannot be read or a search runs: what they
    need is not known then. LinkError for a symbolic link in the place of what would be removed.
    """
    if dry_run:
        store.refresh()
        for name in searches(store):
            if store.search_busy(name):
                raise _running(name)
        return _collect(store, dry_run)
    with store.recording_lock(), _searches_locked(store):
        return _collect(store, dry_run)


def _collect(store: Store, dry_run: bool) -> Removed:
    refuse_link(store.root / TRASH)
    far = store.remote_sizes()
    names = sorted({*_stages(store), *far})
    busy = [name for name in names if store.busy(name)]
    reached = _reached(store) | _ancestors(store, busy)
    sizes = store.remove_unreferenced(STALE, busy, dry_run)
    for name in names:
        with suppress(BlockingIOError):  # has become busy
            sizes |= _clean(store, name, name in reached, far.get(name, 0), dry_run)
    for path in (*_leftovers(store), *_orphans(store, reached)):
        refuse_links(store.root, path)
        sizes[_name(store, path)] = size(path)
        if not dry_run:
            _discard(store, path)
    return Removed(sizes, tuple(busy))


def _ancestors(store: Store, stages: Iterable[str]) -> set[str]:
    """Stages that are being run, with all that they came from."""
    lineage = load(store.root, write=False).lineage
    needed = set(stages)
    for name in stages:
        with suppress(FileNotFoundError):  # it has the lock, and will write this
            identity = json.loads((store.folder(name) / "recipe.json").read_bytes())
            needed |= {stage for parent in identity["parents"] for stage in lineage.chain(parent)}
    return needed


@contextmanager
def _searches_locked(store: Store) -> Iterator[None]:
    store.refresh()
    with ExitStack() as held:
        for name in searches(store):
            try:
                held.enter_context(store.search_lock(name))
            except BlockingIOError as error:
                raise _running(name) from error
        yield


def _running(search: str) -> ValueError:
    return ValueError(f"nothing was removed: search {search!r} is running; wait for its end")


def _reached(store: Store) -> set[str]:
    records, faults = read_records(store)
    if faults:
        raise ValueError("nothing was removed: " + "; ".join(faults.values()))
    return {stage for record in records for stage in record.stages} | stages_in_use(store)


def _stages(store: Store) -> list[str]:
    """Ids that have a folder or a lock."""
    names = {name.removesuffix(".lock") for name in os.listdir(store.root / "stages")}
    return sorted(filter(STAGE_ID.fullmatch, names))


def _clean(store: Store, name: str, needed: bool, far: int, dry_run: bool) -> dict[str, int]:
    """Remove a stage that is not needed, or the partial files of one that is; bytes by name.
    `far`: its bytes on another file system than the folder.

    Nothing where a process works on it.
    """
    place = store.folder(name)
    refuse_link(place)
    there = place.is_dir() or far
    if not needed or not there:  # of a stage that is not there, the lock
        gone = place if there else place.with_suffix(".lock")
        sizes = {_name(store, gone): far or size(gone)}
        if dry_run:
            return {} if store.busy(name) else sizes
        store.remove(name)
        return sizes
    if not (partial := [path for path in place.rglob("*.partial") if path.is_file()]):
        return {}
    if dry_run:
        return {} if store.busy(name) else _sizes(store, partial)
    with store.lock(name, wait=False):
        sizes = _sizes(store, partial)
        for path in partial:
            _discard(store, path)
    return sizes


def _discard(store: Store, path: Path) -> None:
    with suppress(FileNotFoundError):  # renamed into place, or removed, meanwhile
        store.discard(path)


def _orphans(store: Store, kept: set[str]) -> Iterator[Path]:
    """Ensembles by query of which a member goes; they are made again when asked for."""
    for path in store.root.glob("ensembles/*/ensemble.json"):
        members = json.loads(path.read_bytes())["members"]
        if not {run for run, _ in members} <= kept:
            yield path.parent


def _leftovers(store: Store) -> Iterator[Path]:
    """What a killed removal or write left, beside the stages."""
    trash = store.root / TRASH
    yield from trash.iterdir() if trash.is_dir() else ()
    yield from store.studies.glob("*/*.partial")  # written under the lock that is held here
    for pattern in (
        "*.partial",
        "ensembles/*.partial",
        "estimates/*.partial",
        "tables/*/*.partial",
    ):
        for path in store.root.glob(pattern):
            with suppress(FileNotFoundError):  # renamed into place meanwhile
                if time.time() - path.lstat().st_mtime > STALE:
                    yield path


def dependents(store: Store, stage: str) -> tuple[list[str], list[str]]:
    """What needs a stage: finished stages that came from it; studies (NAME/PLAN) and searches."""
    records, _ = read_records(store)
    index = load(store.root, write=False)
    children = [
        name for name in index.finished if stage in index.lineage.chain(name) and name != stage
    ]
    studies = [f"{record.name}/{record.digest}" for record in records if stage in record.stages]
    studies += ["a search"] if stage in stages_in_use(store) else []
    return children, studies


def remove_stage(store: Store, stage: str, force: bool = False) -> Removed:
    """Remove one stage's folder.

    ValueError where it is not there, or, without `force`, where finished stages or a study need
    it; BlockingIOError where a process works on it.
    """
    place, far = store.folder(stage), store.remote_sizes().get(stage, 0)
    if not place.is_dir() and not far:
        raise ValueError(f"no stage {stage} in {store.uri}")
    with store.recording_lock():
        store.refresh()
        children, studies = dependents(store, stage)
        if (children or studies) and not force:
            needed = ", ".join([*studies, *children])
            raise ValueError(f"{stage} is needed by {needed}: --force removes it all the same")
        sizes = {_name(store, place): far or size(place)}
        store.remove(stage)
    return Removed(sizes)


def remove_study(store: Store, name: str) -> Removed:
    """Remove the records of a study, or one of them (NAME/PLAN), with the last also its tables.

    Its stages stay until `collect`. ValueError where there is none.
    """
    study, _, digest = name.partition("/")
    place = record_folder(store, study)
    with store.recording_lock():
        store.refresh()
        records = sorted(place.glob(f"{digest or '*'}.json"))
        if not records:
            raise ValueError(f"no record of study {name!r} in {store.root}")
        tables = store.root / "tables" / study
        for path in (*records, tables):
            refuse_links(store.root, path)
        sizes = _sizes(store, records)
        for path in records:
            store.remove_files(path)
        if not any(place.glob("*.json")):
            sizes |= _sizes(store, [tables] if tables.is_dir() else [])
            for path in (path for path in (tables, place) if path.is_dir()):
                store.remove_files(path)
    return Removed(sizes)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    folder = path.is_dir() and not path.is_symlink()
    return sum(_bytes([path, *(path.rglob("*") if folder else ())]))


def _sizes(store: Store, paths: Iterable[Path]) -> dict[str, int]:
    """Bytes by path in the store."""
    return {_name(store, path): size(path) for path in paths}


def _bytes(paths: Iterable[Path]) -> Iterator[int]:
    for path in paths:
        with suppress(FileNotFoundError):  # another process may be at work here
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                yield status.st_size


def _name(store: Store, path: Path) -> str:
    return str(path.relative_to(store.root))
