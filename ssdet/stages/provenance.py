"""Provenance of a stage: revision, packages, hardware, time."""

import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ssdet
from ssdet import plugins

PACKAGES = ("torch", "torchvision", "pytorchvideo", "ray", "av", "numpy")


@dataclass(frozen=True)
class Attempt:
    """One process's work on a stage."""

    number: int
    """1 for the first."""
    started: float
    """Epoch seconds."""
    before: float
    """Seconds that earlier attempts took, which were killed or failed."""
    host: str = ""


def provenance(
    attempt: Attempt, gpu: str | None, gpus: float, how: Mapping[str, Any]
) -> dict[str, Any]:
    """Code revision, packages, hardware and time of a stage that this attempt has finished.

    gpu, gpus: the device that training workers ran on, and how many of them (or what share) were
    held. Time counts all attempts, as if each had run on what the last one did.
    """
    seconds = attempt.before + time.time() - attempt.started
    return {
        "ssdet": ssdet.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES} | plugins.versions(),
        "host": platform.node(),
        "processor": processor(),
        "gpu": gpu,
        "started": attempt.started,
        "attempts": attempt.number,
        "seconds": seconds,
        "gpu_seconds": seconds * gpus if gpu else 0.0,
        **how,
    }


@lru_cache(maxsize=1)
def revision() -> str | None:
    """Git revision of the code, with "+changes" where files differ from it; None outside git."""
    folder = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
