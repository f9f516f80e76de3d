"""Where the time of a training step goes: reading, mixing, network, optimiser, and the dearest ops.

    python benchmarks/training_step.py --preset tiny --augment joint

Clips are random pixels from memory, so `read` is what the loader adds; shares are of CPU time.
Holds: an augmentation costs at most 0.5 % of a step at the paper's size, where the network is dear.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ssdet import augment
from ssdet.data.clips import Clips, batches, normalise
from ssdet.data.manifest import Manifest, Video
from ssdet.models.norm import set_splits, splits_for
from ssdet.studies.presets import preset
from ssdet.training import losses
from ssdet.training.loop import mix, network
from ssdet.training.optim import optimizer_for


class Pixels:
    """Random videos in memory."""

    def __init__(self, side: int, frames: int) -> None:
        rng = np.random.default_rng(0)
        self.frames_THWC = rng.integers(0, 256, (frames, side, side, 3), np.uint8)

    def frames(self, video: Video) -> int:
        return len(self.frames_THWC)

    def fps(self, video: Video) -> float:
        return 12.0

    def read(self, video: Video, indices: list[int]) -> np.ndarray:
        return self.frames_THWC[np.asarray(indices)]


def main() -> None:
    """Print the shares of a step and its five dearest operations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--augment", default="joint")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = preset(options.preset).experiment.pretrain
    assert recipe is not None
    recipe = replace(recipe, augment=options.augment)
    batch = options.batch or recipe.optim.batch
    videos = tuple(Video(str(i), "", "train", label=i % 12) for i in range(64))
    reader = Pixels(recipe.clip.short_side[0], recipe.clip.frames * recipe.clip.stride)
    manifest = Manifest("pixels", tuple(f"class {i}" for i in range(12)), videos)
    clips = Clips(manifest, reader, recipe.clip, 0)
    model = network(recipe, 12).train()
    set_splits(model, splits_for(batch, recipe.model.norm_group))
    optimizer = optimizer_for(model, recipe.optim)
    mixing = augment.create(recipe.augment)
    spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        spent[name] += time.process_time() - started

    def step(number: int, stream: Iterator) -> None:
        with part("read"):
            read = next(stream)
        with part("to float"):
            pictures = normalise(read.clips_BTHWC, recipe.clip, torch.device("cpu"))
        with part("augment"):
            labels = read.targets_BKF[:, :, 0]
            targets = losses.pretrain_targets(labels, recipe.clip.frames, recipe.background)
            _, targets, _ = mix(recipe, mixing, pictures, targets, read, number)
        with part("forward"):
            loss = losses.soft_cross_entropy(model(pictures), targets)
        with part("backward"):
            loss.backward()
        with part("optimiser"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    stream = batches(clips, batch, 0, options.steps + 3, 0, 1)
    for number in range(2):
        step(number, stream)
    spent.clear()
    for number in range(options.steps):
        step(number, stream)
    total = sum(spent.values())
    print(
        f"{options.preset}, batch {batch}, {recipe.augment}: {total / options.steps:.3f} s a step"
    )
    for name, seconds in spent.items():
        print(
            f"  {name:10} {100 * seconds / total:5.1f} %  {1e3 * seconds / options.steps:8.2f} ms"
        )
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step(options.steps, stream)
    table = trace.key_averages()
    whole = sum(event.self_cpu_time_total for event in table)
    print("dearest operations, share of the step:")
    for event in sorted(table, key=lambda e: -e.self_cpu_time_total)[:8]:
        print(f"  {event.key[:48]:48} {100 * event.self_cpu_time_total / whole:5.1f} %")


if __name__ == "__main__":
    main()
