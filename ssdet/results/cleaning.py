"""Removing from a store what no kept result needs."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ssdet.results.queries.index import load
from ssdet.search.trials import searches, stages_in_use
from ssdet.store.base import STAGE_ID, Store, locked
from ssdet.studies.graph.record import read_records, record_folder

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
    only looks. ValueError where a record cannot be read or a search runs: what they need is not
    known then.
    """
    with store.guard(), _searches_at_rest(store):
        far = store.elsewhere()
        names = sorted({*_stages(store), *far})
        busy = [name for name in names if store.busy(name)]
        reached = _reached(store) | _before(store, busy)
        sizes = store.tidy(STALE, busy, dry_run)
        for name in names:
            with suppress(BlockingIOError):  # has become busy
                sizes |= _clean(store, name, name in reached, far.get(name, 0), dry_run)
        for path in (*_leftovers(store), *_orphans(store, reached)):
            sizes[_name(store, path)] = size(path)
            if not dry_run and path.is_dir():
                store.discard(path)
            elif not dry_run:
                path.unlink()
    return Removed(sizes, tuple(busy))


def _before(store: Store, stages: Iterable[str]) -> set[str]:
    """Stages that are being run, with all that they came from."""
    lineage = load(store.root).lineage
    found = set(stages)
    for name in stages:
        with suppress(FileNotFoundError):  # it has the lock, and will write this
            identity = json.loads((store.folder(name) / "recipe.json").read_bytes())
            found |= {stage for parent in identity["parents"] for stage in lineage.chain(parent)}
    return found


@contextmanager
def _searches_at_rest(store: Store) -> Iterator[None]:
    store.refresh()
    with ExitStack() as held:
        for name in searches(store):
            try:
                held.enter_context(locked(store.root / "searches" / name / "lock", wait=False))
                held.enter_context(store.claim(f"searches-{name}"))
            except BlockingIOError as error:
                raise ValueError(
                    f"nothing was removed: search {name!r} is running; wait for its end"
                ) from error
        yield


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
    """Remove a stage that is not needed, or the partial files of one that is. `far`: its bytes
    on another file system than the folder.

    BlockingIOError where a process works on it.
    """
    place = store.folder(name)
    there = place.is_dir() or far
    if not needed or not there:  # of a stage that is not there, the lock
        with store.lock(name, wait=False):
            gone = place if there else place.with_suffix(".lock")
            found = {_name(store, gone): far or size(gone)}
        if not dry_run:
            store.remove(name)
        return found
    if not (partial := [path for path in place.rglob("*.partial") if path.is_file()]):
        return {}
    with store.lock(name, wait=False):
        found = {_name(store, path): size(path) for path in partial if path.exists()}
        for path in partial if not dry_run else ():
            path.unlink(missing_ok=True)
    return found


def _orphans(store: Store, kept: set[str]) -> Iterator[Path]:
    """Ensembles by query of which a member goes; they are made again when asked for."""
    for path in store.root.glob("ensembles/*/ensemble.json"):
        members = json.loads(path.read_bytes())["members"]
        if not {run for run, _ in members} <= kept:
            yield path.parent


def _leftovers(store: Store) -> Iterator[Path]:
    """What a killed removal or write left, beside the stages."""
    trash = store.root / "trash"
    yield from trash.iterdir() if trash.is_dir() else ()
    yield from store.studies.glob("*/*.partial")  # written under the guard, which is held here
    for path in (*store.root.glob("*.partial"), *store.root.glob("ensembles/*.partial")):
        with suppress(FileNotFoundError):  # renamed into place meanwhile
            if time.time() - path.stat().st_mtime > STALE:
                yield path


def dependents(store: Store, stage: str) -> tuple[list[str], list[str]]:
    """What needs a stage: finished stages that came from it; studies (NAME/PLAN) and searches."""
    records, _ = read_records(store)
    index = load(store.root)
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
    place, far = store.folder(stage), store.elsewhere().get(stage, 0)
    if not place.is_dir() and not far:
        raise ValueError(f"no stage {stage} in {store.uri}")
    with store.guard():
        store.refresh()
        children, studies = dependents(store, stage)
        if (children or studies) and not force:
            needed = ", ".join([*studies, *children])
            raise ValueError(f"{stage} is needed by {needed}: --force removes it all the same")
        found = {_name(store, place): far or size(place)}
        store.remove(stage)
    return Removed(found)


def remove_study(store: Store, name: str) -> Removed:
    """Remove the records of a study, or one of them (NAME/PLAN), with the last also its tables.

    Its stages stay until `collect`. ValueError where there is none.
    """
    study, _, digest = name.partition("/")
    place = record_folder(store, study)
    with store.guard():
        store.refresh()
        records = sorted(place.glob(f"{digest or '*'}.json"))
        if not records:
            raise ValueError(f"no record of study {name!r} in {store.root}")
        found = {_name(store, path): size(path) for path in records}
        for path in records:
            store.erase(path)
        if not any(place.glob("*.json")):
            tables = store.root / "tables" / study
            found |= {_name(store, path): size(path) for path in [tables] if path.is_dir()}
            for path in (path for path in (tables, place) if path.is_dir()):
                store.erase(path)
    return Removed(found)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(_bytes([path, *(path.rglob("*") if path.is_dir() else ())]))


def _bytes(paths: Iterable[Path]) -> Iterator[int]:
    for path in paths:
        with suppress(FileNotFoundError):  # another process may be at work here
            if path.is_file():
                yield path.lstat().st_size


def _name(store: Store, path: Path) -> str:
    return str(path.relative_to(store.root))
