"""Comparison of a machine's facts with the requirements and with the driver."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 1e9
NEEDED = {"memory": 2 * GB, "/dev/shm": 0.25 * GB, "free disk": 5 * GB}
"""Minimum bytes for a small stage with its loader, the loader's batches, copies and checkpoints."""
MAX_SKEW = 10.0
"""Seconds. Leases of stages (docs/storage.md) tolerate about a minute."""
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
    "sockets": "set RAY_TMPDIR to a short folder that can be written to, such as /tmp",
    "object store": "larger than /dev/shm, so it is on disk: give /dev/shm more, or Ray less "
    "by --object-store-memory",
    "video": "reinstall PyAV with the version of constraints.txt",
    "store": "let the user that Ray runs as read and write there",
    "data": NOT_SHARED,
}

Facts = Mapping[str, Any]
"""Result of `ssdet.execution.doctor.node.survey`, or Ray's record of a node."""


@dataclass(frozen=True)
class Finding:
    """Result of one check on one machine."""

    node: str
    check: str
    found: str
    ok: bool = True
    way_out: str = ""
    """What to do if the check failed."""


def compare(
    node: str, facts: Facts, driver: Facts | None = None, declared: Facts | None = None
) -> list[Finding]:
    """Compare the facts of a machine with the requirements.

    On a cluster, also with the facts of the driver, and with the resources that were declared to
    Ray: `GPU` and `object_store_memory`.
    """
    if "error" in facts:
        return [problem(node, "answer", facts["error"])]
    findings = [
        _version(node, name, text, driver["versions"].get(name) if driver else text)
        for name, text in facts["versions"].items()
    ]
    for check in ("CPUs", "GPUs", *NEEDED, "sockets", "video", "store", "data"):
        value: Any = facts.get(check)
        if isinstance(value, Mapping):
            findings.append(problem(node, check, value["error"]))
        elif check == "GPUs":
            findings.append(
                _gpu_finding(node, value, int(declared.get("GPU", 0)) if declared else 0)
            )
        elif check in NEEDED:
            findings.append(_amount(node, check, value))
        elif check == "data" and driver and value != driver[check]:
            findings.append(problem(node, check, f"{value}, but the driver sees {driver[check]}"))
        elif value is not None:
            findings.append(Finding(node, check, str(value)))
    return findings + ([_object_store(node, facts["/dev/shm"], declared)] if declared else [])


def clock_finding(node: str, samples: Iterable[tuple[float, float, float]]) -> Finding:
    """Offset of a clock from samples (sent, remote time, received), in epoch seconds.

    The remote time is assumed to be in the middle of the quickest round trip; the error is at most
    half of it (Cristian's algorithm).
    """
    sent, remote, received = min(samples, key=lambda sample: sample[2] - sample[0])
    offset, error = remote - (sent + received) / 2, (received - sent) / 2
    found = f"{offset:+.2f} s ± {error:.2f}"
    wrong = abs(offset) - error > MAX_SKEW
    return problem(node, "clock", found) if wrong else Finding(node, "clock", found)


def problem(node: str, check: str, found: str) -> Finding:
    """A failed check, with its way out."""
    lost = check == "store" and found.startswith(("FileNotFoundError", "the driver does not see"))
    return Finding(node, check, found, False, NOT_SHARED if lost else WAYS_OUT[check])


def _version(node: str, name: str, found: str, wanted: str | None) -> Finding:
    if found == wanted:
        return Finding(node, name, found)
    way_out = f"the driver has {wanted or 'none'}: install the same on every node (`ray up` does)"
    return Finding(node, name, found, False, way_out)


def _gpu_finding(node: str, gpus: Sequence[str], declared: int) -> Finding:
    names = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "none"
    if len(gpus) < declared:
        return problem(node, "GPUs", f"{names}; Ray was told of {declared}")
    return Finding(node, "GPUs", names)


def _amount(node: str, check: str, size: float) -> Finding:
    found = f"{size / GB:.1f} GB"
    if size < NEEDED[check]:
        return problem(node, check, f"{found}, {NEEDED[check] / GB:g} GB are needed")
    return Finding(node, check, found)


def _object_store(node: str, shm: Any, declared: Facts) -> Finding:
    size = declared.get("object_store_memory", 0.0)
    found = f"{size / GB:.1f} GB"
    if not isinstance(shm, Mapping) and size > shm:
        return problem(node, "object store", f"{found}, /dev/shm {shm / GB:.1f} GB")
    return Finding(node, "object store", found)
