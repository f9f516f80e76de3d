"""The index of a store: seconds to open stores of growing size and to query the best run.

    python benchmarks/index_scale.py                     # 1,000, 10,000 and 100,000 runs
    python benchmarks/index_scale.py --runs 1000 10000

Synthetic stores in a temporary folder: of every ten stages one is a pretraining, one its probe, and
four are fine-tunings with a prediction each, so that half of the stages are runs; every thousand
runs belong to a study. Each measurement is a separate process that has imported `ssdet.results`
before the clock starts; `cold` has no index, `warm` a current one, and `one new` one that lacks a
single finished stage. Times of commands include their start-up.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

STUDY = 1000
"""Runs of a study."""
TASKS = {
    "open, best": "found = open(uri).best('dense_map')",
    "open, runs": "found = open(uri).runs",
}
COMMANDS = {
    "results best": ["results", "best"],
    "results ls": ["results", "ls"],
}
CLIP = {
    "frames": 16, "stride": 1, "size": 24, "short_side": [24, 24], "flip": 0.0,
    "mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225],
}  # fmt: skip
OPTIM = {
    "steps": 300, "batch": 16, "lr": 0.4, "optimizer": "sgd", "momentum": 0.9,
    "weight_decay": 1e-05, "schedule": "onecycle", "milestones": [0.8], "warmup": 0,
    "head_lr_mult": 1.0, "accumulate": 1, "clip_grad": 0.0, "amp": "off", "ema": 0.0,
}  # fmt: skip
MODEL = {"name": "x3d_tiny", "options": {"dropout": 0.0}, "norm_group": 8, "weights": ""}


def training(task: str, seed: int, lr: float) -> dict[str, Any]:
    """A training recipe as stages keep it."""
    return {
        "task": task, "model": MODEL, "clip": CLIP, "optim": {**OPTIM, "lr": lr}, "seed": seed,
        "readout": "frame", "loss": "soft_ce", "augment": "none", "augment_options": {},
        "background": "class", "validations": 2,
    }  # fmt: skip


def identity(kind: str, recipe: Mapping[str, Any], parents: list[str]) -> tuple[str, dict]:
    """Id of a stage and its identity, whose hash is the id."""
    values = {"format": 3, "kind": kind, "recipe": recipe, "parents": parents, "data": DATA[kind]}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    return f"{kind}-{digest}", values


DATA = {
    kind: "".join(f"{hashlib.sha256(f'{split}'.encode()).hexdigest()}," for split in splits)
    + "decoded at None"
    for kind, splits in {
        "pretrain": ["up"], "finetune": ["train", "val"], "predict": ["val", "test"],
        "probe": ["train", "val", "test"],
    }.items()
}  # fmt: skip


def group(number: int) -> Iterator[tuple[str, dict]]:
    """Ten stages, parents first: a pretraining, its probe, four fine-tunings and predictions."""
    start, values = identity("pretrain", training("pretrain", number, 0.1), [])
    yield start, values
    scoring = {"clip": CLIP, "window": 256}
    recipe = {"probe": {"predict": scoring, "l2": 0.001, "iterations": 200}, "fresh": None}
    yield identity("probe", recipe, [start])
    for rate in (0.1, 0.2, 0.3, 0.4):
        tuned, values = identity("finetune", training("finetune", number, rate), [start])
        yield tuned, values
        yield identity("predict", scoring, [tuned])


def result(stage: str) -> dict[str, Any]:
    """Result of a stage: scores derived from its id."""
    if not stage.startswith(("predict-", "probe-")):
        return {"steps": 300, "replaced": {}}
    value = int(stage[-8:], 16) / 2**32
    score = {
        "value": value, "protocol": "dense_map/v1", "per_class": [value] * 10, "videos_scored": 120,
        "videos_expected": 120, "frames": 5760, "empty_class_rule": "excluded",
    }  # fmt: skip
    return {"scores": {"val": score, "test": score}, "unreadable": {}}


def write_stage(store: Path, stage: str, values: Mapping[str, Any], number: int) -> None:
    """Folder of a finished stage."""
    folder = store / "stages" / stage
    folder.mkdir()
    how = {"revision": "0123abc", "host": "node", "gpu": None, "started": 1e9 + number}
    (folder / "recipe.json").write_text(json.dumps(values, indent=1))
    (folder / "provenance.json").write_text(json.dumps({**how, "seconds": 60.0}, indent=1))
    (folder / "DONE").write_text(json.dumps(result(stage), indent=1))


def write_study(store: Path, name: str, stages: Mapping[str, dict]) -> None:
    """The record of a study with these stages."""
    from ssdet.studies.graph.record import RunRecord, StudyRecord

    finals = [s for s in stages if s.startswith("predict-")]
    arms = tuple({"name": f"arm{k}"} for k in range(4))
    runs = tuple(
        RunRecord(f"arm{k % 4}", stages[stages[s]["parents"][0]]["recipe"]["seed"], s, None)
        for k, s in enumerate(finals)
    )
    record = StudyRecord({"name": name}, arms, runs, stages, {}, 1e9)
    folder = store / "studies" / name
    folder.mkdir(parents=True)
    values = {**vars(record), "runs": [vars(run) for run in runs]}
    (folder / f"{record.digest}.json").write_text(json.dumps(values))


def make_store(folder: Path, runs: int) -> Path:
    """A store with this number of runs (a multiple of five), and twice as many stages."""
    store = folder / f"store{runs}"
    (store / "stages").mkdir(parents=True)
    for first in range(0, runs // 5, STUDY // 5):
        numbers = range(first, min(first + STUDY // 5, runs // 5))
        stages = {s: values for number in numbers for s, values in group(number)}
        for place, (stage, values) in enumerate(stages.items()):
            write_stage(store, stage, values, place)
        write_study(store, f"study{first}", stages)
    return store


def measured(store: Path, task: str) -> tuple[float, float]:
    """Wall and CPU seconds of a task in a separate process."""
    code = (
        "import time, sys; from ssdet.results.queries.results import Results\n"
        "import pandas, pyarrow.parquet\n"
        "open, uri = Results.open, sys.argv[1]\n"
        f"wall, cpu = time.perf_counter(), time.process_time(); {TASKS[task]}\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, store], check=True, capture_output=True, text=True
    )
    wall, cpu = map(float, ran.stdout.split())
    return wall, cpu


def command(store: Path, arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command, with its start."""
    started, before = time.perf_counter(), os.times()
    line = [sys.executable, "-m", "ssdet.cli.__main__", *arguments, "--store", str(store)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - started, cpu


def finish_another(store: Path, number: int) -> None:
    """Ten more stages finish."""
    for stage, values in group(10**7 + number):
        write_stage(store, stage, values, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where stores are made; kept")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}

    def show(runs: int, label: str, times: tuple[float, float]) -> None:
        seconds.setdefault(label, []).append(times[1])
        print(f"{runs:>8,} runs  {label:24} {times[0]:7.2f} s  {times[1]:7.2f} s CPU", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for runs in options.runs:
            store = (options.folder or Path(folder)) / f"store{runs}"
            if not store.is_dir():
                make_store(store.parent, runs)
            for path in store.glob("index*"):
                path.unlink()
            show(runs, "cold: open, best", measured(store, "open, best"))
            for task in TASKS:
                show(runs, f"warm: {task}", min(measured(store, task) for _ in range(3)))
            for name, arguments in COMMANDS.items():
                show(runs, f"warm: ssdet {name}", min(command(store, arguments) for _ in range(3)))
            finish_another(store, runs)
            show(runs, "one new: open, best", measured(store, "open, best"))
            if options.folder is None:
                shutil.rmtree(store)
    for label, times in seconds.items():
        growth = [f"{larger / smaller:.1f}" for smaller, larger in pairwise(times)]
        if growth:
            print(f"CPU seconds, each size over the one before: {label}: {', '.join(growth)}")


if __name__ == "__main__":
    main()
