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
    """Reader of the frames of a manifest's videos."""

    def frames(self, video: Video) -> int:
        """Number of frames. Raises CorruptVideo."""

    def fps(self, video: Video) -> float:
        """Mean frames per second."""

    def clock(self, video: Video) -> Clock:
        """Presentation times of the frames. Raises CorruptVideo."""

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        """Frames at these indices, uint8 [T, H, W, 3]. Raises CorruptVideo."""


def dense_targets(manifest: Manifest, video: Video, reader: FrameReader) -> np.ndarray:
    """Labels bool [K, frames]: frame f has an action iff start < time of f < end.

    Times are those of the reader's clock. Raises CorruptVideo.
    """
    return manifest.targets_at(video, reader.clock(video).times_T)


def timing(reader: FrameReader, video: Video) -> float | Clock:
    """Timing that scores and features of a video are stored with.

    Its frame rate if frames are spread evenly over the annotated duration (or, without one, over
    its own), else its clock. Raises CorruptVideo.
    """
    clock = reader.clock(video)
    if clock.rate is None or (video.duration and clock.rate != clock.frames / video.duration):
        return clock
    return reader.fps(video)


def shrunk(path: str, size: int | None) -> int | None:
    """`size` for videos with a longer short side, else None: videos are never enlarged. Raises
    CorruptVideo."""
    info = probe(path)
    return size if size is not None and size < min(info.height, info.width) else None


class Decoder:
    """Frame reader that decodes on demand, short side scaled down to `size` (None: unscaled).

    `picture_fps` is the rate of image folders.
    """

    def __init__(self, size: int | None = None, picture_fps: float = PICTURE_FPS) -> None:
        self.size, self.picture_fps = size, picture_fps

    def frames(self, video: Video) -> int:
        return probe(video.path).frames

    def fps(self, video: Video) -> float:
        return probe(video.path, self.picture_fps).fps

    def clock(self, video: Video) -> Clock:
        if os.path.isdir(video.path):  # images have no times of their own
            frames = self.frames(video)
            return Clock.regular(
                frames, frames / video.duration if video.duration else self.fps(video)
            )
        return video_clock(video.path).of_annotation(video.duration)

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        return read_clip(video.path, indices, size=shrunk(video.path, self.size))


class FrameCache:
    """Frame reader of decoded frames of small data sets, memory-mapped and shared by processes.

    The folder contains one raw uint8 file per video and an index, which lists unreadable videos.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, dict] = json.loads((folder / "index.json").read_text())
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


def _decode_to_file(job: tuple[int, Video], size: int | None, folder: Path) -> tuple[str, dict]:
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
                scale = (
                    pictures.shape[1],
                    pictures.shape[2],
                )  # the stored size may change within a video
        shape = [info.frames, *pictures.shape[1:]]
        clock = video_clock(video.path)
        times = clock.to_json() if clock.rate is None else {}
        is_folder = os.path.isdir(video.path)
        entry = {"file": file, "shape": shape, "fps": info.fps, "pictures": is_folder}
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
    """Open the frame cache of a manifest at one scale; decode it first if it does not exist.

    Broken videos raise `CorruptVideo` when they are read. The folder's name contains the manifest's
    fingerprint, so each data set has its own cache.
    """
    key = hashlib.sha256(f"{manifest.fingerprint}/{size}".encode()).hexdigest()[:16]
    folder = root / f"frames-v2-{key}"

    def decode(work: Path) -> None:
        jobs = list(enumerate(manifest.videos))
        task = partial(_decode_to_file, size=size, folder=work)
        index = {}
        with process_pool(processes) as pool:
            for name, entry in pool.map(task, jobs, chunksize=16):
                index[name] = entry
                progress(len(index), len(jobs))
        (work / "index.json").write_text(json.dumps(index))

    build_once(folder, decode)
    return FrameCache(folder)
