"""Index of a shard of features: one line per video, written after its rows."""

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssdet.data.video.clock import Clock

FORMAT = "ssdet-features/2"
DTYPES: Mapping[str, tuple[torch.dtype, str]] = {
    "float16": (torch.float16, "<f2"),
    "float32": (torch.float32, "<f4"),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StoredVideo:
    """Position and timing of the features of a video."""

    id: str
    offset: int
    """First row in the files of the shard."""
    steps: int
    frames: int
    """Frames of the video; step i is at frame i · stride."""
    fps: float
    stride: int
    checksums: Mapping[str, int]
    """CRC-32 of the rows by tensor."""
    times: Mapping[str, Any] | None = None
    """Times of the frames (`Clock.to_json`), unless frame f is at f / fps."""

    @property
    def timing(self) -> float | Clock:
        """Frames a second or, at a variable rate, the clock of the frames."""
        return Clock.from_json(self.times) if self.times else self.fps


def line_of(values: Mapping[str, Any]) -> bytes:
    """Encode a line with its checksum."""
    text = json.dumps(values).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


class ShardIndex:
    """Index of a shard up to its last complete line."""

    def __init__(self) -> None:
        self.dtype, self.ended = "", False
        self.length = 0
        """Bytes of its lines without the last, which marks the shard as complete."""
        self.rows = 0
        """Steps of all videos."""
        self.shapes: dict[str, Shape] = {}
        self.entries: dict[str, StoredVideo] = {}
        self.broken: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> "ShardIndex":
        """Read an index. Raises ValueError for any other file."""
        index = cls()
        for line in path.read_bytes().splitlines(keepends=True):
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                break  # cut short by a kill
            values = json.loads(text)
            if not index.length and values.get("format") != FORMAT:
                raise damaged(path, f"no index of format {FORMAT}")
            index._take(values)
            if not index.ended:
                index.length += len(line)
        if not index.length:
            raise damaged(path, "its first line is damaged")
        return index

    def _take(self, values: Mapping[str, Any]) -> None:
        self.ended = "end" in values
        if "dtype" in values:
            self.dtype = values["dtype"]
        elif "tensors" in values:
            self.shapes = {name: tuple(shape) for name, shape in values["tensors"].items()}
        elif "video" in values:
            self.add(StoredVideo(**values["video"]))
        elif "broken" in values:
            self.broken[values["broken"]] = values["reason"]

    def add(self, entry: StoredVideo) -> None:
        """Add a video."""
        self.entries[entry.id] = entry
        self.rows += entry.steps

    def size(self, name: str, dtype: str) -> int:
        """Expected bytes of a tensor's file."""
        return self.rows * math.prod(self.shapes[name]) * np.dtype(DTYPES[dtype][1]).itemsize


def damaged(path: Path, fault: str) -> ValueError:
    """Error for a damaged file of features, with the way out."""
    return ValueError(f"{path}: {fault}; remove the folder, and extract again")
