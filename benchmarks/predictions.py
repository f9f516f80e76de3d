"""Writing, reading and averaging of prediction sets, compared with compressed npz and memcpy.

    python benchmarks/predictions.py          # 400 videos of 690 frames x 157 classes
    python benchmarks/predictions.py --full   # 1,863 videos, 400 MB, minutes (npz)

CPU seconds (waiting for the disk is not counted), all forms interleaved in one process on one
thread; the best of the rounds. Reading opens and copies all videos into one fresh matrix, as
memcpy does; the mean checks its members' sums first.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ssdet.evaluation import PredictionSet, PredictionWriter
from ssdet.evaluation.ensembling.combination import mean_probability

FRAMES, CLASSES, FPS = 690, 157, 24.0
Scores = dict[str, np.ndarray]
ROWS = (
    ("write", "write npz", 8.0),
    ("read", "read npz", 8.0),
    ("mean of 3", "mean npz", 8.0),
    ("read", "memcpy", 0.55),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="as many videos as the Charades test")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    scores = {
        str(i): torch.from_numpy(rng.random((FRAMES, CLASSES), np.float32)).half().numpy()
        for i in range(1863 if options.full else 400)
    }
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(scores, Path(folder), options.rounds)
    megabytes = sum(scores_TK.nbytes for scores_TK in scores.values()) / 1e6
    print(f"{len(scores)} videos, {megabytes:.0f} MB")
    for name, spent in seconds.items():
        print(f"{name:12}{spent:>9.4f} s{megabytes / spent:>9.0f} MB/s")
    for form, base, target in ROWS:
        aim = f" (target {target})" if target else ""
        print(f"speed of {form} over {base}: {seconds[base] / seconds[form]:.2f}{aim}")


def measure(scores: Scores, folder: Path, rounds: int) -> dict[str, float]:
    stacked = np.concatenate(list(scores.values()))
    forms: dict[str, Callable[[], object]] = {
        "memcpy": stacked.copy,
        "write": lambda: write(folder / "set", scores),
        "read": lambda: read(folder / "set"),
        "mean of 3": lambda: mean_probability(
            [PredictionSet.open(folder / "set")] * 3, folder / "mean"
        ),
        "write npz": lambda: np.savez_compressed(folder / "set.npz", **scores),
        "read npz": lambda: read_npz(folder / "set.npz"),
        "mean npz": lambda: mean_npz([folder / "set.npz"] * 3, folder / "mean.npz"),
    }
    seconds = dict.fromkeys(forms, float("inf"))
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.process_time()
            form()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def write(folder: Path, scores: Scores) -> None:
    with PredictionWriter(folder, CLASSES) as writer:
        for video, scores_TK in scores.items():
            writer.add(video, scores_TK, FPS)


def read(folder: Path) -> np.ndarray:
    return np.concatenate(list(PredictionSet.open(folder).values()))


def read_npz(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return np.concatenate([archive[video] for video in archive.files])


def mean_npz(paths: list[Path], out: Path) -> None:
    archives = [np.load(path) for path in paths]
    means = {
        video: np.mean([archive[video] for archive in archives], axis=0, dtype=np.float32)
        for video in archives[0].files
    }
    np.savez_compressed(out, **{video: mean.astype(np.float16) for video, mean in means.items()})


if __name__ == "__main__":
    main()
