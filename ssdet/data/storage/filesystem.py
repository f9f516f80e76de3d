"""Files on any file system that pyarrow supports (`s3://`, `gs://`, `abfs://`, `hdfs://`), by URI.

Options of the file system follow a question mark, as in pyarrow: `s3://bucket/prefix?region=eu-central-1`,
`s3://bucket/prefix?endpoint_override=host:9000&scheme=http`. Credentials come from the environment,
configuration files or the role of the machine as for the provider's own tools, never from the URI.
"""

import errno
import hashlib
import io
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")
log = logging.getLogger(__name__)

DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each retry of a failed operation."""
CHUNK = 8 << 20
ATOMIC_WRITES = ("s3", "gcs", "abfs")
"""File systems where a file appears, complete, when its writer closes it."""
LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
PERMANENT_ERRORS = {
    "NO_SUCH_BUCKET": "no such bucket: create it, or correct the name",
    "Bucket '": "no such bucket: create it, or correct the name",
    "ACCESS_DENIED": "access denied: are the credentials set (for S3 AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, ~/.aws or the machine's role), and do they allow this?",
    "INVALID_ACCESS_KEY_ID": "the access key is not known there: correct AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong: correct AWS_SECRET_ACCESS_KEY",
    "UNRECOGNIZED_CLIENT": "the credentials are not known there: correct or renew them",
    "EXPIRED_TOKEN": "the credentials have expired: renew them",
    "HTTP status 301": "the bucket is in another region: add ?region=… to the URI",
    "HTTP status 400) during HeadObject": "refused: is ?region=… (or AWS_REGION) the bucket's?",
}  # fmt: skip
"""Text of errors that no retry resolves, with the way out."""
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""URI schemes of the network file systems of pyarrow."""


class RemoteError(OSError):
    """A failed operation on a remote file system: what, where, and the way out."""


class Stamp(NamedTuple):
    """Size and time of a remote file; content with another stamp is other content."""

    size: int
    """Bytes."""
    mtime_ns: int


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URI of a remote file system."""
    scheme, mark, _ = os.fspath(path).partition("://")
    return bool(mark) and scheme not in ("", "file")


def join(uri: str, *names: str) -> str:
    """URI of a file or folder below a remote folder."""
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *(name for name in names if name)]) + mark + query


def parent(uri: str) -> tuple[str, str]:
    """Split the URI of a remote file into the URI of its folder and its name."""
    base, mark, query = uri.partition("?")
    folder, _, name = base.rstrip("/").rpartition("/")
    return folder + mark + query, name


@dataclass(frozen=True)
class Remote:
    """A folder of a remote file system; names are relative to it, separated by `/`.

    Failed operations are retried four times over some seconds unless the error is permanent, then
    raise RemoteError.
    """

    uri: str

    def __post_init__(self) -> None:
        _parts(self.uri)

    def stat(self, name: str = "") -> Stamp | None:
        """Size and time of a file; None if there is none."""
        fs, path = self._locate(name)
        info = self._retry("look at", name, lambda: fs.get_file_info(path))
        return _stamp(info) if info.is_file else None

    def exists(self) -> bool:
        """Whether the folder or file exists."""
        fs, path = self._locate("")
        info = self._retry("look at", "", lambda: fs.get_file_info(path))
        return info.type.name != "NotFound"

    def list(self, folder: str = "", deep: bool = False) -> dict[str, Stamp]:
        """Stamps of the files in a folder by name relative to this one; {} if there is no folder.

        `deep` includes subfolders. Raises RemoteError for a bucket that does not exist.
        """
        from pyarrow.fs import FileSelector

        fs, path = self._locate(folder)
        _, root = self._locate("")
        selector = FileSelector(path, recursive=deep)
        try:
            infos = self._retry("list", folder, lambda: fs.get_file_info(selector))
        except FileNotFoundError:
            return {}
        files = [info for info in infos if info.is_file and not info.path.endswith(".partial")]
        return {info.path[len(root) :].lstrip("/"): _stamp(info) for info in files}

    def read(self, name: str = "") -> bytes:
        """Read a small file. Raises FileNotFoundError."""
        fs, path = self._locate(name)

        def read() -> bytes:
            with fs.open_input_file(path) as file:
                data, size = file.read(), file.size()
            if len(data) != size:
                raise OSError(f"{len(data)} of {size} bytes arrived")
            return bytes(data)

        return self._retry("read", name, read)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically: readers see the old or the new content."""
        self._retry("write", name, partial(self._write, name, [data], len(data)))

    def push(self, source: IO[bytes], name: str = "") -> None:
        """Upload an open local file to `name`, where it appears complete or not at all."""
        size = os.fstat(source.fileno()).st_size

        def push() -> None:
            source.seek(0)
            self._write(name, iter(partial(source.read, CHUNK), b""), size)

        self._retry("write", name, push)

    def fetch(self, name: str, target: Path, sha256: str = "") -> Stamp:
        """Download a file to `target`, which appears complete or not at all; creates its folder.

        Size, stamp and checksum (if given) are compared; a file that arrived incomplete or changed
        meanwhile is fetched again. Raises FileNotFoundError.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        work = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
        try:
            stamp = self._retry("fetch", name, partial(self._fetch, name, work, sha256))
            os.replace(work, target)
        finally:
            work.unlink(missing_ok=True)
        return stamp

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        fs, path = self._locate(name)
        with suppress(FileNotFoundError):
            self._retry("remove", name, lambda: fs.delete_file(path))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with its content if it exists."""
        fs, path = self._locate(name)
        with suppress(FileNotFoundError):
            self._retry("remove", name, lambda: fs.delete_dir(path))

    def open(self, name: str = "") -> Any:
        """Open a file for random access. Raises FileNotFoundError."""
        fs, path = self._locate(name)
        file: Any = self._retry("open", name, lambda: fs.open_input_file(path))
        return io.BufferedReader(file, 1 << 20)  # unbuffered: a request for every few bytes

    def _locate(self, name: str) -> "tuple[FileSystem, str]":
        base, path = _parts(self.uri)
        fs, root = _filesystem(base, os.getpid())
        below = [part for part in (path, name) if part]
        return fs, "/".join([root.rstrip("/"), *below]) if below else root

    def _write(self, name: str, parts: Any, size: int) -> None:
        fs, path = self._locate(name)
        atomic = fs.type_name in ATOMIC_WRITES
        work = path if atomic else f"{path}.{uuid.uuid4().hex}.partial"
        if not atomic:
            fs.create_dir(path.rpartition("/")[0], recursive=True)
        with fs.open_output_stream(work, buffer_size=None) as file:
            for part in parts:
                file.write(part)
        if (written := fs.get_file_info(work).size) != size:
            raise OSError(f"{written} of {size} bytes arrived there")
        if not atomic:
            fs.move(work, path)

    def _fetch(self, name: str, work: Path, sha256: str) -> Stamp:
        fs, path = self._locate(name)
        before, digest, size = _stamp(fs.get_file_info(path)), hashlib.sha256(), 0
        with fs.open_input_file(path) as file, open(work, "wb") as out:
            while part := file.read(CHUNK):
                out.write(part)
                digest.update(part)
                size += len(part)
            out.flush()
            os.fsync(out.fileno())
        if size != before.size or before != (after := _stamp(fs.get_file_info(path))):
            raise OSError(f"{size} of {before.size} bytes arrived, or it changed meanwhile")
        if sha256 and digest.hexdigest() != sha256:
            raise OSError("its checksum is not the one recorded when it was written")
        return after

    def _retry(self, verb: str, name: str, act: Callable[[], T]) -> T:
        for delay in (*DELAYS, None):
            try:
                return act()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in LOCAL_ERRORS:
                    raise
                where = f"cannot {verb} {join(self.uri, name)}"
                if hint := _hint(str(error)):
                    raise RemoteError(f"{where}: {hint} ({_short(error)})") from error
                if delay is None:
                    raise RemoteError(
                        f"{where}, after {len(DELAYS) + 1} attempts: {_short(error)}; when it can "
                        "be reached again, the same command goes on"
                    ) from error
                log.info("%s, again in %g s: %s", where, delay, _short(error))
                time.sleep(delay)
        raise AssertionError


def _hint(message: str) -> str:
    return next((hint for text, hint in PERMANENT_ERRORS.items() if text in message), "")


def _short(error: OSError) -> str:
    return str(error).partition(" (Request ID")[0]


def _stamp(info: "FileInfo") -> Stamp:
    if not info.is_file:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), info.path)
    return Stamp(info.size, info.mtime_ns or 0)


@lru_cache(maxsize=1024)
def _parts(uri: str) -> tuple[str, str]:
    """URI of the file system, and path in it. ValueError without a bucket, or with secrets."""
    text, _, query = uri.partition("?")
    scheme, _, rest = text.partition("://")
    authority, _, path = rest.partition("/")
    if scheme not in SCHEMES and not scheme.startswith("fsspec+"):
        raise ValueError(
            f"{uri!r}: {scheme}:// is not supported, only {', '.join(SCHEMES)}: mount it and give "
            "the folder"
        )
    if not authority and scheme != "fsspec+file":
        raise ValueError(f"{uri!r}: expected {scheme}://BUCKET_OR_HOST/PATH")
    if ":" in authority.rpartition("@")[0]:
        raise ValueError(
            f"{scheme}://…@{authority.rpartition('@')[2]}: credentials in a URI end up in records: "
            "set them in the environment (AWS_ACCESS_KEY_ID, …) instead"
        )
    if scheme == "s3" and "allow_delayed_open" not in query:
        query = "&".join(filter(None, [query, "allow_delayed_open=true"]))  # small: one request
    return f"{scheme}://{authority}/" + (f"?{query}" if query else ""), path.strip("/")


@lru_cache(maxsize=64)
def _filesystem(base: str, process: int) -> "tuple[FileSystem, str]":
    """File system and its root, opened once per process: a fork cannot use its parent's."""
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(base)
    except OSError as error:
        hint = _hint(str(error)) or "is it spelt right, and can it be reached?"
        raise RemoteError(f"cannot open {base}: {hint} ({_short(error)})") from error
    except ValueError as error:
        raise ValueError(f"{base}: {error}: docs/storage.md lists the options") from error


def checksum(file: io.BufferedReader | io.BytesIO) -> str:
    """SHA-256 of an open file from its start."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of the files below a folder, without unfinished ones."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.endswith((".partial", ".tmp")):
            yield path.relative_to(root).as_posix(), path
