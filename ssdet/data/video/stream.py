"""All frames of a video one after the other, decoded once and never all in memory."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from av.video.reformatter import VideoReformatter

from ssdet.data.video.clock import Clock
from ssdet.data.video.frame_index import CACHED_INDEXES, FileCache, rounding
from ssdet.data.video.orientation import frame_orientation
from ssdet.data.video.reader import Size, _check_range, _scaled, decoding, probe

Path = str | os.PathLike[str]


def video_clock(path: Path) -> Clock:
    """Presentation times of a video's frames, as the file has them.

    At a constant rate (times that agree with even ones within two ticks of the container, and a
    quarter of a frame) they are the even ones. Files without times, and pictures, are spread evenly
    over their duration. The last 256 are kept by path, size and modification time, since training
    asks for one with every clip. Raises as `probe`.
    """
    return _clocks.get(path, lambda: _clock(path))


_clocks: FileCache[Clock] = FileCache(CACHED_INDEXES)


def _clock(path: Path) -> Clock:
    info = probe(path)
    even = Clock.regular(info.frames, info.frames / info.duration)
    with decoding(path) as video:
        index = video.index
    late = index.start > rounding(index.tick, info.fps)
    if index.times is None or not (late or index.irregularity):
        return even
    since_T = (index.times - index.times[0]) * float(index.tick)
    return Clock(index.start + since_T, index.start + info.duration)


def stream_frames(
    path: Path, frames: Sequence[int], size: Size | None = None
) -> Iterator[np.ndarray]:
    """RGB uint8 [H, W, 3] of these frames (ascending, repeats allowed), upright, as `read_clip`
    gives them; one is in memory at a time.

    Raises as `read_clip`; `CorruptVideo` may come after some frames.
    """
    counts = Counter(frames)
    reformatter, shape = VideoReformatter(), None
    with decoding(path) as video:
        _check_range(path, list(counts), video.index)
        for number, frame in video.decoded(list(counts)) if counts else ():
            if shape is None:  # pictures may change size on the way, clips do not
                orientation = frame_orientation(frame)
                upright_size = orientation.size(frame.height, frame.width)
                shape = orientation.size(*_scaled(upright_size, size))[::-1]
            rgb = reformatter.reformat(frame, *shape, format="rgb24", threads=1).to_ndarray()
            upright = np.ascontiguousarray(orientation.upright(rgb))
            del rgb, frame
            for _ in range(counts[number]):
                yield upright
