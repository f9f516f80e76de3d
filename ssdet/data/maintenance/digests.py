"""Digests of video files, by which unchanged files are recognised."""

import os
import stat
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from ssdet.data.storage.filesystem import is_remote

PART = 1 << 16
PARTS = 16
"""Number of 64-KiB parts read of a large file: 1 MiB in all, some 10 ms on an SSD."""


def parts_digest(path: str) -> str:
    """Digest of head, tail and 14 evenly spaced parts of a file, or of all of a small one.

    For a folder: of names, sizes and times of its files and of 16 files in this way. Empty for a
    remote file, whose time changes with each write; devices are skipped. Raises OSError.
    """
    if is_remote(path):
        return ""
    digest = blake2b(digest_size=16)
    files = _files(path)
    for file in files:
        status = os.stat(file)
        digest.update(
            f"{file.name}/{status.st_size}/{status.st_mtime_ns}/".encode(errors="replace")
        )
    for number in _spread(len(files), PARTS):
        for part in _parts(files[number], PARTS):
            digest.update(part)
    return digest.hexdigest()


def whole_digest(path: str, still_busy: Callable[[], None] = lambda: None) -> str:
    """Digest of all bytes of a file or of a folder's files; otherwise as `parts_digest`.

    Calls `still_busy` after every MiB.
    """
    if is_remote(path):
        return ""
    digest = blake2b(digest_size=16)
    for file in _files(path):
        digest.update(f"{file.name}/{file.stat().st_size}/".encode(errors="replace"))
        with open(file, "rb") as content:
            while part := content.read(16 * PART):
                digest.update(part)
                still_busy()
    return digest.hexdigest()


def _files(path: str) -> list[Path]:
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    return [file for file in files if stat.S_ISREG(os.stat(file).st_mode)]


def _parts(file: Path, count: int) -> Iterator[bytes]:
    size = os.path.getsize(file)
    with open(file, "rb") as content:
        if size <= count * PART:
            yield content.read()
            return
        for start in _spread(size - PART + 1, count):
            content.seek(start)
            yield content.read(PART)


def _spread(length: int, count: int) -> list[int]:
    """At most `count` evenly spaced numbers from 0 to length - 1, both included."""
    if length <= count:
        return list(range(length))
    return [i * (length - 1) // (count - 1) for i in range(count)]
