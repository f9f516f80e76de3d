"""Copies of remote files in the cache folder: annotations and videos read through them."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ssdet.data.storage.filesystem import Remote, Stamp, is_remote, join, parent, walk
from ssdet.data.storage.folders import EXTENSIONS

ROOM = 2 << 30
"""Bytes of disk that copies leave free."""

ANNOTATIONS = (".csv", ".json", ".txt")
VIDEOS = (*EXTENSIONS, *(ending.upper() for ending in EXTENSIONS))

_stamps: dict[str, Stamp] = {}
_copies: dict[str, Path] = {}
_roots: dict[str, str] = {}


def cache_folder() -> Path:
    """SSDET_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SSDET_CACHE", Path.home() / ".cache" / "ssdet"))


def stamp_of(uri: str) -> Stamp:
    """Size and time of a remote file as this process saw them first; FileNotFoundError without
    one."""
    if uri not in _stamps:
        if (found := Remote(uri).stat()) is None:
            raise FileNotFoundError(f"{uri} is not there")
        _stamps[uri] = found
    return _stamps[uri]


def listing(uri: str, deep: bool = False) -> list[str]:
    """Names of the files in a remote folder; their sizes are known from then on."""
    found = Remote(uri).list(deep=deep)
    _stamps.update({join(uri, name): stamp for name, stamp in found.items()})
    return sorted(found)


def size_of(path: str) -> int:
    """Bytes of a file here or of a remote one; FileNotFoundError without one."""
    return stamp_of(path).size if is_remote(path) else os.path.getsize(path)


def cached(uri: str) -> Path | None:
    """A copy of a remote file in the cache folder, fetched first where it is not there; None where
    the disk has no room for it.

    The copy is named by URI, size and time: another content is another file. FileNotFoundError
    without a remote file, RemoteError where it cannot be fetched.
    """
    if (known := _copies.get(uri)) is not None and known.is_file():
        return known
    stamp = stamp_of(uri)
    key = _key(f"{uri}/{stamp.size}/{stamp.mtime_ns}")
    name = PurePosixPath(uri.partition("?")[0]).name
    target = cache_folder() / "remote" / key[:2] / key / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < stamp.size + ROOM:
            return None
        Remote(uri).fetch("", target)
    _copies[uri] = target
    return target


def identity(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Where a file is, its size and its time; FileNotFoundError without one."""
    text = os.fspath(path)
    if is_remote(text):
        return text, *stamp_of(text)
    status = os.stat(text)
    return os.path.abspath(text), status.st_size, status.st_mtime_ns


def source(path: str | os.PathLike[str]) -> str | Any:
    """What is to be read in place of a path: the file, the copy of a remote one or, where the disk
    has no room for a copy, the remote file itself, opened for reading in ranges.

    A whole copy is the rule: to find the frames of a video exactly all of it is read anyway.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return text
    copy = cached(text)
    return os.fspath(copy) if copy else Remote(text).open()


def stand_in(path: str | os.PathLike[str], deep: bool = False) -> Path:
    """The path itself or, for a remote file or folder, what stands for it on this machine.

    In it annotations (with what lies beside them) are copies, and videos empty files by which
    readers find them: `origin` tells what they stand for. `deep` takes in the folders below.
    Folders of pictures are left out. FileNotFoundError where there is nothing.
    """
    uri = os.fspath(path)
    if not is_remote(uri):
        return Path(uri)
    folder, name = (uri, "") if Remote(uri).stat() is None else parent(uri)
    wanted = [each for each in listing(folder, deep) if each.endswith((*ANNOTATIONS, *VIDEOS))]
    if not wanted and not name:
        raise FileNotFoundError(f"{uri} is not there, or holds no annotation and no video")
    root = cache_folder() / "remote" / "folders" / _key(f"{folder}/{deep}")
    root.mkdir(parents=True, exist_ok=True)
    with alone(root.with_suffix(".lock")):
        _stand(root, folder, wanted)
    _roots[str(root)] = folder
    return root / name


def origin(path: str) -> str:
    """The URI of a video in a `stand_in`; any other path as it is."""
    for root, uri in _roots.items():
        if path.startswith(root + os.sep):
            return join(uri, path[len(root) + 1 :])
    return path


def _stand(root: Path, uri: str, wanted: list[str]) -> None:
    """Make a folder hold copies of these annotations and empty files for these videos, no more."""
    for gone in {name for name, _ in walk(root)} - set(wanted):
        (root / gone).unlink()
    for name in wanted:
        target = root / name
        if name.endswith(ANNOTATIONS):
            copy = cached(join(uri, name))
            if copy is None:
                raise OSError(f"no room for a copy of {join(uri, name)} in {cache_folder()}")
            if not target.exists() or identity(target)[1:] != identity(copy)[1:]:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(copy, target)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """While the block lasts no other process of this machine is in one with this lock."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
