"""Resampling of videos to a common frame rate, as if frames had been extracted at that rate."""

import math
from collections.abc import Sequence

import numpy as np

from ssdet.data.datasets.manifest import Video
from ssdet.data.loading.frame_readers import FrameReader
from ssdet.data.video.clock import Clock


class ResampledReader:
    """Frame reader at `rate` frames a second: frame i is the one nearest to i / rate seconds after
    the first.

    A video has round(duration · rate) frames, about as many as `ffmpeg -r` extracts.
    """

    def __init__(self, reader: FrameReader, rate: float) -> None:
        self.reader, self.rate = reader, rate

    def frames(self, video: Video) -> int:
        clock = self.reader.clock(video)
        if clock.rate is None:
            return len(clock.grid(self.rate))
        return max(1, round(self.reader.frames(video) * self.rate / self.reader.fps(video)))

    def fps(self, video: Video) -> float:
        return self.rate

    def clock(self, video: Video) -> Clock:
        """Clock of the resampled frames: even over the duration for videos at a constant rate, else
        the times of the grid."""
        clock, frames = self.reader.clock(video), self.frames(video)
        if clock.rate is None:
            times_T = clock.times_T[0] + np.arange(frames) / self.rate
            return Clock(times_T, max(clock.end, float(times_T[-1]) + 0.5 / self.rate))
        if not video.duration or clock.rate != clock.frames / video.duration:
            return Clock.regular(frames, self.rate)
        return Clock.regular(frames, frames / video.duration)

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        clock = self.reader.clock(video)
        if clock.rate is None:
            return self.reader.read(video, clock.grid(self.rate)[list(indices)].tolist())
        last, pitch = self.reader.frames(video) - 1, self.reader.fps(video) / self.rate
        # Rounded to nine digits because rates such as 30000/1001 are inexact.
        nearest = (math.floor(round(index * pitch, 9) + 0.5) for index in indices)
        return self.reader.read(video, [min(frame, last) for frame in nearest])
