"""Digests of videos' content, by which files are known to be the same as before."""

import os
import stat
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from ssdet.data.storage.filesystem import is_remote

PART = 1 << 16
PARTS = 16
"""So many parts of 64 KiB are read of a large file: 1 MiB, some 10 ms on an SSD."""


def parts_digest(path: str) -> str:
    """Digest of head, tail and 14 parts in between at equal distances, or of all of a small file.

    Of a folder: names, sizes and times of its files, and 16 of them in this way. Nothing of a
    remote file, whose store gives it a new time whenever it is written, or of a device. OSError
    where something cannot be read.
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
    for place in _spread(len(files), PARTS):
        for part in _parts(files[place], PARTS):
            digest.update(part)
    return digest.hexdigest()


def whole_digest(path: str, still_busy: Callable[[], None] = lambda: None) -> str:
    """Digest of all bytes of a file or of a folder's files; as `parts_digest` otherwise.

    `still_busy` is called after every MiB.
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
    place = Path(path)
    found = sorted(place.iterdir()) if place.is_dir() else [place]
    return [file for file in found if stat.S_ISREG(os.stat(file).st_mode)]


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
    """Numbers from 0 to length - 1 at equal distances, the first and the last among them."""
    if length <= count:
        return list(range(length))
    return [place * (length - 1) // (count - 1) for place in range(count)]
