"""Peak memory of `ssdet infer` on an hour of video, compared with a minute.

    make long-test

Encodes a minute of 64 x 48 pixels at 25 frames a second and repeats its packets for the hour
(90,000 frames), scores both with a small network of 157 classes and writes all files but the
overlay (`--overlay` adds it). Fails if the hour takes more than 48 MiB above the minute: the scores
of an hour alone have 54 MiB, its frames 800 MiB.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import nn

from ssdet.data.loading.clips import ClipRecipe
from ssdet.models import create
from ssdet.system.recipe_json import to_json
from ssdet.training.recipe import ModelRecipe, TrainRecipe

ROOT = Path(__file__).resolve().parents[2]
CLASSES, RATE, MIB = 157, 25, 1 << 20


def write_stage(folder: Path) -> Path:
    """A stage with random weights."""
    clip = ClipRecipe(16, 1, 24, (24, 24))
    recipe = TrainRecipe("finetune", ModelRecipe("x3d_tiny"), clip)
    model = create("x3d_tiny", CLASSES, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(model.head.proj.weight, 0, 9, generator=torch.Generator().manual_seed(1))
    nn.init.constant_(model.head.proj.bias, -2)  # as in detectors, most classes are mostly absent
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "last.pt")
    (folder / "recipe.json").write_text(json.dumps(to_json(recipe)))
    names = [f"class number {k}" for k in range(CLASSES)]
    data = {"classes": names, "decode_size": None, "fps": 0.0}
    (folder / "data.json").write_text(json.dumps(data))
    return folder


def write_minute(path: Path) -> Path:
    """A minute of blocks that slide at changing speed."""
    scene = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    scene = np.kron(scene, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "50"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(60 * RATE):
            shift = int(20 * np.sin(number / 40))
            picture = np.ascontiguousarray(np.roll(scene, shift, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def write_repeated(video: Path, out: Path, times: int) -> Path:
    """The same packets so many times."""
    with av.open(str(video)) as source, av.open(str(out), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        starts = [(packet.pts, packet.dts) for packet in packets]
        assert stream.time_base is not None
        length = round(60 / Fraction(stream.time_base))
        for turn in range(times):
            for packet, (pts, dts) in zip(packets, starts, strict=True):
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.stream = copy
                target.mux(packet)
    return out


def infer(video: Path, stage: Path, out: Path, extra: list[str]) -> tuple[float, float]:
    """Peak memory in MiB and seconds of the command in a process of its own."""
    code = (
        "import resource, sys; from ssdet.cli.__main__ import main; status = main(sys.argv[1:]);"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "infer", str(video),
               "--checkpoint", str(stage), "--out", str(out), *extra]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak = int(told.stdout.rsplit("PEAK", 1)[1]) * 1024 / MIB
    return peak, time.monotonic() - begun


def check(folder: Path, frames: int) -> None:
    """Every frame has its line, at its time."""
    with open(folder / "frames.csv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        assert len(next(rows)) == CLASSES + 2
        count = 0
        for row in rows:
            assert int(row[0]) == count and abs(float(row[1]) - count / RATE) < 1e-3
            count += 1
    assert count == frames, f"{count} lines, expected {frames}"


def main() -> int:
    """Run both; exit status 1 where memory grows with the video."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--overlay", action="store_true")
    options = parser.parse_args()
    extra = ["--overlay"] if options.overlay else []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        stage = write_stage(work / "stage")
        minute = write_minute(work / "minute.mp4")
        long = write_repeated(minute, work / "long.mp4", options.minutes)
        peaks = []
        for video, minutes in ((minute, 1), (long, options.minutes)):
            peak, seconds = infer(video, stage, work / "out", extra)
            peaks.append(peak)
            check(work / "out" / video.stem, 60 * RATE * minutes)
            found = json.loads((work / "out" / video.stem / "segments.json").read_text())
            print(f"{len(found['segments'])} segments; ", end="")
            print(f"{minutes} min, {60 * RATE * minutes} frames: peak {peak:.0f} MiB, "
                  f"{seconds:.0f} s", flush=True)  # fmt: skip
    print(f"difference: {peaks[1] - peaks[0]:.0f} MiB")
    return int(peaks[1] - peaks[0] > 48)


if __name__ == "__main__":
    sys.exit(main())
