"""File locks, folders that one of several processes builds, and pools that leave no orphans."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ssdet.system.safe_files import file_lock


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Let `build(work)` fill a folder and rename it to `folder`, unless that exists.

    The folder appears complete or not at all. One process builds while others wait; the remains of
    a killed build are deleted by the next.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return
        work = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        build(work)
        work.rename(folder)


def process_pool(processes: int | None = None) -> ProcessPoolExecutor:
    """Pool, by default of one process per usable core, that ends with its parent process."""
    count = processes or len(os.sched_getaffinity(0))
    return ProcessPoolExecutor(count, initializer=end_with_parent)


def end_with_parent() -> None:
    """Exit when the parent process dies (initializer of worker processes).

    Orphans would wait for work forever and, by the inherited descriptor, hold the lock of
    `build_once`, so that the same command, started again, would wait too.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
