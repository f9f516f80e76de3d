"""Videos on a common rate: as if their frames had been extracted at so many a second."""

import math
from collections.abc import Sequence

import numpy as np

from ssdet.data.frames import FrameReader
from ssdet.data.manifest import Video


def on_grid(reader: FrameReader, fps: float) -> FrameReader:
    """The reader's videos at `fps` frames a second; 0 leaves them at their own rates."""
    return Grid(reader, fps) if fps else reader


class Grid:
    """Frames at `rate` a second: number i is the frame whose time is nearest to i / rate.

    A video of whatever rate has round(duration · rate) of them, about what `ffmpeg -r` extracts.
    """

    def __init__(self, reader: FrameReader, rate: float) -> None:
        self.reader, self.rate = reader, rate

    def frames(self, video: Video) -> int:
        return max(1, round(self.reader.frames(video) * self.rate / self.reader.fps(video)))

    def fps(self, video: Video) -> float:
        return self.rate

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        last, pitch = self.reader.frames(video) - 1, self.reader.fps(video) / self.rate
        # Rounded to nine digits: rates such as 30000/1001 are not exact.
        at = (math.floor(round(index * pitch, 9) + 0.5) for index in indices)
        return self.reader.read(video, [min(frame, last) for frame in at])
