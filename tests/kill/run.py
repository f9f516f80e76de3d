"""kill -9 of an experiment's driver at random moments, the same command again, the same table.

    python tests/kill/run.py --kills 3 --seed 0

Runs one experiment undisturbed and once with kills, each in a store of its own, and compares the
tables byte for byte. Prints what was running at each kill. Takes some minutes on two cores.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = "--preset smoke --seeds 2 --pretrain-steps 150 --finetune-steps 60 --arms cls view"
COMMAND = [sys.executable, "experiments/ablate_cutmix.py", *OPTIONS.split()]


def start(store: Path) -> subprocess.Popen:
    """The experiment as a process group of its own, output in STORE.log."""
    log = open(f"{store}.log", "a")  # noqa: SIM115  # lives as long as the process
    return subprocess.Popen(
        [*COMMAND, "--store", str(store)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )


def stages(store: Path) -> dict[str, str]:
    """Done stages, and the step of those that are half done."""
    found = {}
    for folder in (store / "stages").glob("*-*"):
        if not folder.is_dir():
            continue
        log = folder / "metrics.jsonl"
        steps = (
            [0, *(int(n) for n in re.findall(r'"step": (\d+)', log.read_text()))]
            if log.exists()
            else [0]
        )
        found[folder.name] = "done" if (folder / "DONE").exists() else f"step {max(steps)}"
    return found


def finish(store: Path) -> float:
    """Run to the end; returns seconds. Exits with the log's end where the experiment fails."""
    started = time.monotonic()
    if start(store).wait() != 0:
        sys.exit(f"the experiment failed:\n{Path(f'{store}.log').read_text()[-4000:]}")
    return time.monotonic() - started


def main() -> None:
    """Compare an undisturbed with a killed run; exit status 1 if their tables differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        seconds = finish(whole)
        print(f"undisturbed: {seconds:.0f} s, {len(stages(whole))} stages", flush=True)
        for kill in range(options.kills):
            driver = start(cut)
            time.sleep(dice.uniform(0.25, 0.45) * seconds)
            if driver.poll() is not None:
                print("the experiment ended before it was killed")
                break
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            now = stages(cut)
            half = [f"{name} at {step}" for name, step in now.items() if step != "done"]
            done = len(now) - len(half)
            print(f"kill {kill + 1}: {done} stages done, half done: {half or 'none'}", flush=True)
        print(f"last run: {finish(cut):.0f} s")
        tables = [(s / "tables/ablate_cutmix/table.csv").read_bytes() for s in (whole, cut)]
        same_stages = stages(whole).keys() == stages(cut).keys()
    print(tables[0].decode())
    print("same table, same stages" if tables[0] == tables[1] and same_stages else "DIFFERENT")
    sys.exit(tables[0] != tables[1] or not same_stages)


if __name__ == "__main__":
    main()
