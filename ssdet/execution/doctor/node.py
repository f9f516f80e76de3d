"""Facts about one machine for `ssdet doctor`, as JSON values."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import ssdet
from ssdet.data.storage.cache import cache_folder
from ssdet.data.storage.filesystem import Remote, is_remote, parent
from ssdet.store.base import Store
from ssdet.system.sockets import ray_folder

PACKAGES = ("torch", "ray", "av", "numpy")
GPU_PROBE = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
for i in range(len(names)):
    torch.ones(1, device=f"cuda:{i}").item()
print(json.dumps(names))
"""


def survey(store: str, token: str, data: str | None, gpus: float) -> dict[str, Any]:
    """Facts about this machine as JSON values; a missing part is an entry, not an exception.

    store: URI, in which the driver's file `token` is read and a file of this machine written. data:
    path or URI. gpus: number that is declared to Ray (0: detect them).
    """
    return {
        "versions": versions(),
        "CPUs": len(os.sched_getaffinity(0)),
        "GPUs": attempt(_gpus) if gpus or shutil.which("nvidia-smi") else [],
        "memory": _memory(),
        "/dev/shm": attempt(lambda: shutil.disk_usage("/dev/shm").total),
        "sockets": attempt(sockets),
        "free disk": attempt(lambda: _writable(cache_folder())),
        "video": attempt(decode),
        "store": attempt(lambda: _exchange(store, token)),
        "data": None if data is None else attempt(lambda: fingerprint(data)),
    }


def clock() -> float:
    """Epoch seconds on this machine."""
    return time.time()


def sockets() -> str:
    """Folder for the sockets of an own Ray; ValueError where none is short enough."""
    folder = ray_folder()
    if folder is None:
        return f"{os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()} is short enough for Ray"
    return f"TMPDIR or RAY_TMPDIR is too long for those of Ray: an own one uses {folder}"


def versions() -> dict[str, str]:
    """Versions by package; ssdet's with a digest of its code."""
    own = {"python": platform.python_version(), "ssdet": f"{ssdet.__version__} {code_digest()}"}
    return own | {name: version(name) for name in PACKAGES}


def code_digest() -> str:
    """Eight digits that differ where any source file of the package differs."""
    root = Path(ssdet.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest(b"".join(f"\0{f.relative_to(root)}\0".encode() + f.read_bytes() for f in files))


def decode() -> str:
    """Write a tiny H.264 file and read it back; ValueError where the pictures differ."""
    from ssdet.data.datasets.moving_shapes import write_video
    from ssdet.data.video.reader import read_clip

    brightness_T = np.linspace(40, 200, 8)
    pictures_THWC = np.broadcast_to(brightness_T[:, None, None, None], (8, 32, 32, 3))
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "probe.mp4", pictures_THWC.astype(np.uint8))
        read_THWC = read_clip(Path(folder) / "probe.mp4", range(8)).astype(float)
    error = float(np.abs(read_THWC - pictures_THWC).mean())
    if error > 8:
        raise ValueError(f"decoded pictures are off by {error:.0f} grey levels")
    return "H.264 written and read"


def fingerprint(path: str) -> str:
    """Fingerprint of the data at a path or URI, to compare machines.

    Of a file its size and a digest of its first 64 KiB; of a folder the number of its entries, a
    digest of their names, and the fingerprint of its first file. FileNotFoundError for no data.
    """
    if is_remote(path):
        folder, name = parent(path)
        if (stamp := Remote(folder).stat(name)) is not None:
            return f"{stamp.size} bytes of {stamp.mtime_ns}"
        names = sorted(Remote(path).list())
        if not names:
            raise FileNotFoundError(f"{path} is not there")
        return f"{len(names)} files, {_digest(str(names).encode())}"
    local = Path(path)
    if local.is_file():
        return _file_fingerprint(local)
    names = sorted(os.listdir(local))
    first = next((local / name for name in names if (local / name).is_file()), None)
    entries = f"{len(names)} entries, {_digest(str(names).encode())}"
    return f"{entries}, first {_file_fingerprint(first)}" if first else entries


def note_name(token: str) -> str:
    """Name in a store of a small file that machines leave for one another."""
    return f"doctor/{token}"


def _exchange(uri: str, token: str) -> str:
    """Read what the driver left, leave a file of its content; returns that file's token."""
    store, answer = Store.at(uri), f"node-{uuid.uuid4().hex}"
    store.write_shared(note_name(answer), store.read_shared(note_name(token)))
    return answer


def attempt(function: Callable[[], Any]) -> Any:
    """The function's value, or {"error": reason}."""
    try:
        return function()
    except Exception as error:  # the doctor reports every error
        return {"error": f"{type(error).__name__}: {error}"}


def _gpus() -> Any:
    """Names of the GPUs that torch can use, from a separate process: Ray hides them from a task
    without GPUs."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", GPU_PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["torch failed"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _memory() -> int:
    """Bytes of memory of this machine or its container."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def _writable(folder: Path) -> int:
    """Free bytes of a folder; OSError where it cannot be written to."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return shutil.disk_usage(folder).free


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _file_fingerprint(path: Path) -> str:
    with open(path, "rb") as file:
        return f"{path.stat().st_size} bytes, {_digest(file.read(1 << 16))}"
