"""One task for each of many videos, in processes that may crash or hang, with a journal to go on
from after any interruption."""

import errno
import fcntl
import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.maintenance.digests import parts_digest
from ssdet.data.storage.build_once import end_with_parent
from ssdet.data.storage.cache import identity
from ssdet.data.video.frame_index import CorruptVideo
from ssdet.system.text_files import write_text

Record = dict[str, Any]
Task = Callable[[Video], Record]
Progress = Callable[[int, int], None]
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
READERS = 8
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Fault:
    """Why a task gave no result."""

    reason: str
    again: bool = False
    """Perhaps not the video's doing (input/output error, killed from outside)."""
    stop: bool = False
    """Every other video would meet the same: no room, or a read-only disk."""
    late: bool = False
    """The time limit passed."""


def sweep(
    videos: Sequence[Video],
    task: Task,
    journal: Path,
    options: str,
    processes: int | None,
    seconds: float,
    progress: Progress = lambda done, total: None,
    holds: Callable[[Record], bool] = lambda record: True,
) -> dict[str, Record]:
    """What `task` found out about each video, or its `fault`, by id.

    Taken from the journal where it was written of the same file (id, path, size, date, digest of
    parts of the content) with the same `options` and `holds` agrees. A fault that may pass
    (`again`), or that came of a shorter time limit, is not taken. `seconds` is the limit between
    two calls of `still_busy`. ValueError while another run uses the journal, OSError where nothing
    more can be written.
    """
    if seconds <= 0 or (processes is not None and processes < 1):
        raise ValueError(f"{processes} processes, limit {seconds} s: expected more than 0")
    records: dict[str, Record] = {}
    left = []
    with _opened(journal) as (known, append):
        keys = _keys(videos, options)
        for video in videos:
            record = known.get(video.id)
            if record is not None and _stands(record, keys[video.id], seconds) and holds(record):
                records[video.id] = record
            else:
                left.append(video)
        progress(len(records), len(videos))
        with closing(isolated(task, left, processes, seconds)) as results:
            for video, found in results:
                if isinstance(found, Fault) and found.stop:
                    raise OSError(f"stopped at video {video.id!r}: {found.reason}")
                records[video.id] = _record(video, keys[video.id], found, seconds)
                append(records[video.id])
                progress(len(records), len(videos))
    return records


def isolated(
    task: Task, videos: Sequence[Video], processes: int | None, seconds: float
) -> Generator[tuple[Video, Record | Fault], None, None]:
    """Results of `task` as they come; what crashes, raises or overruns a process is a `Fault`."""
    usable = len(os.sched_getaffinity(0))
    count = min(usable if processes is None else processes, len(videos))
    waiting = iter(range(len(videos)))
    workers: dict[Connection, _Worker] = {}

    def begin(number: int) -> None:
        worker = _Worker(task, videos, seconds)
        worker.give(number)
        workers[worker.connection] = worker

    try:
        for _ in range(count):
            begin(next(waiting))
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                found = worker.result()
                yield videos[worker.number], found
                number = next(waiting, -1)
                if number >= 0 and worker.alive:
                    worker.give(number)
                    continue
                workers.pop(connection).end()
                if number >= 0:
                    begin(number)
    finally:
        for worker in workers.values():
            worker.end()


_limit = 0.0  # seconds; set in workers


def still_busy() -> None:
    """Let the time limit of the running task begin anew; nothing happens outside a worker."""
    if _limit:
        signal.setitimer(signal.ITIMER_REAL, _limit)


def need_files(manifest: Manifest) -> None:
    """ValueError for a data set of which no file was found or looked for."""
    if not any(video.path for video in manifest.videos):
        annotated = len(manifest.videos) + len(manifest.missing)
        raise ValueError(
            f"{manifest.name}: no file of its {annotated} videos "
            "is there: is the folder of videos given (--videos), and the right one?"
        )


def write_json(path: Path, value: object) -> None:
    """Replace a file whole."""
    work = path.with_name(f"{path.name}.partial")
    write_text(work, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(work, path)


class _Worker:
    """A process and the video that it is at."""

    def __init__(self, task: Task, videos: Sequence[Video], seconds: float) -> None:
        self.connection, theirs = _FORK.Pipe()
        self._seconds = seconds
        given = theirs, task, videos, seconds
        self._process = _FORK.Process(target=_serve, args=given, daemon=True)
        # A worker's garbage collector must not free what this process left, such as codecs: it
        # would wait for their threads, which only this process has.
        gc.freeze()
        try:
            self._process.start()
        finally:
            gc.unfreeze()
        theirs.close()
        self.number, self.alive = -1, True

    def give(self, number: int) -> None:
        self.number = number
        with suppress(BrokenPipeError):  # it has died: told by result()
            self.connection.send(number)

    def result(self) -> Record | Fault:
        try:
            found: Record | Fault = self.connection.recv()
            return found
        except (EOFError, OSError):  # the latter in the middle of a result
            self.alive = False
            self._process.join()
            return _death(self._process.exitcode or 0, self._seconds)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, task: Task, videos: Sequence[Video], seconds: float) -> None:
    global _limit
    _limit = seconds
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # The kernel ends a process that overruns, whatever its decoder is caught in.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(EOFError):
        while True:
            video = videos[connection.recv()]
            still_busy()
            found = _run(task, video)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(found)


def _run(task: Task, video: Video) -> Record | Fault:
    try:
        return task(video)
    except CorruptVideo as error:
        return Fault(error.reason)
    except OSError as error:
        return Fault(f"{type(error).__name__}: {error}", again=True, stop=error.errno in NO_ROOM)
    except Exception as error:
        return Fault(f"{type(error).__name__}: {error}")


def _death(code: int, seconds: float) -> Fault:
    if code == -signal.SIGALRM:
        return Fault(f"no end within {seconds:g} s", late=True)
    if code == -signal.SIGKILL:
        return Fault("its process was killed from outside (out of memory?)", again=True)
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return Fault(f"decoding crashed the process ({how})")


def _keys(videos: Sequence[Video], options: str) -> dict[str, list[Any]]:
    """By id, what a record of a file is valid for; reading waits for disks, so in threads."""
    with ThreadPoolExecutor(READERS) as pool:
        keys = pool.map(partial(_key, options=options), videos)
        return {video.id: key for video, key in zip(videos, keys, strict=True)}


def _key(video: Video, options: str) -> list[Any]:
    try:
        return [options, *identity(video.path), parts_digest(video.path)]
    except OSError:  # the task meets it again, and says so
        return [options]


def _record(video: Video, key: list[Any], found: Record | Fault, seconds: float) -> Record:
    if isinstance(found, Fault):
        limit = seconds if found.late else None
        found = {"fault": found.reason, "again": found.again, "limit": limit}
    return {"id": video.id, "key": key, **found}


def _stands(record: Record, key: list[Any], seconds: float) -> bool:
    limit = record.get("limit")
    same = record["key"] == key and len(key) > 1
    return same and not record.get("again") and (not limit or seconds <= limit)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Record], Callable[[Record], None]]]:
    """The last record of each id, and a function that appends one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:  # unlike flock, not inherited by the workers
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{path}: another run uses it; wait for its end") from None
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)  # a kill in the middle of a line
        try:
            lines = [json.loads(line) for line in content[:whole].splitlines()]
        except ValueError as error:
            raise ValueError(f"{path}: {error}: remove it to begin anew") from error

        def append(record: Record) -> None:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()

        yield {line["id"]: line for line in lines}, append
