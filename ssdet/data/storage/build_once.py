"""Folders of derived files, built once by several processes, whatever is killed on the way."""

import fcntl
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Have `build(work)` fill a folder that then appears as `folder`, unless it is there already.

    It appears whole or not at all. One process builds while others wait; what one that was killed
    left behind is removed by the next.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return
        work = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        build(work)
        work.rename(folder)


def process_pool(processes: int | None = None) -> ProcessPoolExecutor:
    """Pool, by default of one process per usable core, that ends with the process that made it."""
    count = processes or len(os.sched_getaffinity(0))
    return ProcessPoolExecutor(count, initializer=end_with_parent)


def end_with_parent() -> None:
    """Orphans would wait for work for ever, and with the descriptor that they inherit hold the lock
    of `build_once`, for which the same command, given again, would wait."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
