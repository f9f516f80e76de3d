"""Streaming of a video's frames with one frame in memory, and the clock of a video."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from av.video.reformatter import VideoReformatter

from ssdet.data.video.clock import Clock
from ssdet.data.video.frame_index import cached_per_file, rounding
from ssdet.data.video.orientation import frame_orientation
from ssdet.data.video.reader import Size, check_range, decoding, probe, scaled_size

Path = str | os.PathLike[str]


@cached_per_file
def video_clock(path: str) -> Clock:
    """Presentation times of a video's frames from the file.

    At a constant rate (times that agree with even ones within two ticks of the container and a
    quarter of a frame) they are the even ones. Without times in the file, and for image folders,
    frames are spread evenly over the duration. Raises as `probe`.
    """
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
    """Yield these frames (ascending, repeats allowed) as RGB uint8 [H, W, 3], as `read_clip` does.

    Raises as `read_clip`; `CorruptVideo` may follow some frames.
    """
    counts = Counter(frames)
    reformatter, shape = VideoReformatter(), None
    with decoding(path) as video:
        check_range(path, list(counts), video.index)
        for number, frame in video.decoded(list(counts)) if counts else ():
            if shape is None:  # the stored size may change within a video
                orientation = frame_orientation(frame)
                upright_size = orientation.size(frame.height, frame.width)
                shape = orientation.size(*scaled_size(upright_size, size))[::-1]
            rgb = reformatter.reformat(frame, *shape, format="rgb24", threads=1).to_ndarray()
            upright = np.ascontiguousarray(orientation.upright(rgb))
            del rgb, frame
            for _ in range(counts[number]):
                yield upright
