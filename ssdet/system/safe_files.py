"""Writing, locking and removing files of a store: files appear whole, and no link leads out of it.

A symbolic link is never written to, locked or removed through: below a store's root every folder
and file must be a real one (the root itself may be reached through links). `LinkError` names the
link and the way out.
"""

import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ssdet.system.text_files import open_text

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
TRASH = "trash"
"""Folder in a store that folders are moved to before they are removed."""


class LinkError(OSError):
    """A symbolic link lies where a store writes, locks or removes."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a symbolic link to {os.readlink(path)}: ssdet neither writes nor removes "
            "anything through a link in a store. Remove the link (its target stays as it is), or "
            "put the target itself in its place"
        )


def refuse_link(path: Path) -> None:
    """LinkError where this path itself is a symbolic link, dangling or not."""
    if path.is_symlink():
        raise LinkError(path)


def refuse_links(root: Path, path: Path) -> None:
    """LinkError where the path, or a folder between it and the store's root, is a link."""
    for name in _parts(root, path):
        root = root / name
        refuse_link(root)


def below(root: Path, name: str) -> Path:
    """Path of a relative name with `/` in a folder; ValueError for a name that leads out of it."""
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"file {name!r} leads out of the folder {root}")
    return root / name


def make_folder(root: Path, *names: str) -> Path:
    """Folder `root/names[0]/names[1]…`, created where it is missing; LinkError as above.

    ValueError for a name that is no single folder's.
    """
    path = root
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name of a folder in {path}")
        path = path / name
        refuse_link(path)
        path.mkdir(exist_ok=True)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Path of a new file beside `path`, which takes its place, whole and on disk, after the block.

    After an error it is removed, and `path` is as it was. Readers see the old or the new file.
    LinkError where `path` is a symbolic link.
    """
    refuse_link(path)
    work = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield work
        with open(work, "rb") as file:
            os.fsync(file.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """A text file (`open_text`) that replaces `path` when the block ends; see `replacing`."""
    with replacing(path) as work, open_text(work) as file:
        yield file


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file as `replacing` does."""
    with replacing(path) as work, open(work, "xb") as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write text as `text_file` does."""
    with text_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `replacing` does."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def open_lock(path: Path) -> int:
    """Descriptor of a lock's file, which is created where it is missing and never truncated.

    LinkError where it is a symbolic link.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _explained(error, path) from error


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file's exclusive lock; without `wait`, BlockingIOError where it is held already.

    The system releases the lock of a process that dies. Who holds it may remove the file.
    """
    while True:
        with open(open_lock(path), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(file.fileno(), path):  # else it was removed while this process waited
                yield
                return


def is_locked(path: Path) -> bool:
    """Whether a process holds a file's lock. Nothing is written, nothing waits.

    The system has no way to merely ask: a lock that is free is taken, shared, for an instant.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _explained(error, path) from error
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)


def remove(root: Path, path: Path) -> None:
    """Remove a file, or a folder with all in it, of the store at `root`.

    A folder vanishes at once, whole: it is moved to the store's trash first. Every folder on the
    way is opened without following links and what is in it removed by its descriptor, so nothing
    outside of the store is touched, whatever other processes put in the place of a folder
    meanwhile. Links inside of the folder are removed, their targets stay. LinkError where the
    path itself, a folder on the way to it or the trash is a link; FileNotFoundError where nothing
    is there.
    """
    trash = root / TRASH
    with _opened(root, path.parent) as folder:
        mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            raise LinkError(path)
        if not stat.S_ISDIR(mode):
            os.unlink(path.name, dir_fd=folder)
        elif path.parent == trash:
            shutil.rmtree(path.name, dir_fd=folder)
        else:
            make_folder(root, TRASH)
            with _opened(root, trash) as target:
                gone = f"{path.name}.{uuid.uuid4().hex}"
                os.rename(path.name, gone, src_dir_fd=folder, dst_dir_fd=target)
                shutil.rmtree(gone, dir_fd=target)


@contextmanager
def _opened(root: Path, folder: Path) -> Iterator[int]:
    """Descriptor of a folder of a store, reached from its root without following links."""
    file, path = os.open(root, FOLDER), root
    try:
        for name in _parts(root, folder):
            path = path / name
            try:
                inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=file)
            except OSError as error:
                raise _explained(error, path) from error
            os.close(file)
            file = inner
        yield file
    finally:
        os.close(file)


def _parts(root: Path, path: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).parts
    if ".." in parts:
        raise ValueError(f"{path} leads out of the store {root}")
    return parts


def _explained(error: OSError, path: Path) -> OSError:
    """LinkError where a link is why a path could not be opened, else the error itself."""
    linked = error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink()
    return LinkError(path) if linked else error


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False
