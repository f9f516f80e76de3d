"""Pool of processes that may crash or hang, one task per video, with a resumable journal."""

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
    """Failure of a task."""

    reason: str
    again: bool = False
    """Temporary error (input/output, killed from outside), to be retried by another run."""
    stop: bool = False
    """Error that affects all videos: a full or read-only disk."""
    timeout: bool = False


def run_journaled(
    videos: Sequence[Video],
    task: Task,
    journal: Path,
    options: str,
    processes: int | None,
    seconds: float,
    progress: Progress = lambda done, total: None,
    is_valid: Callable[[Record], bool] | None = None,
) -> dict[str, Record]:
    """Run `task` for each video and record its result, or its `fault`, in a journal; by id.

    Records of the journal are reused for unchanged files (id, path, size, date, digest of parts of
    the content) with the same `options` if `is_valid` accepts them, except for temporary faults
    (`again`) and timeouts of a shorter limit. `seconds` is the limit between two calls of
    `still_busy`. Raises ValueError while another run uses the journal, OSError if nothing more can
    be written.
    """
    if seconds <= 0 or (processes is not None and processes < 1):
        raise ValueError(f"{processes} processes, limit {seconds} s: expected more than 0")
    records: dict[str, Record] = {}
    remaining = []
    key_of = partial(_key, options)
    with _opened(journal) as (journaled, append):
        with ThreadPoolExecutor(READERS) as pool:  # reading waits for disks
            keys = {v.id: key for v, key in zip(videos, pool.map(key_of, videos), strict=True)}
        for video in videos:
            record, key = journaled.get(video.id), keys[video.id]
            usable = record is not None and _reusable(record, key, seconds)
            if record is not None and usable and (is_valid is None or is_valid(record)):
                records[video.id] = record
            else:
                remaining.append(video)
        progress(len(records), len(videos))
        with closing(run_isolated(task, remaining, processes, seconds)) as results:
            for video, result in results:
                if isinstance(result, Fault):
                    if result.stop:
                        raise OSError(f"stopped at video {video.id!r}: {result.reason}")
                    limit = seconds if result.timeout else None
                    result = {"fault": result.reason, "again": result.again, "limit": limit}
                records[video.id] = {"id": video.id, "key": keys[video.id], **result}
                append(records[video.id])
                progress(len(records), len(videos))
    return records


def run_isolated(
    task: Task, videos: Sequence[Video], processes: int | None, seconds: float
) -> Generator[tuple[Video, Record | Fault], None, None]:
    """Yield results of `task` as they arrive; a `Fault` for errors, crashes and timeouts."""
    usable = len(os.sched_getaffinity(0))
    count = min(usable if processes is None else processes, len(videos))
    queue = iter(range(len(videos)))
    workers: dict[Connection, _Worker] = {}

    def start(number: int) -> None:
        worker = _Worker(task, videos, seconds)
        worker.submit(number)
        workers[worker.connection] = worker

    try:
        for _ in range(count):
            start(next(queue))
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                result = worker.result()
                yield videos[worker.number], result
                number = next(queue, -1)
                if number >= 0 and worker.alive:
                    worker.submit(number)
                    continue
                workers.pop(connection).stop()
                if number >= 0:
                    start(number)
    finally:
        for worker in workers.values():
            worker.stop()


_limit = 0.0  # time limit in seconds; set in workers


def still_busy() -> None:
    """Restart the time limit of the running task; no effect outside a worker."""
    if _limit:
        signal.setitimer(signal.ITIMER_REAL, _limit)


def need_files(manifest: Manifest) -> None:
    """Raise ValueError for a data set without any file."""
    if not any(video.path for video in manifest.videos):
        annotated = len(manifest.videos) + len(manifest.missing)
        raise ValueError(
            f"{manifest.name}: no file of its {annotated} videos "
            "is there: is the folder of videos given (--videos), and the right one?"
        )


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    work = path.with_name(f"{path.name}.partial")
    write_text(work, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(work, path)


class _Worker:
    """A worker process and the number of its current video."""

    def __init__(self, task: Task, videos: Sequence[Video], seconds: float) -> None:
        self.connection, worker_end = _FORK.Pipe()
        self._seconds = seconds
        arguments = worker_end, task, videos, seconds
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        # The worker must not collect garbage of this process, such as codecs: it would wait for
        # their threads, which exist in this process only.
        gc.freeze()
        try:
            self._process.start()
        finally:
            gc.unfreeze()
        worker_end.close()
        self.number, self.alive = -1, True

    def submit(self, number: int) -> None:
        self.number = number
        with suppress(BrokenPipeError):  # the worker died: result() reports it
            self.connection.send(number)

    def result(self) -> Record | Fault:
        try:
            result: Record | Fault = self.connection.recv()
            return result
        except (EOFError, OSError):  # OSError in the middle of a result
            self.alive = False
            self._process.join()
            return _crash(self._process.exitcode or 0, self._seconds)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, task: Task, videos: Sequence[Video], seconds: float) -> None:
    global _limit
    _limit = seconds
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    # On a timeout the kernel ends the process, even inside a decoder.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(EOFError):
        while True:
            video = videos[connection.recv()]
            still_busy()
            result = _run(task, video)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)


def _run(task: Task, video: Video) -> Record | Fault:
    try:
        return task(video)
    except CorruptVideo as error:
        return Fault(error.reason)
    except OSError as error:
        return Fault(f"{type(error).__name__}: {error}", again=True, stop=error.errno in NO_ROOM)
    except Exception as error:
        return Fault(f"{type(error).__name__}: {error}")


def _crash(code: int, seconds: float) -> Fault:
    if code == -signal.SIGALRM:
        return Fault(f"no end within {seconds:g} s", timeout=True)
    if code == -signal.SIGKILL:
        return Fault("its process was killed from outside (out of memory?)", again=True)
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return Fault(f"decoding crashed the process ({how})")


def _key(options: str, video: Video) -> list[Any]:
    """Options, identity and digest for which a record of a file is valid."""
    try:
        return [options, *identity(video.path), parts_digest(video.path)]
    except OSError:  # the task meets and reports it
        return [options]


def _reusable(record: Record, key: list[Any], seconds: float) -> bool:
    limit = record.get("limit")
    same = record["key"] == key and len(key) > 1
    return same and not record.get("again") and (not limit or seconds <= limit)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Record], Callable[[Record], None]]]:
    """Open a journal: the last record of each id, and a function that appends a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:  # unlike flock, not inherited by the workers
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{path}: another run uses it; wait for its end") from None
        file.seek(0)
        content = file.read()
        complete = content.rfind(b"\n") + 1
        file.truncate(complete)  # the rest is a line cut by a kill
        try:
            lines = [json.loads(line) for line in content[:complete].splitlines()]
        except ValueError as error:
            raise ValueError(f"{path}: {error}: remove it to begin anew") from error

        def append(record: Record) -> None:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()

        yield {line["id"]: line for line in lines}, append
