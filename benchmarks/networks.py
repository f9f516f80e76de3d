"""Time and peak memory of a training step of every network, relative to X3D.

    python benchmarks/networks.py                          # all, at tiny size
    python benchmarks/networks.py --full x3d_m pdan        # these, at the paper's size

Forward, backward and SGD with momentum in float32 on one thread, networks accelerated as in
training. Each has a separate process: memory is the peak above the process before the network was
built, that is weights, gradients, momentum and activations. Steps of X3D on clips (`x3d_tiny`, or
`x3d_m` with --full) are timed in alternation, to give ratios.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.data.features.detections import Detections
from ssdet.models import accelerate, create

Case = tuple[dict[str, Any], tuple[int, ...]]
TINY_CLIP, FULL_CLIP = (8, 3, 16, 24, 24), (1, 3, 16, 224, 224)
LONG_CLIP = (1, 3, 64, 224, 224)
OVER_TINY = {"backbone": "x3d_tiny"}
TINY_STEPS, FULL_STEPS = (16, 144, 64), (4, 1024, 256)
NARROW = {"in_features": 144}
WIDE = {"in_features": 1024}
HEADS = ("linear", "super_events", "tgm", "tgm_super_events")
GRAPHS = ("stgcn", "vs_st_mpnn")
TINY: dict[str, Case] = {
    "x3d_tiny": ({}, TINY_CLIP),
    **{name: (OVER_TINY, TINY_CLIP) for name in ("fast", "slow", "coarse")},
    **{name: ({**OVER_TINY, "grid": 3}, TINY_CLIP) for name in ("coarse_fine", "slowfast_det")},
    "slow_r50": (
        {"widths": (16, 32, 64), "depths": (1, 1, 1), "stage_strides": (1, 2, 1)}, TINY_CLIP
    ),
    "i3d": ({}, TINY_CLIP),
    "i3d_two_stream": ({}, (8, 5, 16, 24, 24)),
    **dict.fromkeys(HEADS, (NARROW, TINY_STEPS)),
    "pdan": ({**NARROW, "width": 128}, TINY_STEPS),
    "ms_tct": ({**NARROW, "dims": (32, 48, 72, 108), "heads": 4, "final": 64}, TINY_STEPS),
    "stgcn": ({**NARROW, "width": 64}, (16, 5, 64, 144)),
    "vs_st_mpnn": ({**NARROW, "width": 64, "symbols": 64}, (16, 5, 64, 144)),
}  # fmt: skip
"""Options, and the input: clips [B, C, T, H, W], features [B, D, T] or boxes [B, N, T, D]."""
FULL: dict[str, Case] = {
    **{name: ({}, FULL_CLIP) for name in ("x3d_m", "coarse", "coarse_fine", "slowfast_det")},
    **{name: ({}, FULL_CLIP) for name in ("fast", "slow")},
    "x3d_s": ({}, (1, 3, 13, 160, 160)),
    "x3d_xl": ({}, (1, 3, 16, 312, 312)),
    "i3d": ({}, LONG_CLIP),
    "i3d_two_stream": ({}, (1, 5, *LONG_CLIP[2:])),
    "slow_r50": ({}, (1, 3, 8, 224, 224)),
    **dict.fromkeys((*HEADS, "pdan", "ms_tct"), (WIDE, FULL_STEPS)),
    **dict.fromkeys(GRAPHS, ({"in_features": 2048}, (4, 10, 64, 2048))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one network")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = FULL if options.full else TINY
    if unknown := set(options.names) - set(cases):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(cases)}")
    if options.one:
        print(json.dumps(measured(*options.names, cases, options.rounds)))
        return
    print("| network | input | ms a step | × X3D | MiB |\n|---|---|---|---|---|")
    for name in options.names or cases:
        print(f"| `{name}` | {row(name, cases, options)} |", flush=True)


def row(name: str, cases: dict[str, Case], options: argparse.Namespace) -> str:
    """Table cells of one network, measured in a separate process."""
    shape = "×".join(map(str, cases[name][1]))
    flags = ["--one", "--rounds", str(options.rounds), *["--full"] * options.full]
    command = [sys.executable, __file__, name, *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return f"{shape} | over {options.limit:g} s | – | –"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"{shape} | {lines[-1] if lines else f'ended with {done.returncode}'} | – | –"
    found = json.loads(done.stdout)
    return f"{shape} | {found['ms']:,.0f} | {found['ratio']:.2f} | {found['mib']:,.0f}"


def measured(name: str, cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """CPU time of a step, over that of X3D, and its peak memory."""
    torch.set_num_threads(1)
    reference, classes = ("x3d_m", 157) if cases is FULL else ("x3d_tiny", 12)
    with torch.device("meta"):  # imports all that building needs
        create(name, classes, **cases[name][0])
        create(reference, classes)
    before = peak()
    step = training(name, classes, *cases[name])
    for _ in range(2):  # momentum buffers exist from the second step on
        step()
    above = peak() - before
    beside = training(reference, classes, *cases[reference])
    spent: list[tuple[float, float]] = [(seconds(step), seconds(beside)) for _ in range(rounds + 1)]
    own, others = zip(*spent[1:] or spent, strict=True)
    middle = statistics.median(own)
    return {"ms": 1e3 * middle, "ratio": middle / statistics.median(others), "mib": above}


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def training(
    name: str, classes: int, options: dict[str, Any], shape: tuple[int, ...]
) -> Callable[[], None]:
    network = accelerate(create(name, classes, **options)).train()
    arguments, steps = arguments_of(network, shape)
    targets_BKT = (torch.rand(shape[0], classes, steps) < 0.02).float()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(*arguments), targets_BKT).backward()
        optimizer.step()

    return step


def arguments_of(network: Any, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], int]:
    """Random input, and its number of steps."""
    batch, takes = shape[0], network.takes
    if takes == "clips":
        return (torch.randn(shape),), shape[2]
    if takes == "features":
        return (torch.randn(shape), lengths(batch, shape[2])), shape[2]
    _, boxes, steps, width = shape
    corners = torch.rand(batch, steps, boxes, 2) / 2
    kinds = torch.randint(0, 2, (batch, steps, boxes))
    features = torch.randn(batch, steps, boxes, width)
    whole = torch.cat([corners, corners + 0.3], -1)
    return (Detections(whole, kinds, features, lengths(batch, steps)),), steps


def lengths(batch: int, steps: int) -> Tensor:
    return torch.full((batch,), steps)


if __name__ == "__main__":
    main()
