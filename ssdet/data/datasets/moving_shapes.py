"""Moving Shapes: a procedural data set rendered to real video files, for laptops and tests.

Upstream it replaces Kinetics: trimmed clips of one sprite with one action, one label a clip.
Downstream it replaces Charades: untrimmed videos of several sprites that alternately idle and act,
with other classes and several labels a frame. `Config` declares the difficulty. The configuration
and its seed determine everything; files are written once into a cache folder and read through the
same manifests and decoder as real video.
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ssdet.data.datasets.kinetics import read_kinetics
from ssdet.data.datasets.manifest import Manifest
from ssdet.data.datasets.segments import read_segments
from ssdet.data.storage.build_once import build_once, process_pool
from ssdet.data.storage.cache import cache_folder
from ssdet.data.storage.folders import quarantine_beside

UPSTREAM_CLASSES = (
    "move left", "move right", "move up", "move down", "turn left", "turn right",
    "grow", "shrink", "swing sideways", "swing up and down", "blink", "wobble",
)  # fmt: skip
DOWNSTREAM_CLASSES = (
    "drift up left", "drift up right", "drift down left", "drift down right",
    "circle left", "circle right", "pulse", "stretch", "rock", "shake",
)  # fmt: skip
FPS = 12


@dataclass(frozen=True)
class Config:
    """Configuration of the rendering; each configuration has its own folder."""

    size: int = 24
    """Height and width in pixels (even)."""
    upstream: int = 6000
    """Single-action clips; one in twenty is validation."""
    train: int = 160
    """Untrimmed training videos."""
    val: int = 40
    """Untrimmed validation videos."""
    test: int = 120
    """Untrimmed test videos."""
    clip_frames: int = 20
    video_frames: int = 48
    actors: int = 3
    """Maximum number of sprites in a downstream video."""
    contrast: float = 0.35
    """Difference between the colours of sprite and mean background as a share of the range; a
    random 0 to 0.3 is added, and a tint of at most 0.12 per channel."""
    noise: float = 0.04
    """Standard deviation of the noise on every pixel of every frame."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2 or self.size % 2 or self.actors < 1:
            raise ValueError(
                f"size {self.size}, actors {self.actors}: expected an even number of pixels from 2 "
                "and at least one actor"
            )

    @property
    def name(self) -> str:
        """Folder name: format version and a hash of all fields."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"moving_shapes-v3-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Pose:
    """State of a sprite at each of T frames; positions and sizes are shares of the frame."""

    x_T: np.ndarray
    y_T: np.ndarray
    size_T: np.ndarray
    angle_T: np.ndarray
    stretch_T: np.ndarray
    opacity_T: np.ndarray

    @classmethod
    def still(cls, frames: int, rng: np.random.Generator) -> "Pose":
        """A motionless sprite at a random position."""
        x, y = rng.uniform(0.25, 0.75, 2)
        values = (x, y, rng.uniform(0.32, 0.5), rng.uniform(0, 2 * math.pi), 1.0, 1.0)
        return cls(*(np.full(frames, value) for value in values))


def _act(pose: Pose, action: str, time: slice, rng: np.random.Generator) -> None:
    """Write one action into frames `time` of a pose; its final state lasts to the end."""
    t = np.arange(time.stop - time.start) + 1.0
    speed = rng.uniform(0.025, 0.045)
    turn = rng.uniform(0.10, 0.20)
    phase = 2 * math.pi * t / rng.uniform(5.0, 8.0)
    sweep = np.sin(phase)
    directions = {
        "move left": (-1, 0), "move right": (1, 0), "move up": (0, -1), "move down": (0, 1),
        "drift up left": (-0.7, -0.7), "drift up right": (0.7, -0.7),
        "drift down left": (-0.7, 0.7), "drift down right": (0.7, 0.7),
    }  # fmt: skip
    if action in directions:
        dx, dy = directions[action]
        _write(pose.x_T, time, pose.x_T[time.start] + dx * speed * t)
        _write(pose.y_T, time, pose.y_T[time.start] + dy * speed * t)
    elif action in ("turn left", "turn right"):
        sign = -1 if action == "turn left" else 1
        _write(pose.angle_T, time, pose.angle_T[time.start] + sign * turn * t)
    elif action in ("grow", "shrink"):
        factor = 1 + rng.uniform(0.02, 0.04)
        rate = factor if action == "grow" else 1 / factor
        _write(pose.size_T, time, np.clip(pose.size_T[time.start] * rate**t, 0.12, 0.9))
    elif action in ("circle left", "circle right"):
        sign = -1 if action == "circle left" else 1
        radius = rng.uniform(0.08, 0.14)
        pose.x_T[time] += radius * (np.cos(phase) - 1)
        pose.y_T[time] += sign * radius * sweep
    elif action == "swing sideways":
        pose.x_T[time] += 0.10 * sweep
    elif action == "swing up and down":
        pose.y_T[time] += 0.10 * sweep
    elif action == "blink":
        pose.opacity_T[time] = np.where(sweep > 0, 0.25, 1.0)
    elif action in ("wobble", "rock"):
        pose.angle_T[time] += (0.45 if action == "wobble" else 0.8) * sweep
        if action == "rock":
            pose.x_T[time] += 0.06 * sweep
    elif action == "pulse":
        pose.size_T[time] *= 1 + 0.3 * sweep
    elif action == "stretch":
        pose.stretch_T[time] *= np.exp(0.4 * sweep)
    elif action == "shake":
        pose.x_T[time] += rng.uniform(-0.07, 0.07, len(t))
        pose.y_T[time] += rng.uniform(-0.07, 0.07, len(t))
    else:
        raise ValueError(f"unknown action {action!r}")


def _write(track_T: np.ndarray, time: slice, values: np.ndarray) -> None:
    track_T[time] = values
    track_T[time.stop :] = values[-1]


def _shape_mask(kind: int, u: np.ndarray, v: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """Soft mask of one of five asymmetric shapes at sprite coordinates u, v (edge near 1)."""
    if kind == 0:
        edge = np.maximum(np.abs(u), np.abs(v) * 1.6)
    elif kind == 1:
        edge = np.maximum(1.2 * v, np.abs(u) * 1.3 - v * 0.8)
    elif kind == 2:
        edge = np.minimum(np.maximum(np.abs(u), np.abs(v - 0.6) * 2.6),
                          np.maximum(np.abs(u + 0.6) * 2.6, np.abs(v)))  # fmt: skip
    elif kind == 3:
        edge = np.hypot(u, v) + 0.9 * np.maximum(u, 0) * (np.abs(v) < 0.5)
    else:
        edge = np.minimum(np.hypot(u + 0.45, v) * 1.8, np.hypot(u - 0.5, v) * 2.6)
    return np.clip((1.0 - edge) / blur + 0.5, 0.0, 1.0)


def _draw(canvas_THWC: np.ndarray, pose: Pose, rng: np.random.Generator, contrast: float) -> None:
    """Paint a sprite over the canvas (floats in 0…1), frame by frame."""
    size = canvas_THWC.shape[1]
    grid = (np.arange(size) + 0.5) / size
    dx = grid[None, None, :] - pose.x_T[:, None, None]
    dy = grid[None, :, None] - pose.y_T[:, None, None]
    cos, sin = np.cos(pose.angle_T)[:, None, None], np.sin(pose.angle_T)[:, None, None]
    radius = (pose.size_T / 2)[:, None, None]
    stretch = pose.stretch_T[:, None, None]
    u, v = (cos * dx + sin * dy) / (radius * stretch), (cos * dy - sin * dx) * stretch / radius
    mask = _shape_mask(int(rng.integers(5)), u, v, 1.0 / (radius * size))
    base = canvas_THWC.mean(axis=(0, 1, 2))
    step = contrast + rng.uniform(0, 0.3)
    colour = np.where(base > 0.5, base - step, base + step) + rng.uniform(-0.12, 0.12, 3)
    mask = (mask * pose.opacity_T[:, None, None])[..., None]
    canvas_THWC += mask * (np.clip(colour, 0, 1) - canvas_THWC)


def _background(frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A still, smooth, low-contrast gradient."""
    corners = np.clip(rng.uniform(0.25, 0.75) + rng.uniform(-0.1, 0.1, (2, 2, 3)), 0, 1)
    ramp = np.linspace(0, 1, size)[:, None]
    rows = corners[0][None] * (1 - ramp[..., None]) + corners[1][None] * ramp[..., None]
    picture = rows[:, :1] * (1 - ramp[None]) + rows[:, 1:] * ramp[None]
    return np.repeat(picture[None], frames, axis=0)


def _finish(canvas_THWC: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    noisy = canvas_THWC + rng.normal(0, noise, canvas_THWC.shape)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def render_clip(config: Config, index: int) -> tuple[np.ndarray, int]:
    """Upstream clip `index`: uint8 [T, H, W, 3] and its class."""
    rng = np.random.default_rng([config.seed, 0, index])
    label = index % len(UPSTREAM_CLASSES)
    frames = config.clip_frames
    pose = Pose.still(frames, rng)
    _act(pose, UPSTREAM_CLASSES[label], slice(0, frames), rng)
    _centre(pose)
    canvas = _background(frames, config.size, rng)
    _draw(canvas, pose, rng, config.contrast)
    return _finish(canvas, config.noise, rng), label


def render_video(config: Config, index: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Downstream video `index`: uint8 [T, H, W, 3] and (class, first frame, end frame) segments."""
    rng = np.random.default_rng([config.seed, 1, index])
    frames = config.video_frames
    canvas = _background(frames, config.size, rng)
    segments = []
    for _ in range(int(rng.integers(1, config.actors + 1))):
        pose = Pose.still(frames, rng)
        for start, stop in _schedule(frames, rng):
            label = int(rng.integers(len(DOWNSTREAM_CLASSES)))
            _act(pose, DOWNSTREAM_CLASSES[label], slice(start, stop), rng)
            segments.append((label, start, stop))
        _centre(pose)
        _draw(canvas, pose, rng, config.contrast)
    return _finish(canvas, config.noise, rng), sorted(segments)


def _schedule(frames: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Action intervals of one actor: 8 to 20 frames each, with pauses of 2 to 12 between."""
    at = int(rng.integers(0, 12))
    while at + 8 <= frames:
        stop = min(frames, at + int(rng.integers(8, 21)))
        yield at, stop
        at = stop + int(rng.integers(2, 13))


def _centre(pose: Pose) -> None:
    """Shift a whole track so that its middle is inside the frame."""
    for track_T in (pose.x_T, pose.y_T):
        middle = (track_T.min() + track_T.max()) / 2
        track_T += np.clip(middle, 0.35, 0.65) - middle


def write_video(path: Path, frames_THWC: np.ndarray, fps: int = FPS) -> None:
    """Encode uint8 [T, H, W, 3] as H.264 (one thread: the bytes depend on the pixels alone)."""
    with av.open(str(path), "w", format="mp4") as container:
        options = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for picture in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _write_clip(job: tuple[Config, int, Path]) -> list[str]:
    config, index, folder = job
    pictures, label = render_clip(config, index)
    name, seconds = f"clip{index:06d}", math.ceil(config.clip_frames / FPS)
    target = folder / UPSTREAM_CLASSES[label]
    target.mkdir(parents=True, exist_ok=True)
    write_video(target / f"{name}_{0:06d}_{seconds:06d}.mp4", pictures)
    split = "val" if index // len(UPSTREAM_CLASSES) % 20 == 0 else "train"
    return [UPSTREAM_CLASSES[label], name, "0", str(seconds), split]


def _write_downstream(job: tuple[Config, int, Path]) -> tuple[str, dict]:
    config, index, folder = job
    pictures, segments = render_video(config, index)
    name = f"V{index:05d}"
    write_video(folder / f"{name}.mp4", pictures)
    in_train, in_val = index < config.train, index < config.train + config.val
    subset = "training" if in_train else "validation" if in_val else "testing"
    # Frame f shows an action iff start < f / fps < end, so borders lie half a frame outside.
    actions = [[c, (a - 0.5) / FPS, (b - 0.5) / FPS] for c, a, b in segments]
    return name, {"subset": subset, "duration": config.video_frames / FPS, "actions": actions}


def prepare(
    config: Config,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: int | None = None,
) -> Path:
    """Render the data set once and return its folder, which appears only when it is complete.

    `progress(done, total)` is called as files are written.
    """
    root = (cache or cache_folder()) / config.name
    build_once(root, lambda work: _render(config, work, progress, processes))
    return root


def _render(
    config: Config, root: Path, progress: Callable[[int, int], None], processes: int | None
) -> None:
    clips, videos = root / "upstream" / "videos", root / "downstream" / "videos"
    for folder in (clips, videos):
        folder.mkdir(parents=True)
    count = config.train + config.val + config.test
    rows: list[list[str]] = []
    annotations: dict[str, dict] = {}
    with process_pool(processes) as pool:
        jobs = [(config, index, clips) for index in range(config.upstream)]
        for row in pool.map(_write_clip, jobs, chunksize=32):
            rows.append(row)
            progress(len(rows), config.upstream + count)
        jobs = [(config, index, videos) for index in range(count)]
        for name, entry in pool.map(_write_downstream, jobs, chunksize=8):
            annotations[name] = entry
            progress(len(rows) + len(annotations), config.upstream + count)
    with open(root / "upstream" / "annotations.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows(rows)
    (root / "upstream" / "classes.txt").write_text("\n".join(UPSTREAM_CLASSES) + "\n")
    (root / "downstream" / "annotations.json").write_text(json.dumps(annotations, indent=1))
    (root / "downstream" / "classes.txt").write_text("\n".join(DOWNSTREAM_CLASSES) + "\n")
    (root / "config.json").write_text(json.dumps(asdict(config), indent=1))


def manifest(root: Path, role: str) -> Manifest:
    """Manifest of a rendered folder; role is `upstream` (clips) or `downstream` (videos)."""
    folder = root / role
    if role == "upstream":
        path = folder / "annotations.csv"
        read = read_kinetics([path], folder / "videos")
    elif role == "downstream":
        path = folder / "annotations.json"
        read = read_segments(path, folder / "videos")
    else:
        raise ValueError(f"role {role!r}: expected 'upstream' or 'downstream'")
    return read.without(quarantine_beside(path))
