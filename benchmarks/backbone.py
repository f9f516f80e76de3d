"""A training step of X3D: the accelerated network beside pytorchvideo's.

    python benchmarks/backbone.py                 # X3D-M at 112 and 224 pixels, x3d_tiny at 24
    python benchmarks/backbone.py --sizes tiny    # seconds

Forward, backward and SGD in float32 on one thread; CPU time, interleaved in one process, median of
the rounds. The accelerated network makes the process keep freed memory, which speeds up the other
one too. pytorchvideo has no network as small as x3d_tiny: there it is our own before acceleration,
with 4 sub-batches. Memory is what a step adds to the process at its peak.
"""

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ssdet.models import accelerate, create

SIZES = {"112": (4, 16, 112), "224": (2, 16, 224), "tiny": (32, 16, 24)}
TARGETS = {"112": 1.8, "224": 1.1, "tiny": 1.8}
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'clips':>14} {'plain':>9} {'fast':>9} {'ratio':>6} {'hold to':>8} {'memory':>7}")
    for size in options.sizes:
        shape = "x".join(map(str, SIZES[size]))
        plain, fast = seconds(size, options.rounds)
        memory = in_child(peak, size, True) / in_child(peak, size, False)
        print(
            f"{shape + '²':>14} {plain:8.3f}s {fast:8.3f}s {plain / fast:6.2f} "
            f"{TARGETS[size]:>8} {memory:6.2f}x",
            flush=True,
        )


def seconds(size: str, rounds: int) -> list[float]:
    torch.set_num_threads(1)
    plain = network(size)
    steps = [step_of(plain, size), step_of(accelerated(size), size)]
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for step, taken in zip(steps, times, strict=True):
            start = time.process_time()
            step()
            taken.append(time.process_time() - start)
    return [statistics.median(taken[1:]) for taken in times]


def network(size: str) -> nn.Module:
    if size == "tiny":
        return create("x3d_tiny", 12, norm_splits=4)
    from pytorchvideo.models.x3d import create_x3d

    _, frames, pixels = SIZES[size]
    return create_x3d(input_clip_length=frames, input_crop_size=pixels, head_activation=None)


def accelerated(size: str) -> nn.Module:
    own = create("x3d_tiny", 12, norm_splits=4) if size == "tiny" else create("x3d_m", 400)
    return accelerate(own)


def step_of(model: nn.Module, size: str) -> Step:
    batch, frames, pixels = SIZES[size]
    clips = torch.randn(batch, 3, frames, pixels, pixels)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(clips).flatten(2).mean(2) if size == "tiny" else model(clips)
        nn.functional.cross_entropy(logits, torch.zeros(logits.shape[0], *logits.shape[2:]).long()).backward()
        optimizer.step()

    return step
