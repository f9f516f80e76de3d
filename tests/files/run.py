"""Sweep over generated video files: reading compared with the command `ffmpeg`.

    make files-test

Writes a few hundred small files: codec x container x rate x orientation, then damage of several
kinds to one file of every codec and container. An undamaged file must be read as by `ffmpeg`: the
same number of frames at the same times (within a tick of its container), each with the same
picture, upright; the exit status is 1 otherwise. Every frame of a damaged file should equal the
written one or be refused. Files with other frames are listed: many formats have no checksums, and
decoders make a picture of most flipped bits. Needs `ffmpeg` and `ffprobe`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ssdet.data import CorruptVideo, probe, read_clip
from ssdet.data.video.stream import video_clock

WIDTH, HEIGHT, RATE = 64, 48, 25
FRAMES = 40
MAX_DIFFERENCE = 4.0
"""Mean absolute difference of two pictures; the scaler of `ffmpeg` rounds in other places."""


@dataclass(frozen=True)
class Codec:
    """An encoder, the pixel format that it takes, and its options."""

    encoder: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"


CODECS = {
    "h264": Codec("libx264", {"bf": "0", "g": "12"}),
    "h264-b": Codec("libx264", {"bf": "3", "g": "12"}),
    "h264-open": Codec("libx264", {"bf": "2", "x264-params": "open-gop=1:keyint=12:log=-1"}),
    "hevc": Codec("libx265", {"x265-params": "log-level=none:bframes=0:keyint=12"}),
    "hevc-b": Codec("libx265", {"x265-params": "log-level=none:bframes=3:keyint=12"}),
    "vp8": Codec("libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "b": "200k"}),
    "vp9": Codec("libvpx-vp9", {"g": "12", "lag-in-frames": "8", "b": "200k"}),
    "av1": Codec("libsvtav1", {"g": "12", "preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4": Codec("mpeg4", {"g": "12"}),
    "mpeg4-b": Codec("mpeg4", {"g": "12", "bf": "2"}),
    "msmpeg4": Codec("msmpeg4", {"g": "12"}),
    "mjpeg": Codec("mjpeg", {}, "yuvj420p"),
    "ffv1": Codec("ffv1", {}, "yuv420p"),
    "prores": Codec("prores_ks", {}, "yuv422p10le"),
    "huffyuv": Codec("huffyuv", {}, "yuv422p"),
}
MP4_CODECS = {"h264", "h264-b", "h264-open", "hevc", "hevc-b", "vp9", "av1", "mpeg4", "mpeg4-b"}
CONTAINERS: dict[str, tuple[str, dict[str, str], set[str]]] = {
    "mp4": ("mp4", {}, MP4_CODECS),
    "m4v": ("mp4", {}, {"h264-b", "hevc"}),
    "3gp": ("3gp", {}, {"h264"}),
    "mov": ("mov", {}, MP4_CODECS - {"vp9", "av1"} | {"mjpeg", "prores"}),
    "frag.mp4": ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}, MP4_CODECS),
    "mkv": ("matroska", {}, set(CODECS) - {"huffyuv"}),
    "live.mkv": ("matroska", {"live": "1"}, set(CODECS) - {"huffyuv"}),
    "webm": ("webm", {}, {"vp8", "vp9", "av1"}),
    "live.webm": ("webm", {"live": "1"}, {"vp8", "vp9"}),
    "avi": ("avi", {}, {"h264", "mpeg4", "mpeg4-b", "msmpeg4", "mjpeg", "ffv1", "huffyuv", "vp8"}),
}

STEADY = [Fraction(n, RATE) for n in range(FRAMES)]
RATES: dict[str, list[Fraction]] = {
    "25": STEADY,
    "29.97": [Fraction(1001 * n, 30000) for n in range(FRAMES)],
    # Every fifth picture only in the middle, as cameras deliver in the dark.
    "variable": [t for n, t in enumerate(STEADY) if not 10 <= n < 30 or n % 5 == 0],
    # A pause before the last two pictures, as in recordings of a screen.
    "pause": [*STEADY[:-2], *(t + 1 for t in STEADY[-2:])],
    "late": STEADY,
}
MATRICES = {  # rows of the display matrix: a, b, c, d, x, y
    "rot90cw": (0, 1, -1, 0, HEIGHT, 0),
    "rot180": (-1, 0, 0, -1, WIDTH, HEIGHT),
    "rot90ccw": (0, -1, 1, 0, 0, WIDTH),
    "hflip": (-1, 0, 0, 1, WIDTH, 0),
    "vflip": (1, 0, 0, -1, 0, HEIGHT),
    "transpose": (0, 1, 1, 0, 0, 0),
    "antitranspose": (0, -1, -1, 0, HEIGHT, WIDTH),
}


def picture(number: int) -> np.ndarray:
    """A picture with its number in bars of black and white, and a mark in one corner."""
    rgb = np.full((HEIGHT, WIDTH, 3), 60 + number, np.uint8)
    for bit in range(8):
        rgb[HEIGHT // 2 :, 8 * bit : 8 * bit + 8] = 230 if number >> bit & 1 else 20
    rgb[: HEIGHT // 4, : WIDTH // 4] = (220, 30, 30)
    return rgb


def write(path: Path, codec: Codec, container: str, times: list[Fraction], late: bool) -> None:
    """Write the pictures 0, 1, … to be shown at these times (with sound from 0 on: `late`)."""
    muxer, options, _ = CONTAINERS[container]
    # AVI and MPEG-4 count in frames; other codecs get a tick that holds both rates.
    coarse = muxer == "avi" or codec.encoder in ("mpeg4", "msmpeg4")
    rate = Fraction(30000, 1001) if times[1] == RATES["29.97"][1] else Fraction(RATE)
    tick = 1 / rate if coarse else Fraction(1, 30000)
    begin = Fraction(12, RATE) if late else Fraction(0)
    with av.open(str(path), "w", format=muxer, container_options=options) as file:
        stream = file.add_stream(codec.encoder, rate=rate, options=dict(codec.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, codec.pixels
        stream.codec_context.time_base = tick
        stream.codec_context.thread_count = 1
        if late:
            _write_sound(file, muxer)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            frame.pts, frame.time_base = round((time + begin) / tick), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def _write_sound(file: av.container.OutputContainer, muxer: str) -> None:
    name = {"webm": "libopus", "avi": "pcm_s16le", "3gp": "aac"}.get(muxer, "aac")
    sound = file.add_stream(name, rate=48000, layout="mono")
    form = {"libopus": "s16", "pcm_s16le": "s16"}.get(name, "fltp")
    kind = np.int16 if form == "s16" else np.float32
    for number in range(48 * 3):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), kind), form, "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 1000 * number, Fraction(1, 48000)
        file.mux(sound.encode(frame))
    file.mux(sound.encode())


def turn(path: Path, name: str) -> Path:
    """A copy with another display matrix in its track header."""
    a, b, c, d, x, y = MATRICES[name]
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30)
    content[place : place + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    copy = path.with_name(f"{name}.{path.name}")
    copy.write_bytes(content)
    return copy


def shown_by_ffmpeg(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [T, H, W, 3] and times [T] in seconds from the file's start."""
    entries = "frame=best_effort_timestamp_time:format=start_time"
    probing = f"ffprobe -v error -of json -select_streams v:0 -show_format -show_entries {entries}"
    probed = subprocess.run([*probing.split(), str(path)], capture_output=True, check=True)
    answer = json.loads(probed.stdout)
    # A start below 0 is the delay of a sound encoder, which players skip.
    start = max(float(answer["format"].get("start_time", 0)), 0.0)
    times = [float(f.get("best_effort_timestamp_time", "nan")) for f in answer["frames"]]
    showing = "-map 0:v:0 -vsync passthrough -f image2pipe -c:v ppm -pix_fmt rgb24 -"
    command = ["ffmpeg", "-v", "error", "-i", str(path), *showing.split()]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    pictures, place = [], 0
    while place < len(raw):
        header = raw[place : place + 40].split(b"\n", 3)[:3]
        width, height = map(int, header[1].split())
        place += len(b"\n".join(header)) + 1
        pictures.append(np.frombuffer(raw, np.uint8, height * width * 3, place))
        pictures[-1] = pictures[-1].reshape(height, width, 3)
        place += height * width * 3
    return np.stack(pictures), np.array(times) - start


def compare(path: Path) -> str:
    """How reading a whole file differs from what `ffmpeg` shows; empty where it does not."""
    expected, times = shown_by_ffmpeg(path)
    try:
        info, read_times = probe(path), video_clock(path).times_T
        clip = read_clip(path, range(info.frames))
        backwards = read_clip(path, [info.frames - 1, info.frames // 2, 0])
    except CorruptVideo as error:
        return f"refused: {error.reason}"
    if len(clip) != len(expected):
        return f"{len(clip)} frames, ffmpeg shows {len(expected)}"
    if clip.shape != expected.shape:
        return f"pictures {clip.shape[1:]}, ffmpeg shows {expected.shape[1:]}"
    apart = np.abs(clip.astype(int) - expected).mean((1, 2, 3))
    if apart.max() > MAX_DIFFERENCE:
        return f"frame {int(apart.argmax())} is another picture ({apart.max():.1f})"
    if (backwards != clip[[-1, len(clip) // 2, 0]]).any():
        return "another order of reading gives other pictures"
    with av.open(str(path)) as file:
        tick = max(float(file.streams.video[0].time_base or 0), 0.001)
    off = np.abs(read_times - times).max()
    return f"a frame is shown {off:.3f} s off" if off > 1.01 * tick else ""


def _cut(content: bytearray) -> None:
    del content[len(content) * 6 // 10 :]


def _zeros(content: bytearray) -> None:
    content[len(content) * 4 // 10 : len(content) * 5 // 10] = bytes(
        len(content) * 5 // 10 - len(content) * 4 // 10
    )


def _flips(content: bytearray) -> None:
    for place in np.random.default_rng(0).integers(len(content) // 3, len(content), 12):
        content[place] ^= 0x55


def _hole(content: bytearray) -> None:
    del content[len(content) * 4 // 10 : len(content) * 45 // 100]


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "cut": _cut, "zeros": _zeros, "flips": _flips, "hole": _hole,
}  # fmt: skip


def compare_damaged(path: Path, whole: np.ndarray) -> str:
    """Where a damaged file gives a frame that is not the one that was written; else empty."""
    try:
        count = probe(path).frames
    except CorruptVideo:
        count = len(whole)  # single frames may still be read
    else:
        if count != len(whole):
            return f"taken for whole with {count} frames of {len(whole)}"
    for number in range(min(count, len(whole))):
        try:
            (frame,) = read_clip(path, [number])
        except (CorruptVideo, IndexError):
            continue
        if frame.shape != whole[number].shape:
            return f"frame {number} has shape {frame.shape}"
        if np.abs(frame.astype(int) - whole[number]).mean() > MAX_DIFFERENCE:
            return f"frame {number} is another picture"
    return ""


def noticed_by_ffmpeg(path: Path) -> bool:
    """Whether decoding a file whole prints an error."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:v:0", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True)
    return bool(done.stderr.strip() or done.returncode)


def whole_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the whole files of the sweep, written one by one."""
    for container, (muxer, _, codecs) in CONTAINERS.items():
        for name in sorted(codecs):
            for rate, times in RATES.items():
                path = folder / f"{name}.{rate}.{container}"
                write(path, CODECS[name], container, times, late=rate == "late")
                yield f"{name} {container} {rate}", path
                if rate == "25" and muxer in ("mp4", "mov") and container != "frag.mp4":
                    for orientation in MATRICES:
                        yield f"{name} {container} {orientation}", turn(path, orientation)


def damaged_files(folder: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Names and paths of damaged files, with the pictures of the whole one."""
    for container, (_, _, codecs) in CONTAINERS.items():
        for name in sorted(codecs):
            path = folder / f"{name}.whole.{container}"
            write(path, CODECS[name], container, STEADY, late=False)
            with av.open(str(path)) as file:
                whole = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
            for kind, damage in DAMAGE.items():
                content = bytearray(path.read_bytes())
                damage(content)
                copy = path.with_name(f"{name}.{kind}.{container}")
                copy.write_bytes(content)
                yield f"{name} {container} {kind}", copy, whole


def main() -> int:
    """Run the sweep; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--keep", type=Path, help="write the files here and keep them")
    options = parser.parse_args()
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        print("ffmpeg and ffprobe are not installed: nothing to compare with", file=sys.stderr)
        return 1
    counts: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in whole_files(folder):
            if options.only in name:
                fault = compare(path)
                counts["whole"] += 1
                faults += [f"{name}: {fault}"] if fault else []
        for name, path, pictures in damaged_files(folder):
            if options.only in name:
                fault = compare_damaged(path, pictures)
                counts["damaged"] += 1
                if fault:
                    seen = noticed_by_ffmpeg(path)
                    counts["seen" if seen else "unseen"] += 1
                    print(f"{name}: {fault}" + (", ffmpeg prints an error" if seen else ""))
    print("\n".join(faults))
    print(
        f"{counts['whole']} whole files: {len(faults)} faults\n{counts['damaged']} damaged files: "
        f"{counts['damaged'] - counts['seen'] - counts['unseen']} refused or read as written, "
        f"{counts['seen']} read otherwise where ffmpeg prints an error, {counts['unseen']} where "
        "it prints none"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
