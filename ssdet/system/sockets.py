"""Folders for Unix sockets, whose paths may have 107 bytes at most.

Ray and multiprocessing put sockets into the folder for temporary files. Clusters set TMPDIR to a
folder of the job, which is often too long for that.
"""

import os
import stat
import tempfile
from multiprocessing import util
from pathlib import Path

MAX_PATH_BYTES = 107
RAY_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_TaskEventsHead")
"""Bytes that Ray 2.60 adds to the folder for its longest socket, one of the dashboard's."""
MULTIPROCESSING_BYTES = len("/pymp-01234567/listener-01234567")
"""Bytes that multiprocessing adds to the folder."""
SHORT = Path("/tmp")


def ray_folder() -> Path | None:
    """Folder to start an own Ray in, or None where Ray's default is short enough.

    It is in a folder of /tmp that belongs to this user alone. Raises ValueError, which names the
    variable to set, where that folder cannot be used.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is None or _fits(os.environ[name], RAY_BYTES):
        return None
    folder = SHORT / f"ssdet-{os.getuid()}"
    try:
        _make_private(folder)
    except OSError as error:
        most = MAX_PATH_BYTES - RAY_BYTES
        raise ValueError(
            f"{name}={os.environ[name]} is too long for the sockets of Ray, and {folder} cannot "
            f"take its place ({error}): set RAY_TMPDIR to a folder of at most {most} bytes"
        ) from error
    return folder / "ray"


def shorten_worker_sockets() -> None:
    """Make multiprocessing use /tmp for sockets of this process and its children where TMPDIR is
    too long. Python 3.14 does so itself; before, workers fail to send tensors.

    Raises OSError, which names the variable to set, where /tmp cannot be written to.
    """
    default = tempfile.gettempdir()
    if _fits(default, MULTIPROCESSING_BYTES):
        return
    tempfile.tempdir = os.fspath(SHORT)
    try:
        util.get_temp_dir()  # created once in a process, inherited by its children
    except OSError as error:
        most = MAX_PATH_BYTES - MULTIPROCESSING_BYTES
        raise OSError(
            f"TMPDIR={default} is too long for the sockets of workers, and {SHORT} cannot take its "
            f"place ({error}): set TMPDIR to a folder of at most {most} bytes"
        ) from error
    finally:
        tempfile.tempdir = default


def _fits(folder: str, more: int) -> bool:
    return len(os.fsencode(folder.rstrip("/"))) + more <= MAX_PATH_BYTES


def _make_private(folder: Path) -> None:
    """Create a folder that no other user can enter; OSError where another user has created it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    tempfile.TemporaryFile(dir=folder).close()
