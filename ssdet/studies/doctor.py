"""Whether machines are fit to run studies: what each has, and what is wrong with it.

`survey` looks at one machine and returns JSON values; `judge` compares them with what is needed
and, on a cluster, with the driver. `examine` does so for this machine, or every node of a cluster.
"""

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import ssdet
from ssdet.data.remote import Remote, is_remote, join, parent
from ssdet.data.remote_cache import cache_folder
from ssdet.studies.store import Store

PACKAGES = ("torch", "ray", "av", "numpy")
GB = 1e9
NEEDED = {"memory": 2 * GB, "/dev/shm": 0.25 * GB, "free disk": 5 * GB}
"""Bytes: of a small stage with its loader, of the loader's batches, of copies and checkpoints."""
MAX_SKEW = 10.0
"""Seconds. Leases of stages (docs/storage.md) bear about a minute."""
GPU_PROBE = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
for i in range(len(names)):
    torch.ones(1, device=f"cuda:{i}").item()
print(json.dumps(names))
"""
NOT_SHARED = "mount the same storage at the same path on every node, or use s3:// (docs/storage.md)"
WAYS_OUT = {
    "answer": "see `ray status`, and /tmp/ray/session_latest/logs there; a mount that hangs, or a "
    "node without ssdet (docs/cluster.md), gives no answer either",
    "clock": "set the clocks by NTP (timedatectl set-ntp true)",
    "GPUs": "install NVIDIA's driver (does nvidia-smi run?) and a torch built for its CUDA, or "
    "start Ray with a smaller --num-gpus",
    "memory": "use a machine, container or pod with more",
    "/dev/shm": "containers get more by --shm-size=8g, pods by an emptyDir of medium Memory",
    "free disk": "free some, or set SSDET_CACHE to a folder that can be written, on a larger disk",
    "object store": "more than /dev/shm holds, so it lies on disk: give /dev/shm more, or Ray less "
    "by --object-store-memory",
    "video": "reinstall PyAV with the version of constraints.txt",
    "store": "let the user that Ray runs as read and write there",
    "data": NOT_SHARED,
}

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, on one machine."""

    node: str
    check: str
    found: str
    ok: bool = True
    way_out: str = ""
    """What to do where it is not ok."""


def survey(store: str, token: str, data: str | None, gpus: float) -> dict[str, Any]:
    """What this machine has, as JSON values; nothing here raises because something is missing.

    store: URI. The file `token` that the driver left is read there, and one of this machine's left
    beside it. data: path or URI. gpus: those that Ray was told of (0: looked for).
    """
    return {
        "versions": versions(),
        "CPUs": len(os.sched_getaffinity(0)),
        "GPUs": _attempt(_gpus) if gpus or shutil.which("nvidia-smi") else [],
        "memory": _memory(),
        "/dev/shm": _attempt(lambda: shutil.disk_usage("/dev/shm").total),
        "free disk": _attempt(lambda: _writable(cache_folder())),
        "video": _attempt(decode),
        "store": _attempt(lambda: _exchange(store, token)),
        "data": None if data is None else _attempt(lambda: fingerprint(data)),
    }


def clock() -> float:
    """Epoch seconds on this machine."""
    return time.time()


def versions() -> dict[str, str]:
    """Versions by package; ssdet's with a digest of its code."""
    found = {"python": platform.python_version(), "ssdet": f"{ssdet.__version__} {code_digest()}"}
    return found | {name: version(name) for name in PACKAGES}


def code_digest() -> str:
    """Eight digits that differ where any source file of the package differs."""
    root = Path(ssdet.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest(b"".join(f"\0{f.relative_to(root)}\0".encode() + f.read_bytes() for f in files))


def decode() -> str:
    """Write a tiny H.264 file and read it back; ValueError where the pictures are not those."""
    from ssdet.data.moving_shapes import write_video
    from ssdet.data.video import read_clip

    brightness_T = np.linspace(40, 200, 8)
    pictures_THWC = np.broadcast_to(brightness_T[:, None, None, None], (8, 32, 32, 3))
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "probe.mp4", pictures_THWC.astype(np.uint8))
        read_THWC = read_clip(Path(folder) / "probe.mp4", range(8)).astype(float)
    off = float(np.abs(read_THWC - pictures_THWC).mean())
    if off > 8:
        raise ValueError(f"decoded pictures are off by {off:.0f} grey levels")
    return "H.264 written and read"


def fingerprint(path: str) -> str:
    """What is equal on two machines that see the same data at a path or URI.

    A file's size and a digest of its first 64 KiB, a folder's number of entries, a digest of their
    names, and the same of its first file. FileNotFoundError where there is nothing.
    """
    if is_remote(path):
        folder, name = parent(path)
        if (stamp := Remote(folder).stat(name)) is not None:
            return f"{stamp.size} bytes of {stamp.mtime_ns}"
        names = sorted(Remote(path).list())
        if not names:
            raise FileNotFoundError(f"{path} is not there")
        return f"{len(names)} files, {_digest(str(names).encode())}"
    place = Path(path)
    if place.is_file():
        return _print_of(place)
    names = sorted(os.listdir(place))
    first = next((place / name for name in names if (place / name).is_file()), None)
    told = f"{len(names)} entries, {_digest(str(names).encode())}"
    return f"{told}, first {_print_of(first)}" if first else told


class Drops:
    """Small files in the folder `doctor` of a store, which machines leave for one another."""

    def __init__(self, uri: str) -> None:
        self.remote = Remote(join(uri, "doctor")) if is_remote(uri) else None
        self.folder = Path() if self.remote else Store.at(uri).root / "doctor"

    def write(self, name: str, text: str) -> None:
        """Leave a file."""
        if self.remote:
            self.remote.write(name, text.encode())
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def read(self, name: str) -> str:
        """What somebody left; FileNotFoundError where it is not seen here."""
        return self.remote.read(name).decode() if self.remote else (self.folder / name).read_text()

    def clear(self, names: Iterable[str]) -> None:
        """Remove what was left."""
        for name in names:
            if self.remote:
                self.remote.delete(name)
            else:
                (self.folder / name).unlink()
        if not self.remote:
            with suppress(OSError):  # another doctor is at work
                self.folder.rmdir()


def _exchange(store: str, token: str) -> str:
    """Read what the driver left, leave a file of its content; the name of that file."""
    drops, name = Drops(store), f"node-{uuid.uuid4().hex}"
    drops.write(name, drops.read(token))
    return name


def _attempt(look: Callable[[], Any]) -> Any:
    """What was seen, or {"error": why not}."""
    try:
        return look()
    except Exception as error:  # a doctor tells of whatever is wrong
        return {"error": f"{type(error).__name__}: {error}"}


def _gpus() -> Any:
    """Names of the GPUs that torch can use. In a process of its own: Ray hides them from a task
    that asks for none."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", GPU_PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["torch failed"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _memory() -> int:
    """Bytes that this machine or its container has."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def _writable(folder: Path) -> int:
    """Free bytes of a folder that can be written to."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return shutil.disk_usage(folder).free


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _print_of(path: Path) -> str:
    with open(path, "rb") as file:
        return f"{path.stat().st_size} bytes, {_digest(file.read(1 << 16))}"


def judge(
    node: str, seen: Facts, driver: Facts | None = None, declared: Facts | None = None
) -> list[Finding]:
    """What `survey` saw on a machine, against what is needed.

    On a cluster, also against what the driver's machine has, and against the resources that Ray
    was told of: `GPU` and `object_store_memory`.
    """
    if "error" in seen:
        return [_problem(node, "answer", seen["error"])]
    found = [
        _version(node, name, text, driver["versions"].get(name) if driver else text)
        for name, text in seen["versions"].items()
    ]
    for check in ("CPUs", "GPUs", *NEEDED, "video", "store", "data"):
        value = seen[check]
        if isinstance(value, Mapping):
            found.append(_problem(node, check, value["error"]))
        elif check == "GPUs":
            found.append(_gpu_finding(node, value, int(declared.get("GPU", 0)) if declared else 0))
        elif check in NEEDED:
            found.append(_amount(node, check, value))
        elif check == "data" and driver and value != driver[check]:
            found.append(_problem(node, check, f"{value}, but the driver sees {driver[check]}"))
        elif value is not None:
            found.append(Finding(node, check, str(value)))
    return found + ([_object_store(node, seen["/dev/shm"], declared)] if declared else [])


def clock_finding(node: str, samples: Iterable[tuple[float, float, float]]) -> Finding:
    """How far a clock is off, from (sent, there, received), epoch seconds each.

    The answer is taken to have been given in the middle of the quickest round trip, half of which
    is how wrong that may be (Cristian's algorithm).
    """
    sent, there, received = min(samples, key=lambda sample: sample[2] - sample[0])
    off, unsure = there - (sent + received) / 2, (received - sent) / 2
    found = f"{off:+.2f} s ± {unsure:.2f}"
    wrong = abs(off) - unsure > MAX_SKEW
    return _problem(node, "clock", found) if wrong else Finding(node, "clock", found)


def _problem(node: str, check: str, found: str) -> Finding:
    lost = check == "store" and found.startswith(("FileNotFoundError", "the driver does not see"))
    return Finding(node, check, found, False, NOT_SHARED if lost else WAYS_OUT[check])


def _version(node: str, name: str, found: str, wanted: str | None) -> Finding:
    if found == wanted:
        return Finding(node, name, found)
    way_out = f"the driver has {wanted or 'none'}: install the same on every node (`ray up` does)"
    return Finding(node, name, found, False, way_out)


def _gpu_finding(node: str, seen: Sequence[str], declared: int) -> Finding:
    names = ", ".join(f"{seen.count(name)} × {name}" for name in dict.fromkeys(seen)) or "none"
    if len(seen) < declared:
        return _problem(node, "GPUs", f"{names}; Ray was told of {declared}")
    return Finding(node, "GPUs", names)


def _amount(node: str, check: str, seen: float) -> Finding:
    found = f"{seen / GB:.1f} GB"
    if seen < NEEDED[check]:
        return _problem(node, check, f"{found}, {NEEDED[check] / GB:g} GB are needed")
    return Finding(node, check, found)


def _object_store(node: str, shm: Any, declared: Facts) -> Finding:
    size = declared.get("object_store_memory", 0.0)
    found = f"{size / GB:.1f} GB"
    if not isinstance(shm, Mapping) and size > shm:
        return _problem(node, "object store", f"{found}, /dev/shm {shm / GB:.1f} GB")
    return Finding(node, "object store", found)


def examine(
    store: str, data: str | None = None, cluster: bool = False, limit: float = 120.0
) -> list[Finding]:
    """Findings of this machine; with `cluster`, of it as the driver and of every node that is
    alive in the Ray that this process has joined.

    Nodes are asked at once, by tasks that need no free CPU; what has not answered after `limit`
    seconds is a finding. Files that were left in the store are removed again.
    """
    drops, token = Drops(store), f"driver-{uuid.uuid4().hex}"
    me = "driver" if cluster else "this machine"
    written = _attempt(lambda: drops.write(token, token))
    here = survey(store, token, data, 0) | ({"store": written} if written else {})
    nodes = _alive() if cluster else {}
    answers = {me: here} | _ask(nodes, (store, token, data), limit)
    seen = [] if written else [token]
    for node, answer in answers.items():
        if isinstance(name := answer.get("store"), str):
            lost = {"error": f"the driver does not see what {node} wrote"}
            same = _attempt(partial(drops.read, name)) == token
            answer["store"] = "read and written" if same else lost
            seen += [name] if same else []
    found = judge(me, here)
    for node, record in nodes.items():
        found += judge(node, answers[node], here, record["Resources"])
        found += [] if "error" in answers[node] else [_clock(node, record, limit)]
    cleared = _attempt(partial(drops.clear, seen))
    return [*found, *([] if cleared is None else [_problem(me, "store", cleared["error"])])]


def _alive() -> dict[str, Facts]:
    """Ray's record of every node that runs, by host name."""
    import ray

    found: dict[str, Facts] = {}
    for node in ray.nodes():
        name = node["NodeManagerHostname"]
        if node["Alive"]:
            found[name if name not in found else f"{name} {node['NodeID'][:6]}"] = node
    return found


def _pinned(function: Callable[..., Any], node: Facts) -> Any:
    """A task on one node, and on no other, that waits for no free CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(function)
    return task.options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def _ask(
    nodes: Mapping[str, Facts], asked: tuple[str, str, str | None], limit: float
) -> dict[str, dict[str, Any]]:
    """What each node answers to `survey`, or {"error": why there is none}."""
    tasks = {
        name: _pinned(survey, node).remote(*asked, node["Resources"].get("GPU", 0.0))
        for name, node in nodes.items()
    }
    if tasks:
        import ray

        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=limit)
    return {name: _answer(task, 1.0, limit) for name, task in tasks.items()}


def _answer(task: Any, wait: float, limit: float) -> Any:
    """A task's result, or {"error": why there is none} after the last `wait` seconds of `limit`."""
    import ray

    try:
        return ray.get(task, timeout=wait)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        return {"error": f"none within {limit:g} s"}
    except ray.exceptions.RayError as error:
        return {"error": str(error).strip().splitlines()[-1]}


def _clock(name: str, node: Facts, limit: float) -> Finding:
    ask, samples = _pinned(clock, node), []
    for _ in range(5):
        sent = time.time()
        there = _answer(ask.remote(), limit, limit)
        if isinstance(there, Mapping):
            return _problem(name, "answer", there["error"])
        samples.append((sent, there, time.time()))
    return clock_finding(name, samples)
