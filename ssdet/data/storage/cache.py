"""Cache of remote files: local copies through which annotations and videos are read."""

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from ssdet.data.storage.filesystem import Remote, Stamp, is_remote, join, parent, walk
from ssdet.data.storage.folders import EXTENSIONS
from ssdet.system.safe_files import file_lock

RESERVED_BYTES = 2 << 30
"""Disk space that copies leave free."""
ANNOTATIONS = (".csv", ".json", ".txt")
VIDEOS = (*EXTENSIONS, *(ending.upper() for ending in EXTENSIONS))

_stamps: dict[str, Stamp] = {}
_copies: dict[str, Path] = {}
_mirrors: dict[str, str] = {}


def cache_folder() -> Path:
    """Folder SSDET_CACHE, or ~/.cache/ssdet."""
    return Path(os.environ.get("SSDET_CACHE", Path.home() / ".cache" / "ssdet"))


def stamp_of(uri: str) -> Stamp:
    """Size and time of a remote file when this process first looked. Raises FileNotFoundError."""
    if uri not in _stamps:
        if (stamp := Remote(uri).stat()) is None:
            raise FileNotFoundError(f"{uri} is not there")
        _stamps[uri] = stamp
    return _stamps[uri]


def listing(uri: str, deep: bool = False) -> list[str]:
    """Names of the files in a remote folder; remembers their stamps."""
    stamps = Remote(uri).list(deep=deep)
    _stamps.update({join(uri, name): stamp for name, stamp in stamps.items()})
    return sorted(stamps)


def size_of(path: str) -> int:
    """Bytes of a file here or of a remote one; FileNotFoundError without one."""
    return stamp_of(path).size if is_remote(path) else os.path.getsize(path)


def cached(uri: str) -> Path | None:
    """Copy of a remote file in the cache folder, fetched if absent; None if the disk is too full.

    The copy is named by URI, size and time, so changed content gets a new copy. Raises
    FileNotFoundError without a remote file, RemoteError if it cannot be fetched.
    """
    if (copy := _copies.get(uri)) is not None and copy.is_file():
        return copy
    stamp = stamp_of(uri)
    key = _key(f"{uri}/{stamp.size}/{stamp.mtime_ns}")
    name = PurePosixPath(uri.partition("?")[0]).name
    target = cache_folder() / "remote" / key[:2] / key / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < stamp.size + RESERVED_BYTES:
            return None
        Remote(uri).fetch("", target)
    _copies[uri] = target
    return target


def identity(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """(absolute path or URI, bytes, modification time) of a file. Raises FileNotFoundError."""
    text = os.fspath(path)
    if is_remote(text):
        return text, *stamp_of(text)
    status = os.stat(text)
    return os.path.abspath(text), status.st_size, status.st_mtime_ns


def source(path: str | os.PathLike[str]) -> str | Any:
    """Path to read instead of `path`: the file itself or the local copy of a remote one.

    If the disk has no room for a copy: the remote file, opened for reading in ranges. A copy is
    the rule because finding the frames of a video exactly reads all of it anyway.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return text
    copy = cached(text)
    return os.fspath(copy) if copy else Remote(text).open()


def local_mirror(path: str | os.PathLike[str], deep: bool = False) -> Path:
    """The path itself or, for a remote file or folder, the path of its local mirror.

    In a mirror annotations and the files beside them are copies, videos are empty files of the same
    names, whose URIs `mirrored_uri` gives. `deep` includes subfolders. Image folders are left out.
    Raises FileNotFoundError if there is neither annotation nor video.
    """
    uri = os.fspath(path)
    if not is_remote(uri):
        return Path(uri)
    folder, name = (uri, "") if Remote(uri).stat() is None else parent(uri)
    files = [file for file in listing(folder, deep) if file.endswith((*ANNOTATIONS, *VIDEOS))]
    if not files and not name:
        raise FileNotFoundError(f"{uri} is not there, or holds no annotation and no video")
    root = cache_folder() / "remote" / "folders" / _key(f"{folder}/{deep}")
    root.mkdir(parents=True, exist_ok=True)
    with file_lock(root.with_suffix(".lock")):
        _update_mirror(root, folder, files)
    _mirrors[str(root)] = folder
    return root / name


def mirrored_uri(path: str) -> str:
    """URI of a video in a `local_mirror`; any other path unchanged."""
    for root, uri in _mirrors.items():
        if path.startswith(root + os.sep):
            return join(uri, path[len(root) + 1 :])
    return path


def _update_mirror(root: Path, uri: str, files: list[str]) -> None:
    """Fill a folder with copies of the annotations and empty files for the videos among `files`."""
    for removed in {name for name, _ in walk(root)} - set(files):
        (root / removed).unlink()
    for name in files:
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(ANNOTATIONS):
            copy = cached(join(uri, name))
            if copy is None:
                raise OSError(f"no room for a copy of {join(uri, name)} in {cache_folder()}")
            if not target.exists() or identity(target)[1:] != identity(copy)[1:]:
                shutil.copy2(copy, target)
        elif not target.exists():
            target.touch()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
