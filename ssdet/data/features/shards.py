"""Stored features of videos: memory-mapped matrices beside an append-only index.

A folder contains shards, one per writing process. ``SHARD.NAME.bin`` is the matrix [steps, *shape]
of one named tensor of all videos of the shard in turn. ``SHARD.jsonl`` gets a line with a checksum
for each video after its rows are on disk, and a last line when the shard is complete. A writer
continues a killed one after the last video with a line.
"""

import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from ssdet.data.datasets.manifest import Video
from ssdet.data.features.index import (
    DTYPES,
    FORMAT,
    NAME,
    Shape,
    ShardIndex,
    StoredVideo,
    damaged,
    line_of,
)
from ssdet.data.features.stored_videos import StoredVideos
from ssdet.data.loading.recipe import Dtype
from ssdet.data.video.clock import Clock


class FeatureWriter:
    """Writer of one shard; continues where a killed writer of the same shard stopped.

    ``with FeatureWriter(folder) as out: out.begin(...); out.add({...}); out.commit()``. Uncommitted
    videos leave nothing behind.
    """

    def __init__(self, folder: str | Path, dtype: Dtype = "float16", shard: str = "0") -> None:
        if not NAME.fullmatch(shard):
            raise ValueError(f"shard {shard!r}: use only letters, digits, '-' and '_'")
        self.folder, self.dtype, self.shard = Path(folder), dtype, shard
        self._files: dict[str, IO[bytes]] = {}
        self._begun: dict[str, Any] | None = None

    def __enter__(self) -> "FeatureWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.shard}.jsonl"
        self._index = index = ShardIndex.read(path) if path.is_file() else ShardIndex()
        if index.dtype not in ("", self.dtype):
            raise ValueError(
                f"{path}: features of {index.dtype}, asked for {self.dtype}: use another folder"
            )
        self._lines = open(path, "r+b" if path.is_file() else "w+b")
        self._lines.truncate(index.length)
        self._lines.seek(index.length)
        if not index.length:
            self._write({"format": FORMAT, "dtype": self.dtype})
        for name in index.shapes:
            self._open_file(name)
        return self

    @property
    def done(self) -> frozenset[str]:
        """Finished videos, including unreadable ones."""
        return frozenset((*self._index.entries, *self._index.broken))

    @property
    def broken(self) -> dict[str, str]:
        """Reasons by id of videos that could not be read."""
        return dict(self._index.broken)

    def begin(self, video: str, frames: int, fps: float | Clock, stride: int) -> None:
        """Start a video with its frames per second or clock; drops an uncommitted one.

        Raises ValueError for a finished video.
        """
        self.abandon()
        if video in self.done:
            raise ValueError(f"video {video!r} was already written to {self.folder}")
        times = None
        if isinstance(fps, Clock):
            times, fps = fps.to_json(), fps.frames / (fps.end - float(fps.times_T[0]))
        if not (frames > 0 and stride > 0 and math.isfinite(fps) and fps > 0):
            raise ValueError(f"video {video!r}: {frames} frames, {fps} fps, stride {stride}")
        self._begun = {
            "id": video, "frames": frames, "fps": float(fps), "stride": stride, "times": times,
        }  # fmt: skip
        self._steps = dict.fromkeys(self._index.shapes, 0)
        self._sums = dict.fromkeys(self._index.shapes, 0)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Append rows [n, *shape] of every tensor to the current video.

        Raises ValueError for other names or shapes than earlier ones, NaN, and values beyond the
        range of the type.
        """
        if self._begun is None:
            raise ValueError("no video was begun")
        shapes = {name: tuple(value.shape[1:]) for name, value in rows.items()}
        if not self._index.shapes:
            self._describe(shapes)
        if shapes != self._index.shapes:
            raise ValueError(
                f"video {self._begun['id']!r}: tensors {shapes}, earlier {self._index.shapes}"
            )
        for name, value in rows.items():
            data = self._encoded(name, value)
            self._files[name].write(data)
            self._sums[name] = zlib.crc32(data, self._sums[name])
            self._steps[name] += len(value)

    def _encoded(self, name: str, value: Tensor) -> memoryview:
        dtype, layout = DTYPES[self.dtype]
        stored = value.detach().cpu().to(dtype)
        if not stored.isfinite().all():
            overflow = "is beyond float16 (65504): store float32"
            fault = overflow if value.isfinite().all() else "holds NaN or infinity"
            raise ValueError(f"{self._begun and self._begun['id']}: {name} {fault}")
        return (
            stored.contiguous().numpy().astype(layout, copy=False).reshape(-1).view(np.uint8).data
        )

    def _describe(self, shapes: Mapping[str, Shape]) -> None:
        for name in shapes:
            if not NAME.fullmatch(name):
                raise ValueError(f"tensor {name!r}: use only letters, digits, '-' and '_'")
        self._index.shapes = dict(shapes)
        self._write({"tensors": {name: list(shape) for name, shape in shapes.items()}})
        self._steps, self._sums = dict.fromkeys(shapes, 0), dict.fromkeys(shapes, 0)
        for name in shapes:
            self._open_file(name)

    def commit(self) -> None:
        """Finish the current video: write it to disk with its line of the index."""
        assert self._begun is not None
        steps, *others = {*self._steps.values()}
        if others or not steps:
            raise ValueError(f"video {self._begun['id']!r}: rows of its tensors {self._steps}")
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        entry = StoredVideo(
            **self._begun, offset=self._index.rows, steps=steps, checksums=self._sums
        )
        self._write({"video": asdict(entry)})
        self._index.add(entry)
        self._begun = None

    def abandon(self) -> None:
        """Drop the uncommitted video, if any."""
        self._begun = None
        for name, file in self._files.items():
            file.truncate(self._index.size(name, self.dtype))
            file.seek(0, os.SEEK_END)

    def leave_out(self, video: str, reason: str) -> None:
        """Record that a video cannot be read, with the reason."""
        self.abandon()
        self._write({"broken": video, "reason": reason})
        self._index.broken[video] = reason

    def _open_file(self, name: str) -> None:
        path = self.folder / f"{self.shard}.{name}.bin"
        size = self._index.size(name, self.dtype)
        if size and (actual := path.stat().st_size if path.is_file() else 0) < size:
            raise ValueError(f"{path}: {actual} bytes, its index says {size}: remove the folder")
        self._files[name] = open(path, "r+b" if path.is_file() else "w+b")  # noqa: SIM115
        self._files[name].truncate(size)
        self._files[name].seek(size)

    def _write(self, values: Mapping[str, Any]) -> None:
        self._lines.write(line_of(values))
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.abandon()
        if kind is None:
            self._write({"end": len(self._index.entries)})
        for file in (self._lines, *self._files.values()):
            file.close()


class FeatureSet(StoredVideos[StoredVideo]):
    """Read-only mapping from video id to memory-mapped tensors [steps, *shape] by name."""

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], dtype: str) -> None:
        self.folder, self.shapes, self.dtype = folder, dict(shapes), dtype
        self.entries: dict[str, StoredVideo] = {}
        self.broken: dict[str, str] = {}
        """Reasons by id of videos without features."""
        self._maps: dict[str, Mapping[str, np.ndarray]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureSet":
        """Open every shard in ``folder`` without reading the features.

        Raises FileNotFoundError without shards, ValueError naming the file for one that is
        unfinished, truncated or damaged, or differs from the others in its tensors.
        """
        folder = Path(folder)
        paths = sorted(folder.glob("*.jsonl"))
        if not paths:
            raise FileNotFoundError(f"{folder}: no features (SHARD.jsonl) here")
        indices = {path: ShardIndex.read(path) for path in paths}
        first = next((i for i in indices.values() if i.shapes), indices[paths[0]])
        features = cls(folder, first.shapes, first.dtype)
        for path, index in indices.items():
            features._add(path, index)
        return features

    def _add(self, path: Path, index: ShardIndex) -> None:
        if not index.ended:
            raise damaged(path, "unfinished: extract again, and it goes on")
        if index.shapes and (index.shapes, index.dtype) != (self.shapes, self.dtype):
            raise damaged(path, f"tensors {index.shapes}, other shards have {self.shapes}")
        maps = {name: self._map(path, name, index) for name in index.shapes}
        for video, entry in index.entries.items():
            if video in self.entries:
                raise damaged(path, f"video {video!r} is there twice")
            self.entries[video], self._maps[video] = entry, maps
        self.broken |= index.broken

    def _map(self, path: Path, name: str, index: ShardIndex) -> np.ndarray:
        data = path.with_name(f"{path.stem}.{name}.bin")
        expected = index.size(name, index.dtype)
        actual = data.stat().st_size if data.is_file() else 0
        if actual != expected:
            raise damaged(data, f"{actual} bytes, its index says {expected}")
        layout, shape = DTYPES[index.dtype][1], (index.rows, *index.shapes[name])
        return np.memmap(data, layout, "r", shape=shape) if expected else np.empty(shape, layout)

    def verify(self) -> None:
        """Compare all checksums. Raises ValueError naming a video with damaged rows."""
        for video in self:
            for name, rows in self[video].items():
                checksum = zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
                if checksum != self.entries[video].checksums[name]:
                    raise damaged(self.folder, f"{name} of video {video!r} is not what was written")

    def clock(self, video: Video) -> Clock:
        """Times of the frames of a video."""
        timing = self.entry(video).timing
        return timing if isinstance(timing, Clock) else super().clock(video)

    def reason(self, video: str) -> str:
        """Reason why a video has no features."""
        return self.broken.get(video, super().reason(video))

    def __getitem__(self, video: str) -> Mapping[str, np.ndarray]:
        if video not in self.entries:
            raise KeyError(f"{self.folder}: no features of video {video!r}")
        entry = self.entries[video]
        rows = slice(entry.offset, entry.offset + entry.steps)
        return {name: values[rows] for name, values in self._maps[video].items()}
