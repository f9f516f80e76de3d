"""The paired bootstrap at full size: time, memory, and error compared with its stated bound.

    python benchmarks/significance.py          # 300 videos x 16 classes, and a study; seconds
    python benchmarks/significance.py --full   # Charades: 1,863 videos x 157 classes, two minutes

Two arms of float16 scores, 1,000 resamples. The naive form concatenates the drawn videos and scores
them again with the fast exact meter, for a few resamples and classes in the same process, scaled to
all. Compare CPU seconds where other work shares the cores.
"""

import argparse
import resource
import time

import numpy as np
import torch

from ssdet.evaluation import average_precision, paired_bootstrap

Array = np.ndarray
Scores = dict[str, Array]
STRIDE = 10  # frames between two logits of the model
RESAMPLES = 1000
SECONDS = 60  # to hold, on two idle cores
BOUND = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the size of Charades")
    parser.add_argument(
        "--checked", type=int, default=3, help="resamples that are also done naively"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    report("study", np.full(120, 48), 8, 5, options.checked, rng)
    videos, classes = (1863, 157) if options.full else (300, 16)
    frames = np.clip(rng.gamma(9, 688 / 9, videos), 100, 4000).astype(int)  # 28.7 s at 24 fps
    report("Charades" if options.full else "a part", frames, classes, 1, options.checked, rng)


def report(
    name: str, frames_V: Array, classes: int, seeds: int, checked: int, rng: np.random.Generator
) -> None:
    targets = {str(v): activity(frames, classes, rng) for v, frames in enumerate(frames_V)}
    a, b = ([scored(targets, gain, rng) for _ in range(seeds)] for gain in (1.2, 1.35))
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    result = paired_bootstrap(a, b, targets, RESAMPLES)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    added = peak() - before
    few = min(classes, 8)
    error, naive = against_naive(*([part(s, few) for s in arm] for arm in (a, b)),
                                 part(targets, few), checked)  # fmt: skip
    extrapolated = naive * RESAMPLES * classes / few
    positives = sum(hits.sum() for hits in targets.values())
    print(f"\n{name}: {len(targets)} videos, {frames_V.sum()} frames x {classes} classes, "
          f"{positives / frames_V.sum():.1f} labels a frame, {seeds} seeds")  # fmt: skip
    print(f"{RESAMPLES} resamples    {cpu:.1f} s of CPU, {wall:.1f} s on "
          f"{torch.get_num_threads()} threads ({SECONDS} on two)")  # fmt: skip
    print(f"naive            {extrapolated:.0f} s of CPU, x{extrapolated / cpu:.0f}")
    print(f"memory           {added:.2f} GB on top of {before:.2f} with the scores (4)")
    print(f"error            {error:.1e} in {checked} resamples, stated {result.error_bound:.1e}, "
          f"to hold {BOUND:.0e}")  # fmt: skip
    print(f"difference       {result.difference:+.5f} [{result.low:+.5f}, {result.high:+.5f}]")


def activity(frames: int, classes: int, rng: np.random.Generator) -> Array:
    """Segments of a third of the video on average, 3.8 labels a frame of 157 as in Charades."""
    first, length = rng.integers(0, frames, classes), rng.integers(1, frames + 1, classes)
    frame, shown = np.arange(frames)[:, None], rng.random(classes) < 0.072
    return (frame >= first) & (frame < first + length) & shown


def scored(targets: Scores, gain: float, rng: np.random.Generator) -> Scores:
    """Probabilities that drift within a video, interpolated from every tenth frame as logits."""
    scores = {}
    for video, hits_TK in targets.items():
        frames, classes = hits_TK.shape
        knots = rng.normal(size=(frames // STRIDE + 2, classes)).astype(np.float32)
        level = rng.normal(size=classes).astype(np.float32) - 3
        logits = level + 0.3 * knots.cumsum(axis=0)
        at, part = np.divmod(np.arange(frames), STRIDE)
        weight = (part / STRIDE).astype(np.float32)[:, None]
        dense = logits[at] * (1 - weight) + logits[at + 1] * weight + np.float32(gain) * hits_TK
        scores[video] = (1 / (1 + np.exp(-dense))).astype(np.float16)
    return scores


def part(scores: Scores, classes: int) -> Scores:
    return {video: rows[:, :classes] for video, rows in scores.items()}


def against_naive(
    a: list[Scores], b: list[Scores], targets: Scores, checked: int
) -> tuple[float, float]:
    """Largest error of single resamples, and CPU seconds of a naive one."""
    names, errors, spent = list(targets), [], 0.0
    for seed in range(checked):
        ours = paired_bootstrap(a, b, targets, 1, torch.Generator().manual_seed(seed)).low
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            names[v] for v in torch.randint(len(names), (1, len(names)), generator=generator)[0]
        ]
        seeds = torch.randint(len(a), (1, len(a)), generator=generator)[0].tolist()
        start = time.process_time()
        naive = np.mean([naive_map(b[s], targets, drawn) - naive_map(a[s], targets, drawn)
                         for s in seeds])  # fmt: skip
        spent += time.process_time() - start
        errors.append(abs(ours - naive))
    return max(errors), spent / checked


def naive_map(scores: Scores, targets: Scores, drawn: list[str]) -> float:
    rows, hits = (np.concatenate([part[video] for video in drawn]) for part in (scores, targets))
    return float(np.nanmean(average_precision(rows, hits, ties="sklearn")))


def peak() -> float:
    """Peak resident memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
