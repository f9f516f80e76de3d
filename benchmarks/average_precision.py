"""Speed of average precision compared with scikit-learn and a sorting meter.

    python benchmarks/average_precision.py          # 200,000 frames x 16 classes, half a minute
    python benchmarks/average_precision.py --full   # 1.65 M frames x 157 classes, minutes, 5 GB

Ratios of CPU time on one thread, all forms interleaved in one process; the best of the rounds.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from ssdet.evaluation import HistogramAP, average_precision

Array = np.ndarray
VIDEO = 690  # frames of an average Charades video at 24 fps
FORMS = {
    "sort, shared ties": ("exact", 3.0, 4.0),
    "sort, stable ties": ("stable", 3.0, 4.0),
    "float16 histogram": ("histogram", 12.0, 12.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the size of Charades")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames, classes = (1_650_000, 157) if options.full else (200_000, 16)
    report_meters(frames, classes, options.rounds)


def report_meters(frames: int, classes: int, rounds: int) -> None:
    """Speed over the two usual ways, and the largest difference between equal rules."""
    rng = np.random.default_rng(0)
    scores = rng.random((frames, classes), dtype=np.float32)
    targets = rng.random((frames, classes), dtype=np.float32) < 0.024
    half = torch.from_numpy(scores).half().numpy()
    seconds, values = interleaved(
        {
            "scikit-learn": lambda: by_class(sklearn_ap, scores, targets),
            "meter": lambda: by_class(meter_ap, scores, targets),
            "exact": lambda: average_precision(scores, targets, ties="sklearn"),
            "stable": lambda: average_precision(scores, targets),
            "histogram": lambda: stream(half, targets),
        },
        rounds,
    )
    print(f"{frames} frames x {classes} classes; higher is better (target)")
    print(f"{'':20}{'seconds':>9}{'x meter':>14}{'x scikit-learn':>18}")
    for label, (form, over_meter, over_sklearn) in FORMS.items():
        spent = seconds[form]
        print(
            f"{label:20}{spent:>9.2f}"
            f"{seconds['meter'] / spent:>8.1f} ({over_meter:.0f})"
            f"{seconds['scikit-learn'] / spent:>12.1f} ({over_sklearn:.0f})"
        )
    rounded = average_precision(half, targets, ties="sklearn")
    sort_error = np.abs(values["exact"] - values["scikit-learn"]).max()
    histogram_error = np.abs(values["histogram"] - rounded).max()
    print(f"largest error: sort {sort_error:.0e} (0), histogram {histogram_error:.0e} (0)")


def interleaved(
    forms: dict[str, Callable[[], Array]], rounds: int
) -> tuple[dict[str, float], dict[str, Array]]:
    seconds, values = dict.fromkeys(forms, float("inf")), {}
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.process_time()
            values[name] = form()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds, values


def by_class(ap: Callable[[Array, Array], float], scores: Array, targets: Array) -> Array:
    return np.array([ap(s, t) for s, t in zip(scores.T, targets.T, strict=True)])


def sklearn_ap(scores: Array, targets: Array) -> float:
    return average_precision_score(targets, scores)


def meter_ap(scores: Array, targets: Array) -> float:
    """Full sort, precision at every rank, mean over the positives."""
    _, order = torch.from_numpy(scores).sort(descending=True)
    hits = torch.from_numpy(targets)[order].float()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum().clamp(min=1))


def stream(half: Array, targets: Array) -> Array:
    histogram = HistogramAP(half.shape[1])
    for first in range(0, len(half), VIDEO):
        histogram.add(half[first : first + VIDEO], targets[first : first + VIDEO])
    return histogram.average_precision()


if __name__ == "__main__":
    main()
