"""Dense evaluation at the size of Charades: time and peak memory, compared with scikit-learn.

    python benchmarks/evaluation_scale.py               # a tenth of the videos, under a minute
    python benchmarks/evaluation_scale.py --full        # 1,863 videos, 1.28 M frames x 157 classes

Synthetic float16 scores are written to a temporary folder as a prediction set; each scorer runs in
a separate process, whose peak resident memory the system reports. scikit-learn scores a few classes
with all scores in memory; its time and memory are extrapolated and marked so. The official score of
25 points per video is compared with scikit-learn's, class by class.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.protocols.charades_official import localization, official_points, truth_of

CLASSES, FPS = 157, 24.0
VIDEOS, SECONDS = 1863, 28.71
SKLEARN_CLASSES = 4
MIB = 1 << 20
STATE_MIB = 40.0


@dataclass
class Run:
    """One way to score, in its own process."""

    result: Any
    wall: float
    cpu: float
    before: float
    peak: float
    """Peak resident memory in MiB, before (imports, annotation) and in all."""


def annotation(videos: int) -> Manifest:
    """As many videos, seconds and labels a frame as Charades has."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(videos):
        duration = float(np.clip(rng.normal(SECONDS, 8.0), 7.0, 190.0))
        starts = rng.uniform(-0.2, 0.9, rng.poisson(6.8)) * duration
        spans = [
            Segment(int(rng.integers(CLASSES)), start, start + float(rng.exponential(13.0)) + 0.5)
            for start in starts.tolist()
        ]
        made.append(Video(f"V{number:05d}", "", "test", segments=tuple(spans), duration=duration))
    return Manifest("synthetic", tuple(map(str, range(CLASSES))), tuple(made))


def write(folder: Path, manifest: Manifest) -> int:
    """Noisy scores of every frame; returns the frames."""
    rng, frames = np.random.default_rng(1), 0
    with PredictionWriter(folder, CLASSES) as writer:
        for video in manifest.videos:
            count = round(video.duration * FPS)
            scores_TK = rng.random((count, CLASSES), dtype=np.float32)
            scores_TK += manifest.frame_targets(video, count, FPS).T * np.float32(0.3)
            writer.add(video.id, scores_TK / np.float32(1.3), FPS)
            frames += count
    return frames


def dense(folder: Path, videos: int) -> tuple[float, list[float | None]]:
    manifest = annotation(videos)
    predictions = PredictionSet.open(folder)
    score = dense_map(predictions, frame_labels(manifest, predictions))
    return score.value, list(score.per_class[:SKLEARN_CLASSES])


def scikit_learn(folder: Path, videos: int) -> tuple[list[float], float]:
    """A few classes, and the seconds of CPU that each took once all scores were in memory."""
    manifest = annotation(videos)
    predictions = PredictionSet.open(folder)
    labels = frame_labels(manifest, predictions)
    scores_NK = np.concatenate([predictions[v] for v in labels]).astype(np.float32)
    hits_NK = np.concatenate([labels[v] for v in labels])
    start = time.process_time()
    found = [
        average_precision_score(hits_NK[:, k], scores_NK[:, k]) for k in range(SKLEARN_CLASSES)
    ]
    return found, (time.process_time() - start) / SKLEARN_CLASSES


def official(folder: Path, videos: int) -> tuple[float, int, float, float]:
    """map, points, seconds of CPU of the score alone, largest difference to scikit-learn."""
    truth = truth_of(annotation(videos))
    points = dict(official_points(PredictionSet.open(folder), truth))
    rng = np.random.default_rng(2)  # no two equal scores: scikit-learn's rule for ties is another
    untied = {video: rows + 1e-9 * rng.random(rows.shape) for video, rows in points.items()}
    start = time.process_time()
    found = localization(untied, truth)
    seconds = time.process_time() - start
    hits_NK, scores_NK = (
        np.concatenate([one[v] for v in truth.hits]) for one in (truth.hits, untied)
    )
    other_K = [average_precision_score(t, s) for t, s in zip(hits_NK.T, scores_NK.T, strict=True)]
    return found["map"], len(scores_NK), seconds, float(np.abs(found["ap"] - other_K).max())


def peak() -> float:
    """Largest resident memory of this process so far, MiB, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measured(work: Callable[[], Any], answer: Any) -> None:
    torch.set_num_threads(1)
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    result = work()
    answer.send(Run(result, time.perf_counter() - wall, time.process_time() - cpu, before, peak()))


def alone(work: Callable[[], Any]) -> Run:
    """Run in a fresh process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(work, theirs))
    process.start()
    theirs.close()
    found: Run = mine.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the size of Charades")
    options = parser.parse_args()
    videos = VIDEOS if options.full else VIDEOS // 10
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "predictions"
        frames = write(folder, annotation(videos))
        size = (folder / "0.f16").stat().st_size
        print(
            f"{videos} videos, {frames:,} frames x {CLASSES} classes, {size / MIB:,.0f} MiB on disk"
        )
        stream = alone(partial(dense, folder, videos))
        learn = alone(partial(scikit_learn, folder, videos))
        points = alone(partial(official, folder, videos))
    report(stream, learn, points)


def report(stream: Run, learn: Run, points: Run) -> None:
    state = 2 * CLASSES * (1 << 15) * 4 / MIB
    (found, (classes, each)) = stream.result, learn.result
    whole = learn.cpu + (CLASSES - SKLEARN_CLASSES) * each
    print(f"{'':34}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}{'above start':>13}")
    print(f"{'dense_map, streamed':34}{row(stream)}")
    print(f"{f'scikit-learn, {SKLEARN_CLASSES} classes':34}{row(learn)}")
    print(f"{f'scikit-learn, {CLASSES} (extrapolated)':34}{'':9}{whole:>9.1f}")
    print(f"dense_map {found[0]:.6f}; labels are made from annotation on the way")
    print(
        f"CPU time, reading and labels included: {whole / stream.cpu:.1f}x less than scikit-learn "
        "(average precision alone: benchmarks/average_precision.py)"
    )
    print(f"state {state:.1f} MiB (target {STATE_MIB:.0f}), whatever the number of frames")
    differences = [abs(a - b) for a, b in zip(found[1], classes, strict=True) if a is not None]
    print(f"largest difference of those classes: {max(differences):.0e} (0)")
    value, count, seconds, apart = points.result
    print(
        f"official score of {count:,} x {CLASSES}: {seconds:.2f} s CPU, map {value:.6f}, largest "
        f"difference to scikit-learn {apart:.0e} (0)"
    )


def row(run: Run) -> str:
    return f"{run.wall:>9.1f}{run.cpu:>9.1f}{run.peak:>10.0f}{run.peak - run.before:>13.0f}"


if __name__ == "__main__":
    main()
