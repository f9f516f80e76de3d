"""Time of a training step by part (reading, mixing, network, optimiser), slowest operations.

    python benchmarks/training_step.py --preset tiny --augment joint

Clips are random pixels in memory, so `read` is the overhead of the loader; shares are of CPU time.
Bound: an augmentation costs at most 0.5 % of a step at the paper's size.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ssdet import augment
from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.batches import batches
from ssdet.data.loading.clips import Clips, normalise
from ssdet.models.layers.sub_batch_norm import set_splits, splits_for
from ssdet.studies.presets import preset
from ssdet.training import losses
from ssdet.training.loop import mix, network
from ssdet.training.optimiser import optimizer_for
from ssdet.training.recipe import TrainRecipe


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


@dataclass
class Steps:
    """Training steps whose parts are timed."""

    recipe: TrainRecipe
    batch: int
    count: int
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        recipe = self.recipe
        videos = tuple(Video(str(i), "", "train", label=i % 12) for i in range(64))
        reader = Pixels(recipe.clip.short_side[0], recipe.clip.frames * recipe.clip.stride)
        manifest = Manifest("pixels", tuple(f"class {i}" for i in range(12)), videos)
        clips = Clips(manifest, reader, recipe.clip, 0)
        self.stream = batches(clips, self.batch, 0, self.count, 0, 1)
        self.model = network(recipe, 12).train()
        set_splits(self.model, splits_for(self.batch, recipe.model.norm_group))
        self.optimizer = optimizer_for(self.model, recipe.optim)
        self.mixing = augment.create(recipe.augment)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.spent[name] += time.process_time() - started

    def step(self, number: int) -> None:
        recipe = self.recipe
        with self.part("read"):
            read = next(self.stream)
        with self.part("to float"):
            pictures = normalise(read.clips_BTHWC, recipe.clip, torch.device("cpu"))
        with self.part("augment"):
            labels = read.targets_BKF[:, :, 0]
            targets = losses.pretrain_targets(labels, recipe.clip.frames, recipe.background)
            _, targets, _ = mix(recipe, self.mixing, pictures, targets, read, number)
        with self.part("forward"):
            loss = losses.soft_cross_entropy(self.model(pictures), targets)
        with self.part("backward"):
            loss.backward()
        with self.part("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Print the shares of a step and its eight slowest operations."""
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
    count = options.steps
    timed = Steps(recipe, options.batch or recipe.optim.batch, count + 3)
    for number in range(2):
        timed.step(number)
    timed.spent.clear()
    for number in range(count):
        timed.step(number)
    total = sum(timed.spent.values())
    print(f"{options.preset}, batch {timed.batch}, {recipe.augment}: {total / count:.3f} s a step")
    for name, seconds in timed.spent.items():
        print(f"  {name:10} {100 * seconds / total:5.1f} %  {1e3 * seconds / count:8.2f} ms")
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        timed.step(count)
    table = trace.key_averages()
    whole = sum(event.self_cpu_time_total for event in table)
    print("dearest operations, share of the step:")
    for event in sorted(table, key=lambda e: -e.self_cpu_time_total)[:8]:
        print(f"  {event.key[:48]:48} {100 * event.self_cpu_time_total / whole:5.1f} %")


if __name__ == "__main__":
    main()
