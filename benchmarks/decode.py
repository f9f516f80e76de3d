"""Reading of clips: `read_clip` compared with a naive full decode and the decoder's minimum.

    python benchmarks/decode.py [--clips 9]

16 frames at stride 5 from a 10 s H.264 file of 340x256 pixels at 30 fps, made on the fly, with
a keyframe every 60 or every 250 frames; CPU time of one thread, interleaved, mean over clips
that start anywhere.

* naive: decode and convert the whole file as PyAV does by default, keep 16 frames.
* floor: open, seek to the keyframe, decode to the last frame of the clip, convert nothing.
* cold, warm: `read_clip` on a file without and with a cached index.

torchcodec, decord and OpenCV are included where they are installed.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from ssdet.data.video.reader import read_clip

FRAMES, STRIDE, RATE, SECONDS, WIDTH, HEIGHT = 16, 5, 30, 10, 340, 256
Reader = Callable[[str, list[int]], object]
SPAN = (FRAMES - 1) * STRIDE + 1
TARGETS = (
    "naive / it >= 4 (keyframes every 60; far ones bound it by naive / floor), it / floor <= 1.25"
)


def make_video(path: Path, gop: int) -> None:
    """Textures that slide at different speeds with camera noise."""
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (48, 96, 3)), np.ones((12, 12, 1))).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "20", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
        for number in range(RATE * SECONDS):
            picture = np.roll(scene, -2 * number, 1)[:HEIGHT, :WIDTH].copy()
            picture[80:180] = np.roll(scene, 5 * number, 1)[80:180, :WIDTH]
            picture += rng.integers(-8, 9, (HEIGHT, WIDTH, 1), np.int16)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def naive(path: str, numbers: list[int]) -> np.ndarray:
    with av.open(path) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([pictures[number] for number in numbers])


def floor(path: str, numbers: list[int]) -> None:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        tick = 1 / (RATE * stream.time_base)
        container.seek(int(numbers[0] * tick), stream=stream)
        for frame in container.decode(stream):
            if frame.pts >= numbers[-1] * tick:
                return


def cold(path: str, numbers: list[int]) -> np.ndarray:
    os.utime(path)  # a changed file is indexed again
    return read_clip(path, numbers)


def torchcodec(path: str, numbers: list[int]) -> object:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(path, num_ffmpeg_threads=1).get_frames_at(numbers)


def decord(path: str, numbers: list[int]) -> object:
    from decord import VideoReader

    return VideoReader(path, num_threads=1).get_batch(numbers).asnumpy()


def opencv(path: str, numbers: list[int]) -> object:
    import cv2

    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
    pictures = []
    for number in range(numbers[0], numbers[-1] + 1):
        capture.grab()
        if number in numbers:
            pictures.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return np.stack(pictures)


def usable(path: str) -> dict[str, Reader]:
    """The readers of this environment."""
    readers: dict[str, Reader] = {"naive": naive, "floor": floor, "cold": cold, "warm": read_clip}
    for name, read in {"torchcodec": torchcodec, "decord": decord, "opencv": opencv}.items():
        try:
            read(path, [0])
            readers[name] = read
        except (ImportError, RuntimeError):
            print(f"  {name}: not usable here")
    return readers


def compare(path: str, clips: int) -> dict[str, float]:
    """Mean milliseconds of CPU time per clip."""
    readers = usable(path)
    starts = np.linspace(0, RATE * SECONDS - SPAN, clips).astype(int)
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for start in starts:
        numbers = list(range(start, start + SPAN, STRIDE))
        if not np.array_equal(naive(path, numbers), read_clip(path, numbers)):
            raise SystemExit(f"frames from {start} on are not those of the full decode")
        for name, read in readers.items():
            begin = time.process_time()
            read(path, numbers)
            spent[name].append(1000 * (time.process_time() - begin))
    return {name: float(np.mean(times)) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=9)
    clips = parser.parse_args().clips
    print(f"hold cold and warm to: {TARGETS}")
    for gop in (60, 250):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            make_video(path, gop)
            kilobits = path.stat().st_size * 8 / 1000 / SECONDS
            print(f"keyframe every {gop} frames, {kilobits:.0f} kbit/s")
            times = compare(str(path), clips)
        for name, spent in times.items():
            print(
                f"  {name:11} {spent:7.1f} ms   naive / it {times['naive'] / spent:5.2f}   "
                f"it / floor {spent / times['floor']:5.2f}"
            )


if __name__ == "__main__":
    main()
