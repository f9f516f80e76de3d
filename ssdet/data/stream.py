"""All frames of a video one after the other, decoded once and never all in memory."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from av.video.reformatter import VideoReformatter

from ssdet.data.clock import Clock
from ssdet.data.frame_index import opened
from ssdet.data.video import (
    Size,
    _check_range,
    _quarter_turns,
    _scaled,
    _upright,
    decoding,
    probe,
)

Path = str | os.PathLike[str]


def clock(path: Path) -> Clock:
    """Presentation times of a video's frames.

    Where only decoding tells its frames apart (packed B-frames in AVI, hidden frames of VP8, no
    timestamps), and in pictures, they are spread evenly over its duration. Raises as `probe`.
    """
    info = probe(path)
    with decoding(path) as video:
        pts_T = video.index.pts
    if pts_T is None:
        return Clock(np.arange(info.frames) * (info.duration / info.frames), info.duration)
    with opened(path) as (container, stream):
        assert stream.time_base is not None
        tick, begin = float(stream.time_base), int(pts_T[0])
        if container.start_time is not None:  # microseconds; sound may begin before the pictures
            begin = min(begin, round(container.start_time / 1e6 / tick))
    times_T = (pts_T - begin) * tick
    return Clock(times_T, float(times_T[0]) + info.duration)


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
                turns = _quarter_turns(frame)
                height, width = _scaled(_upright(frame, turns), size)
                shape = (height, width) if turns % 2 else (width, height)
            rgb = reformatter.reformat(frame, *shape, format="rgb24", threads=1).to_ndarray()
            upright = np.ascontiguousarray(np.rot90(rgb, turns))
            del rgb, frame
            for _ in range(counts[number]):
                yield upright
