"""Decoding in the trainer's process, in DataLoader processes, and in Ray tasks on another node.

    taskset -c 0,1 python benchmarks/ray_decoding.py [--batch 4] [--steps 16]

A model of a mixed cluster on two cores of one machine: two Ray nodes, each pinned to one core. The
one with a simulated GPU runs the trainer and its DataLoader processes, the other one the decoders.
A training step is a sleep, since a GPU's step leaves the CPU idle. There is no network between the
two: data pass from one object store to the other by copying.

* Clips are 16 frames at stride 5 from 10 s H.264 files of 340x256 pixels, cut to 224x224; batches
  per second after a start of 4 batches, and CPU seconds of each node's processes per clip.
* Scaling with decoders: decoding is a sleep of the measured length, so one core simulates many;
  batches have the same size.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from decode import make_video
from ray.cluster_utils import Cluster

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.batches import Batch, batches
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.frame_readers import Decoder

START, VIDEOS, STORE = 4, 4, 800_000_000
RECIPE = ClipRecipe(frames=16, stride=5, size=224, short_side=(224, 256))
WAYS = {"own process": (0, 0), "1 loader": (1, 0), "2 loaders": (2, 0), "1 decoder": (0, 1)}
"""DataLoader processes and decoders."""


class Sleepy(Clips):
    """Clips whose decoding sleeps and uses no CPU."""

    seconds = 0.0

    def __getitem__(self, position: int) -> dict:
        time.sleep(self.seconds)
        clip = torch.zeros(RECIPE.frames, RECIPE.size, RECIPE.size, 3, dtype=torch.uint8)
        label = torch.zeros(1, 1)
        return {
            "clip": clip, "targets": label, "mask": label[0] > 0, "position": position,
            "replaced": {}, "video": "", "start": 0,
        }  # fmt: skip


def spent(root: int, core: int) -> dict[int, float]:
    """CPU seconds so far of each process of this benchmark that is pinned to a core."""
    found = {}
    for process in psutil.Process(root).children(recursive=True):
        try:
            if process.cpu_affinity() == [core]:
                found[process.pid] = sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return found


def since(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds of the processes that are still there."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


@ray.remote(num_cpus=0, num_gpus=1)
def trained(
    clips: Clips, batch: int, steps: int, way: tuple[int, int], step: float, root: int
) -> dict[str, float]:
    """Batches per second of a trainer on the node with the GPU, and CPU seconds per clip there,
    elsewhere, and in the trainer's process."""
    torch.set_num_threads(1)
    loaders, decoders = way
    data: Iterator[Batch] = batches(clips, batch, 0, START + steps, 0, 1, loaders, decoders)
    for _ in range(START):
        next(data)
    before, own = [spent(root, core) for core in (0, 1)], time.process_time()
    began = time.perf_counter()
    for _ in range(steps):
        next(data)
        time.sleep(step)
    seconds = time.perf_counter() - began
    clips_seen, own = steps * batch, time.process_time() - own
    here, there = (since(before[core], spent(root, core)) / clips_seen for core in (0, 1))
    return {"rate": steps / seconds, "here": here, "there": there, "own": own / clips_seen}


def nodes() -> Cluster:
    """Two nodes, one for each core; this process goes back to both."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    os.sched_setaffinity(0, {0})
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE},
    )
    os.sched_setaffinity(0, {1})
    cluster.add_node(num_cpus=64, object_store_memory=STORE)  # tasks that sleep share its core
    os.sched_setaffinity(0, {0, 1})
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    return cluster


def real(options: argparse.Namespace, folder: Path, run: Any) -> float:
    """Real videos, each way; returns the seconds that a batch takes to decode on one core."""
    videos = []
    for number in range(VIDEOS):
        make_video(folder / f"{number}.mp4", 60)
        videos.append(Video(str(number), str(folder / f"{number}.mp4"), "train", label=0))
    clips = Clips(Manifest("made", ("one",), tuple(videos)), Decoder(), RECIPE, 0)
    megabytes = options.batch * RECIPE.frames * RECIPE.size**2 * 3 / 1e6
    print(f"batches of {options.batch} clips: {megabytes:.1f} MB through the object store")
    decode = 0.0
    for step in options.sleeps:
        print(f"step of {step:g} s")
        base = 0.0
        for name, way in WAYS.items():
            found = run(clips, options.steps, way, step)
            base = base or found["rate"]
            decode = decode or 1 / found["rate"]
            print(
                f"  {name:12} {found['rate']:6.2f} batches/s   x {found['rate'] / base:5.2f}   "
                f"CPU ms a clip: {1e3 * found['here']:6.1f} on the trainer's node "
                f"({1e3 * found['own']:5.1f} in its process), {1e3 * found['there']:6.1f} elsewhere"
            )
    return decode


def pretended(options: argparse.Namespace, decode: float, run: Any) -> None:
    """How the rate grows with decoders, beside the one core of the trainer's node."""
    clips = Sleepy(Manifest("none", ("one",), (Video("0", "", "train", label=0),)), None, RECIPE, 0)
    clips.seconds = decode / options.batch
    print(f"decoding is a sleep of {decode:.2f} s a batch; no step")
    run(clips, 64, (0, 8), 0.0)  # starts their processes, which takes seconds each
    base = run(clips, options.steps, (1, 0), 0.0)["rate"]
    print(f"  1 loader    {base:6.2f} batches/s")
    for decoders in (1, 2, 4, 8):
        found = run(clips, 8 * decoders + options.steps, (0, decoders), 0.0)
        print(
            f"  {decoders} decoders  {found['rate']:6.2f} batches/s   x {found['rate'] / base:5.2f}"
            f"   CPU ms a clip: {1e3 * found['here']:6.1f} on the trainer's node"
        )


def main() -> None:
    """Print rates, side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--sleeps", type=float, nargs="+", default=[0.0, 0.2, 1.0])
    options = parser.parse_args()
    cluster = nodes()

    def run(clips: Clips, steps: int, way: tuple[int, int], step: float) -> dict[str, float]:
        found: dict[str, float] = ray.get(
            trained.remote(clips, options.batch, steps, way, step, os.getpid())
        )
        return found

    with tempfile.TemporaryDirectory() as folder:
        decode = real(options, Path(folder), run)
        pretended(options, decode, run)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
