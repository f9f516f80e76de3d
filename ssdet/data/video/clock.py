"""Times at which the frames of a video are shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Clock:
    """Presentation times of the frames of one video, and the end of the last one.

    Time 0 is the start of the file as players count it: with the sound, where that begins before
    the pictures.
    """

    times_T: np.ndarray
    """float64 [T], seconds; ascending."""
    end: float
    """Seconds at which the last frame ends."""
    rate: float | None = None
    """Frames a second where frame f is shown at exactly f / rate; None: only `times_T` has them."""

    @classmethod
    def regular(cls, frames: int, rate: float) -> "Clock":
        """Clock of `frames` frames that are shown at f / rate seconds, from 0 on."""
        return cls(np.arange(frames) / rate, frames / rate, rate)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.times_T)

    def of_annotation(self, duration: float | None) -> "Clock":
        """The clock that labels follow where a duration in seconds is annotated.

        Of a video at a constant rate, a duration that agrees with its own within half a frame is
        the same one, rounded: frame f of n is then at f · duration / n, as in the protocols of the
        data sets. In all other cases the file's own times hold.
        """
        if self.rate is None or not duration or abs(duration - self.end) > 0.5 / self.rate:
            return self
        return Clock.regular(self.frames, self.frames / duration)

    def to_json(self) -> dict[str, Any]:
        """Times and end as plain values, for `from_json`; both are kept to the bit."""
        return {"times": self.times_T.tolist(), "end": self.end}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Clock":
        """ValueError for times that are not finite and ascending, or an end before the last."""
        times_T, end = np.array(values["times"], float), float(values["end"])
        ascending = times_T.ndim == 1 and len(times_T) and (np.diff(times_T) > 0).all()
        if not ascending or not np.isfinite(times_T).all() or not times_T[-1] < end < np.inf:
            raise ValueError("times of frames: expected finite ascending seconds, then a later end")
        return cls(times_T, end)

    def position(self, seconds_N: np.ndarray) -> np.ndarray:
        """Place of these times among the frames, float [N]; frame f is at f, what is between two
        frames in proportion. Times before the first frame that is shown late are at 0."""
        if self.rate is not None:
            return seconds_N * self.rate
        return np.interp(seconds_N, self.times_T, np.arange(len(self.times_T)))

    def ends(self, first: int, stop: int) -> np.ndarray:
        """Seconds at which frames first … stop-1 give way to the next."""
        ends_N = np.append(self.times_T[first + 1 : stop + 1], self.end)
        return ends_N[: stop - first]

    def grid(self, rate: float) -> np.ndarray:
        """Frames whose times are nearest to 0, 1 / rate, 2 / rate, … from the first frame's on
        (of two the later), ascending, perhaps with repeats: int [round(seconds · rate)], at least
        one."""
        since_T = self.times_T - self.times_T[0]
        count = max(1, round((self.end - float(self.times_T[0])) * rate))
        middles = (since_T[1:] + since_T[:-1]) / 2
        return np.searchsorted(middles, np.arange(count) / rate + 1e-9, side="right")
