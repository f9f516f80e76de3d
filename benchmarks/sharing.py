"""Savings by sharing: a study as one graph, and the same rows each trained separately.

    python benchmarks/sharing.py [--seeds 3]

Both on one local Ray, with longer schedules than the preset `smoke`, in empty stores. A separate
row trains all its stages and its baseline, like a script for each row of a table.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ssdet.cli.experiment import Options, resolve
from ssdet.cli.study import load
from ssdet.execution.session import connect
from ssdet.studies import Store, run

FILE = Path(__file__).parents[1] / "experiments" / "ablate_combination.py"


def timed(options: Options) -> tuple[float, int]:
    """Seconds of a study in a separate store, and the number of stages that it ran."""
    with tempfile.TemporaryDirectory() as folder:
        study = resolve(load(FILE).STUDY, options)
        began = time.perf_counter()
        plan = run(study, Store.open(folder))
        return time.perf_counter() - began, len(plan.stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    options = Options(preset="smoke", seeds=seeds, pretrain_steps=60, finetune_steps=30)
    out = Console(highlight=False)
    study = load(FILE).STUDY
    with connect("local"):
        timed(replace(options, seeds=1, arms=("freeze",)))  # processes and caches are warm
        shared, stages = timed(options)
        out.print(f"one graph: {stages} stages, {shared:.0f} s")
        naive, trained = 0.0, 0
        for arm in study.arms:
            if arm.name == study.baseline:
                continue
            seconds, count = timed(replace(options, arms=(arm.name,)))
            naive, trained = naive + seconds, trained + count
            out.print(f"{arm.name} and its baseline: {count} stages, {seconds:.0f} s")
    out.print(f"each row on its own: {trained} stages, {naive:.0f} s")
    out.print(
        f"sharing: {trained / stages:.2f}x fewer stages, {naive / shared:.2f}x less wall time"
    )


if __name__ == "__main__":
    sys.exit(main())
