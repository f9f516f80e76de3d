"""Training step of X3D: the accelerated network compared with pytorchvideo's.

    python benchmarks/backbone.py                 # X3D-M at 112 and 224 pixels, x3d_tiny at 24
    python benchmarks/backbone.py --sizes tiny    # seconds

Forward, backward and SGD in float32 on one thread; CPU time, interleaved in one process, median of
the rounds after a first one. An accelerated network makes the whole process keep freed memory, from
which the other one profits too. pytorchvideo has no network as small as x3d_tiny, which is compared
with itself before acceleration, both with 4 sub-batches.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssdet.models import accelerate, create

SIZES = {"112": (4, 16, 112), "224": (2, 16, 224), "tiny": (32, 16, 24)}
TARGETS = {"112": 1.8, "224": 1.1, "tiny": 1.8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'clips':>12} {'plain':>9} {'fast':>9} {'ratio':>6}  hold to")
    for size in options.sizes:
        plain, fast = seconds(size, options.rounds)
        shape = "x".join(map(str, SIZES[size]))
        ratio = f"{plain / fast:6.2f}  {TARGETS[size]}"
        print(f"{shape + '²':>12} {plain:8.3f}s {fast:8.3f}s {ratio}", flush=True)


def seconds(size: str, rounds: int) -> list[float]:
    batch, frames, pixels = SIZES[size]
    clips = torch.randn(batch, 3, frames, pixels, pixels)
    steps = [training(network, clips) for network in networks(size)]
    spent: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):
        for step, times in zip(steps, spent, strict=True):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    return [statistics.median(times[1:]) for times in spent]


def networks(size: str) -> tuple[nn.Module, nn.Module]:
    if size == "tiny":
        plain, fast = (create("x3d_tiny", 12, norm_splits=4) for _ in range(2))
        return plain, accelerate(fast)
    from pytorchvideo.models.x3d import create_x3d

    _, frames, pixels = SIZES[size]
    plain = create_x3d(input_clip_length=frames, input_crop_size=pixels, head_activation=None)
    return plain, accelerate(create("x3d_m", 400))


def training(network: nn.Module, clips: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        logits = network(clips)
        labels = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
