"""Base class of read-only sets of stored features or detections by video."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from ssdet.data.datasets.manifest import Video
from ssdet.data.video.clock import Clock
from ssdet.data.video.frame_index import CorruptVideo


class Timed(Protocol):
    """Entry of a set of stored videos."""

    @property
    def frames(self) -> int: ...
    @property
    def fps(self) -> float: ...


E = TypeVar("E", bound=Timed)


class StoredVideos(Mapping[str, Mapping[str, np.ndarray]], Generic[E]):
    """Read-only mapping from video id to arrays by name.

    Provides frames and clock of videos like a `FrameReader`, so labels need no video files; these
    methods raise CorruptVideo for a video that is not in the set.
    """

    entries: dict[str, E]
    folder: Path

    def frames(self, video: Video) -> int:
        """Number of frames of a video."""
        return self.entry(video).frames

    def fps(self, video: Video) -> float:
        """Frames per second of a video."""
        return self.entry(video).fps

    def clock(self, video: Video) -> Clock:
        """Even clock over the annotated duration of a video, else at its rate."""
        frames = self.frames(video)
        return Clock.regular(frames, frames / video.duration if video.duration else self.fps(video))

    def entry(self, video: Video) -> E:
        """Entry of a video."""
        if video.id not in self.entries:
            raise CorruptVideo(video.path, self.reason(video.id))
        return self.entries[video.id]

    def reason(self, video: str) -> str:
        """Reason why a video is not in the set."""
        return f"not in {self.folder}"

    def __contains__(self, video: object) -> bool:
        return video in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
