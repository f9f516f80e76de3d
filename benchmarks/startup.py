"""Start-up: seconds and peak memory of every `--help`, and of listing a small store.

    python benchmarks/startup.py

Each line is a separate process: the fastest wall time of three, its CPU time, and the largest
resident memory. The bounds are 0.4 s and 80 MB for a command's help, 1 s for an experiment's help
and for `ssdet results ls`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from index_scale import make_store

from ssdet.cli.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
TRIES = 3
SSDET = [sys.executable, "-m", "ssdet.cli.__main__"]


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of a command; its output is dropped."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def show(label: str, command: Sequence[str], seconds: float) -> None:
    """Print the fastest of several runs."""
    wall, cpu, memory = min(measured(command) for _ in range(TRIES))
    print(f"{label:36} {wall:6.2f} s  {cpu:6.2f} s CPU  {memory:5.0f} MB  (bound {seconds:g} s)")


def main() -> None:
    show("python", [sys.executable, "-c", "pass"], 0.4)
    show("ssdet --help", [*SSDET, "--help"], 0.4)
    for name in COMMANDS:
        show(f"ssdet {name} --help", [*SSDET, name, "--help"], 0.4)
    for path in sorted((ROOT / "experiments").glob("*.py")):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            show(f"{path.name} --help", [sys.executable, str(path), "--help"], 1.0)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), 100)
        for command in ("ls", "best"):
            line = [*SSDET, "results", command, "--store", str(store)]
            show(f"ssdet results {command}, 100 stages", line, 1.0)


if __name__ == "__main__":
    main()
