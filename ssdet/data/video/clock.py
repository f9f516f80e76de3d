"""Presentation times of the frames of a video."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Clock:
    """Presentation times of the frames of one video, and the end of the last frame.

    Time 0 is the start of the file as in players: the start of the sound if that begins before the
    pictures.
    """

    times_T: np.ndarray
    """float64 [T], seconds; ascending."""
    end: float
    """Seconds at which the last frame ends."""
    rate: float | None = None
    """Frames a second if frame f is shown at exactly f / rate, else None."""

    @classmethod
    def regular(cls, frames: int, rate: float) -> "Clock":
        """Clock of frames that are shown at f / rate seconds, f = 0 ... frames-1."""
        return cls(np.arange(frames) / rate, frames / rate, rate)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.times_T)

    def of_annotation(self, duration: float | None) -> "Clock":
        """Clock that labels refer to, given an annotated duration in seconds.

        For a video at a constant rate, an annotated duration within half a frame of the file's is
        taken as the file's, rounded: frame f of n is at f · duration / n, as in the protocols of
        the data sets. In all other cases the file's own times are used.
        """
        if self.rate is None or not duration or abs(duration - self.end) > 0.5 / self.rate:
            return self
        return Clock.regular(self.frames, self.frames / duration)

    def to_json(self) -> dict[str, Any]:
        """Times and end as plain values for `from_json`, bit-exact."""
        return {"times": self.times_T.tolist(), "end": self.end}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Clock":
        """Inverse of `to_json`. Raises ValueError unless times are finite and ascend to the end."""
        times_T, end = np.array(values["times"], float), float(values["end"])
        ascending = times_T.ndim == 1 and len(times_T) and (np.diff(times_T) > 0).all()
        if not ascending or not np.isfinite(times_T).all() or not times_T[-1] < end < np.inf:
            raise ValueError("times of frames: expected finite ascending seconds, then a later end")
        return cls(times_T, end)

    def position(self, seconds_N: np.ndarray) -> np.ndarray:
        """Fractional frame numbers [N] of these times, interpolated linearly between frames; 0
        before a first frame that is shown late."""
        if self.rate is not None:
            return seconds_N * self.rate
        return np.interp(seconds_N, self.times_T, np.arange(len(self.times_T)))

    def ends(self, first: int, stop: int) -> np.ndarray:
        """Seconds at which frames first ... stop-1 end."""
        ends_N = np.append(self.times_T[first + 1 : stop + 1], self.end)
        return ends_N[: stop - first]

    def grid(self, rate: float) -> np.ndarray:
        """Frames nearest to 0, 1 / rate, 2 / rate, ... seconds after the first (of two the later).

        int [max(1, round(seconds · rate))], ascending, possibly with repeats.
        """
        since_T = self.times_T - self.times_T[0]
        count = max(1, round((self.end - float(self.times_T[0])) * rate))
        middles = (since_T[1:] + since_T[:-1]) / 2
        return np.searchsorted(middles, np.arange(count) / rate + 1e-9, side="right")
