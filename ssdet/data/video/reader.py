"""Frame-exact reading of video files.

A file's packets are read once without decoding (microseconds each) for the presentation times of
all frames; `read_clip` then seeks to a keyframe, decodes up to the last requested frame and
converts only the requested ones. If packets and frames do not correspond (packed B-frames in AVI,
hidden frames of VP8, MPEG program and transport streams, no timestamps), frames are counted by
decoding from the start: slower, equally exact.

Supported are MP4/MOV/3GP, Matroska/WebM, AVI and MPEG program and transport streams, folders of
numbered JPEG files and packs; other files need converting first.
"""

import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ssdet.data.video.frame_index import (
    CorruptVideo,
    FrameIndex,
    cached_per_file,
    error_text,
    frame_index,
    opened,
    packets,
)
from ssdet.data.video.image_folders import PICTURE_FPS, image_folder
from ssdet.data.video.orientation import frame_orientation
from ssdet.data.video.packs import is_pack, pack
from ssdet.data.video.picture_decoder import (
    MAX_PIXELS,
    DamagedPictureError,
    Mode,
    most_tolerant,
    pictures,
    seeking_modes,
)

__all__ = ["CorruptVideo", "VideoInfo", "decoding", "probe", "read_clip"]

Path = str | os.PathLike[str]
Size = int | tuple[int, int]
NumberedFrame = tuple[int, VideoFrame]
Decoded = Callable[[list[int]], Iterator[NumberedFrame]]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of a video; width and height are those of the upright picture."""

    frames: int
    fps: float
    """Mean rate: frames / duration."""
    duration: float
    """Seconds from the start of the first frame to the end of the last."""
    width: int
    height: int
    rotation: int
    """Degrees counter-clockwise (0, 90, 180, 270) that turn the stored picture upright, after any
    mirroring."""
    codec: str
    pixel_format: str
    start: float = 0.0
    """Seconds from the start of the file to the first frame: sound may begin earlier."""
    irregularity: float = 0.0
    """Largest deviation in seconds from evenly spaced frames; 0 at a constant rate."""
    mirrored: bool = False
    """Whether the stored picture is mirrored before it is turned."""


@dataclass(frozen=True, slots=True)
class _Source:
    container: InputContainer
    stream: VideoStream
    index: FrameIndex


Read = Callable[[list[int], _Source, Mode], Iterator[NumberedFrame]]


class _MissingFrameError(Exception):
    """Decoding did not return a frame of the index."""


def read_clip(path: Path, frames: Sequence[int], size: Size | None = None) -> np.ndarray:
    """Read frames of a video by number: RGB uint8 [T, H, W, 3], equal to those of a full decode.

    `path` is a file or a folder of numbered JPEG files (from 0 or 1, without gaps). `frames` counts
    shown frames from 0 (not time), in any order, repeats allowed. Pictures are upright by the
    display matrix or EXIF tag; the pixel aspect ratio is ignored. `size` is (height, width) or the
    length of the short side; scaling is part of the colour conversion.

    Raises IndexError for numbers below 0 or past the end, `CorruptVideo` for a file that is broken,
    not a video, or cut before a requested frame, FileNotFoundError.
    """
    numbers = [operator.index(frame) for frame in frames]
    with decoding(path) as video:
        check_range(path, numbers, video.index)
        return _clip(numbers, size, video.decoded)


@dataclass(frozen=True, slots=True)
class Decoding:
    """An opened video."""

    index: FrameIndex
    codec: str
    decoded: Decoded
    """Decodes frames by number (ascending, no repeats) as stored, not turned upright."""


@contextmanager
def decoding(path: Path) -> Iterator[Decoding]:
    """Open a video: a file, an image folder or a pack.

    Raises as `read_clip`; a damaged file opens, with the damage in its index.
    """
    if os.path.isdir(path):
        folder = image_folder(path)
        count = len(folder.files)
        index = FrameIndex(count, count, None, count / PICTURE_FPS)
        yield Decoding(index, "mjpeg", folder.frames)
    elif is_pack(path):
        stored = pack(path)
        index = FrameIndex(stored.count, stored.count, None, stored.duration)
        if stored.times:
            times = stored.times
            index = replace(index, counted_pts=times.pts_T, tick=times.tick, start=times.start)
        yield Decoding(index, "mjpeg", stored.frames)
    else:
        index = frame_index(path)
        with _reopened(path, index) as source:
            decoded = partial(_frames, path, source=source)
            yield Decoding(index, source.stream.codec_context.name, decoded)


def probe(path: Path, picture_fps: float = PICTURE_FPS) -> VideoInfo:
    """Exact frame count, rate, duration in seconds and upright size of a video.

    `picture_fps` is the rate of image folders. Raises `CorruptVideo` for a file that is broken, cut
    short or not a video, FileNotFoundError.
    """
    info = _probe(path)
    if not os.path.isdir(path):
        return info
    return replace(info, fps=picture_fps, duration=info.frames / picture_fps)


@cached_per_file
def _probe(path: str) -> VideoInfo:
    with decoding(path) as video:
        index = video.index
        if index.damage:
            raise CorruptVideo(path, f"{index.damage}; {index.count} frames can be read")
        if not index.duration:
            raise CorruptVideo(path, "neither frame times nor a frame rate in it")
        _, frame = next(video.decoded([0]))
    orientation = frame_orientation(frame)
    height, width = orientation.size(frame.height, frame.width)
    return VideoInfo(
        frames=index.count,
        fps=index.count / index.duration,
        duration=index.duration,
        width=width,
        height=height,
        rotation=90 * orientation.turns,
        codec=video.codec,
        pixel_format=frame.format.name,
        start=index.start,
        irregularity=index.irregularity,
        mirrored=orientation.mirrored,
    )


def check_range(path: Path, numbers: list[int], index: FrameIndex) -> None:
    """Raise IndexError, or CorruptVideo for a damaged file, unless these frames can be read."""
    name = os.fspath(path)
    if numbers and min(numbers) < 0:
        raise IndexError(f"video {name!r}: frame {min(numbers)} requested, expected 0 or more")
    last = max(numbers, default=0)
    if last < index.count:
        return
    if index.damage and (last < index.declared or not index.declared):
        reason = f"{index.damage}; frame {last} requested, {index.count} frames can be read"
        raise CorruptVideo(path, reason)
    count = max(index.count, index.declared)
    raise IndexError(f"video {name!r}: frame {last} requested, has {count} (0 to {count - 1})")


def _clip(numbers: list[int], size: Size | None, decoded: Decoded) -> np.ndarray:
    if not numbers:
        return _clip([0], size, decoded)[:0]
    positions: dict[int, list[int]] = {}
    for position, number in enumerate(numbers):
        positions.setdefault(number, []).append(position)
    clip = np.empty(0, np.uint8)
    reformatter = VideoReformatter()
    for number, frame in decoded(sorted(positions)):
        if not clip.size:
            orientation = frame_orientation(frame)
            height, width = scaled_size(orientation.size(frame.height, frame.width), size)
            stored_height, stored_width = orientation.size(height, width)
            clip = np.empty((len(numbers), height, width, 3), np.uint8)
        rgb = reformatter.reformat(
            frame, stored_width, stored_height, format="rgb24", threads=1
        ).to_ndarray()
        first, *repeats = positions[number]
        clip[first] = orientation.upright(rgb)
        clip[repeats] = clip[first]
    return clip


def scaled_size(native: tuple[int, int], size: Size | None) -> tuple[int, int]:
    """Height and width of pictures of native (height, width) that are read at `size`."""
    if size is None:
        return native
    if not isinstance(size, tuple):
        height, width = (round(side * size / min(native)) for side in native)
    else:
        height, width = size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(
            f"size {size}: {height}x{width} requested, expected sides of at least 1 and at most "
            f"{MAX_PIXELS} pixels"
        )
    return height, width


def _frames(path: Path, numbers: list[int], source: _Source) -> Iterator[NumberedFrame]:
    """Decode these frames (ascending), trying the ways of `_attempts` in turn."""
    done = 0
    failure: Exception | None = None
    # Counting frames reads the container to its end; other files are sought in.
    counted = source.index.pts is None
    attempt = _reopened(path, source.index) if counted else nullcontext(source)
    for read, mode in _attempts(source):
        try:
            with attempt as opened_source:
                for item in read(numbers[done:], opened_source, mode):
                    yield item
                    done += 1
                return
        except (_MissingFrameError, DamagedPictureError, av.FFmpegError) as error:
            failure = error
        attempt = _reopened(path, source.index)
    assert failure is not None
    raise CorruptVideo(path, f"decoding fails: {error_text(failure)}") from failure


@contextmanager
def _reopened(path: Path, index: FrameIndex) -> Iterator[_Source]:
    with opened(path) as (container, stream):
        yield _Source(container, stream, index)


def _attempts(source: _Source) -> list[tuple[Read, Mode]]:
    """Ways to read the file, to try until one returns all frames undamaged.

    Reading from the start is the last: a packet may be marked as a keyframe without being one.
    """
    if source.index.pts is None:
        return [(_by_count, source.index.mode)]
    codec = source.stream.codec_context.name
    seeking: Read = partial(_by_time, seek=True)
    return [*((seeking, mode) for mode in seeking_modes(codec)), (_by_time, most_tolerant(codec))]


def _by_time(
    numbers: list[int], source: _Source, mode: Mode, seek: bool = False
) -> Iterator[NumberedFrame]:
    """Frames identified by their times, decoded from the keyframe before each or from the start."""
    index = source.index
    assert index.pts is not None
    remaining = deque(numbers)
    times = {int(index.pts[number]) for number in numbers}
    while remaining:
        begin = index.key_before(remaining[0]) if seek else None
        for frame in _decoded_from(source, mode, begin, times):
            time = int(index.pts[remaining[0]])
            if frame.pts is None or frame.pts > time:
                raise _MissingFrameError(f"frame {remaining[0]} is missing or damaged")
            if frame.pts < time:
                continue
            yield remaining.popleft(), frame
            if not remaining:
                return
            following = index.pts[index.pts.searchsorted(time, side="right")]
            if seek and index.key_before(remaining[0]) > following:
                break
        else:
            raise _MissingFrameError(f"frame {remaining[0]} is missing")


def _decoded_from(
    source: _Source, mode: Mode, begin: int | None, times: set[int]
) -> Iterator[VideoFrame]:
    """Decode from the keyframe at time `begin` (None: from the container's current position)."""
    if begin is None:
        return pictures(packets(source.container, source.stream), source.stream, mode)
    open_group = source.index.open_gop and source.stream.codec_context.name == "h264"
    from_key = _packets_from(source, begin, times)
    return pictures(from_key, source.stream, mode, begin if open_group else None)


def _packets_from(source: _Source, begin: int, times: set[int]) -> Iterator[Packet | None]:
    """Packets from a keyframe on, without those between the seek position and the keyframe.

    The decoder skips pictures that have none of the `times` and that no picture refers to; only
    H.264 marks such pictures.
    """
    source.container.seek(begin, stream=source.stream)
    codec = source.stream.codec_context
    reached = False
    for packet in packets(source.container, source.stream):
        # In decoding order nothing shown after the keyframe comes before it.
        if not reached and (packet is None or packet.pts is None or packet.pts > begin):
            raise _MissingFrameError("seek went past the keyframe")
        reached = reached or (packet is not None and packet.pts == begin)
        if not reached:
            continue
        if codec.name == "h264" and packet is not None:
            codec.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
        yield packet


def _by_count(numbers: list[int], source: _Source, mode: Mode) -> Iterator[NumberedFrame]:
    """Frames identified by counting them from the file's start."""
    remaining = deque(numbers)
    part = packets(source.container, source.stream, source.index.part)
    for number, frame in enumerate(pictures(part, source.stream, mode)):
        if number == remaining[0]:
            yield remaining.popleft(), frame
            if not remaining:
                return
    raise _MissingFrameError(f"frame {remaining[0]} is missing")
