"""kill -9 of drivers, trials and workers at random moments: the same table, no stage twice.

    python tests/kill/run.py --seed 0            # three kills of a small experiment's driver
    python tests/kill/run.py --seed 0 --storm    # ten kills of two studies, one of 8 arms

Runs each experiment undisturbed and once with kills, each in a separate store, and compares tables
byte for byte and stages; finished stages must not change. Prints the running stages at each kill.
Takes some minutes on two cores, the storm a quarter of an hour.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Trouble:
    """An experiment, the number of kills, and the kinds of processes that are killed in turn."""

    study: str
    options: str
    kills: int
    victims: tuple[str, ...] = ("driver",)


SMALL = Trouble(
    "ablate_cutmix",
    "--preset smoke --seeds 2 --pretrain-steps 150 --finetune-steps 60 --arms cls view",
    kills=3,
)
STORM = (
    Trouble(
        "ablate_combination",
        "--preset smoke --seeds 3 --pretrain-steps 120 --finetune-steps 60",
        kills=8,
        victims=("trial", "driver"),
    ),
    Trouble(
        "ablate_cutmix",
        "--preset tiny --seeds 1 --pretrain-steps 120 --finetune-steps 60 --arms view --workers 2",
        kills=2,
        victims=("worker",),
    ),
)
PROCESS = {"trial": "ray::ImplicitFunc", "worker": "TrainWorker"}


def start(trouble: Trouble, store: Path) -> subprocess.Popen:
    """The experiment as a process group of its own, output in STORE.log."""
    command = [sys.executable, f"experiments/{trouble.study}.py", *trouble.options.split()]
    log = open(f"{store}.log", "a")  # noqa: SIM115  # lives as long as the process
    return subprocess.Popen(
        [*command, "--store", str(store)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )


def stages(store: Path) -> dict[str, str]:
    """Done stages with the moment of their end, and the step of those that are half done."""
    found = {}
    for folder in (store / "stages").glob("*-*"):
        if not folder.is_dir():
            continue
        log, done = folder / "metrics.jsonl", folder / "DONE"
        text = log.read_text() if log.exists() else ""
        steps = [0, *(int(n) for n in re.findall(r'"step": (\d+)', text))]
        found[folder.name] = (
            f"done {done.stat().st_mtime_ns}" if done.exists() else f"step {max(steps)}"
        )
    return found


def end_of(driver: subprocess.Popen, store: Path) -> None:
    """Wait for the end; exits with the log's end where the experiment fails."""
    if driver.wait() != 0:
        sys.exit(f"the experiment failed:\n{Path(f'{store}.log').read_text()[-4000:]}")


def victim(kind: str, driver: subprocess.Popen, dice: random.Random) -> int | None:
    """Process to kill; None where no such process runs just now."""
    if kind == "driver":
        return driver.pid
    try:
        below = psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    named = []
    for process in below:
        try:
            if PROCESS[kind] in " ".join(process.cmdline()):
                named.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return dice.choice(sorted(named)) if named else None


def disturb(trouble: Trouble, store: Path, seconds: float, dice: random.Random) -> dict[str, str]:
    """Kill until the number is reached, run to the end; stages that were done at some kill."""
    driver, kept = start(trouble, store), {}
    for kill in range(trouble.kills):
        kind = trouble.victims[kill % len(trouble.victims)]
        time.sleep(dice.uniform(0.5, 1.0) * seconds / (trouble.kills + 1) + (kind == "driver") * 8)
        while (pid := victim(kind, driver, dice)) is None and driver.poll() is None:
            time.sleep(0.3)
        if driver.poll() is not None or pid is None:
            print(f"kill {kill + 1}: the experiment ended before it")
            break
        os.kill(pid, signal.SIGKILL)
        if kind == "driver":
            driver.wait()
        now = stages(store)
        half = [f"{name} at {step}" for name, step in now.items() if not step.startswith("done")]
        kept |= {name: step for name, step in now.items() if step.startswith("done")}
        print(
            f"kill {kill + 1}, {kind}: {len(now) - len(half)} stages done, half done: "
            f"{', '.join(half) or 'none'}",
            flush=True,
        )
        if kind == "driver":
            driver = start(trouble, store)
    end_of(driver, store)
    return kept


def compare(trouble: Trouble, dice: random.Random) -> bool:
    """Whether a disturbed run ends as an undisturbed one does."""
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        began = time.monotonic()
        end_of(start(trouble, whole), whole)
        seconds = time.monotonic() - began
        print(f"{trouble.study}, undisturbed: {seconds:.0f} s, {len(stages(whole))} stages")
        began = time.monotonic()
        kept = disturb(trouble, cut, seconds, dice)
        print(f"disturbed: {time.monotonic() - began:.0f} s in all")
        tables = [(s / "tables" / trouble.study / "table.csv").read_bytes() for s in (whole, cut)]
        ended = stages(cut)
        same = stages(whole).keys() == ended.keys()
        once = all(ended[name] == moment for name, moment in kept.items())
    print(tables[0].decode())
    print("same table" if tables[0] == tables[1] else "DIFFERENT TABLE", end="; ")
    print(f"{len(ended)} stages, {'the same' if same else 'OTHERS'}", end="; ")
    print("none was run again" if once else "SOME WERE RUN AGAIN", flush=True)
    return tables[0] == tables[1] and same and once


def main() -> None:
    """Exit status 1 if any disturbed run ends differently."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storm", action="store_true")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    outcomes = [compare(trouble, dice) for trouble in (STORM if options.storm else (SMALL,))]
    sys.exit(not all(outcomes))


if __name__ == "__main__":
    main()
