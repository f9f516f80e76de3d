"""Frame readers: decoding on demand, and a memory-mapped cache of decoded frames."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.storage.build_once import build_once, process_pool
from ssdet.data.video.clock import Clock
from ssdet.data.video.image_folders import PICTURE_FPS
from ssdet.data.video.reader import CorruptVideo, probe, read_clip
from ssdet.data.video.stream import video_clock

Progress = Callable[[int, int], None]


class FrameReader(Protocol):
    """Frames of a manifest's videos by video and index."""

    def frames(self, video: Video) -> int:
        """Number of frames; raises CorruptVideo for a file that cannot be read."""

    def fps(self, video: Video) -> float:
        """Frames per second, on average."""

    def clock(self, video: Video) -> Clock:
        """Times at which the frames are shown; raises as `frames`."""

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, 3]; raises CorruptVideo for a file that cannot be read."""


def dense_targets(manifest: Manifest, video: Video, reader: FrameReader) -> np.ndarray:
    """Labels bool [K, frames] of every frame of a video: frame f shows an action iff
    start < time of f < end.

    Times are those of the reader's clock. Raises CorruptVideo.
    """
    return manifest.targets_at(video, reader.clock(video).times_T)


def timing(reader: FrameReader, video: Video) -> float | Clock:
    """What scores and features of a video are stored with: its frame rate where its frames are
    spread evenly over the annotated duration (or over its own, if none is annotated), else its
    clock. Raises CorruptVideo."""
    clock = reader.clock(video)
    if clock.rate is None or (video.duration and clock.rate != clock.frames / video.duration):
        return clock
    return reader.fps(video)


def shrunk(path: str, size: int | None) -> int | None:
    """Short side to which a video is scaled in reading it: `size` where it is larger, else None;
    enlarging takes time and adds nothing. Raises CorruptVideo."""
    info = probe(path)
    return size if size is not None and size < min(info.height, info.width) else None


class Decoder:
    """Reads every clip from its file, short side scaled down to `size` pixels (None: as it is).

    `picture_fps` is the rate of videos that are folders of pictures.
    """

    def __init__(self, size: int | None = None, picture_fps: float = PICTURE_FPS) -> None:
        self.size, self.picture_fps = size, picture_fps

    def frames(self, video: Video) -> int:
        return probe(video.path).frames

    def fps(self, video: Video) -> float:
        return probe(video.path, self.picture_fps).fps

    def clock(self, video: Video) -> Clock:
        if os.path.isdir(video.path):  # pictures have no times: those of the annotation hold
            frames = self.frames(video)
            return Clock.regular(
                frames, frames / video.duration if video.duration else self.fps(video)
            )
        return video_clock(video.path).of_annotation(video.duration)

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        return read_clip(video.path, indices, size=shrunk(video.path, self.size))


class FrameCache:
    """Decoded frames of small data sets, memory-mapped: every process shares the same pages.

    The folder holds one raw uint8 file per video and an index with what could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        entries = json.loads((folder / "index.json").read_text())
        self._entries: dict[str, dict] = entries
        self._maps: dict[str, np.ndarray] = {}

    def _entry(self, video: Video) -> dict:
        entry = self._entries[video.id]
        if "broken" in entry:
            raise CorruptVideo(video.path, entry["broken"])
        return entry

    def frames(self, video: Video) -> int:
        return self._entry(video)["shape"][0]

    def fps(self, video: Video) -> float:
        return self._entry(video)["fps"]

    def clock(self, video: Video) -> Clock:
        entry = self._entry(video)
        if "times" in entry:
            return Clock.from_json(entry)
        frames = entry["shape"][0]
        if entry["pictures"] and video.duration:
            return Clock.regular(frames, frames / video.duration)
        return Clock.regular(frames, entry["fps"]).of_annotation(video.duration)

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        entry = self._entry(video)
        frames = self._maps.get(video.id)
        if frames is None:
            path = self.folder / entry["file"]
            frames = np.memmap(path, np.uint8, "r", shape=tuple(entry["shape"]))
            self._maps[video.id] = frames
        return frames[np.asarray(indices, int)]


def _decode(job: tuple[int, Video], size: int | None, folder: Path) -> tuple[str, dict]:
    number, video = job
    try:
        info = probe(video.path)
        file = f"{number:06d}.raw"
        scale: int | tuple[int, int] | None = shrunk(video.path, size)
        with open(folder / file, "wb") as out:
            for start in range(0, info.frames, 256):
                part = range(start, min(start + 256, info.frames))
                pictures = read_clip(video.path, part, size=scale)
                out.write(np.ascontiguousarray(pictures).data)
                scale = pictures.shape[1], pictures.shape[2]  # pictures may change size on the way
        shape = [info.frames, *pictures.shape[1:]]
        clock, pictures_only = video_clock(video.path), os.path.isdir(video.path)
        times = clock.to_json() if clock.rate is None else {}
        entry = {"file": file, "shape": shape, "fps": info.fps, "pictures": pictures_only}
        return video.id, entry | times
    except CorruptVideo as error:
        return video.id, {"broken": error.reason}


def open_cache(
    manifest: Manifest,
    size: int | None,
    root: Path,
    progress: Progress = lambda done, total: None,
    processes: int | None = None,
) -> FrameCache:
    """Frame cache of a manifest at one scale, decoded first if it is not there yet.

    Broken videos are remembered with their reason and raise `CorruptVideo` when they are read. The
    folder's name holds the manifest's fingerprint: another data set is another cache.
    """
    key = hashlib.sha256(f"{manifest.fingerprint}/{size}".encode()).hexdigest()[:16]
    folder = root / f"frames-v2-{key}"

    def decode(work: Path) -> None:
        jobs = list(enumerate(manifest.videos))
        task = partial(_decode, size=size, folder=work)
        index = {}
        with process_pool(processes) as pool:
            for name, entry in pool.map(task, jobs, chunksize=16):
                index[name] = entry
                progress(len(index), len(jobs))
        (work / "index.json").write_text(json.dumps(index))

    build_once(folder, decode)
    return FrameCache(folder)
