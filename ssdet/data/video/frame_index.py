"""Opening of video files, and the index of their frames and presentation times.

A file counts as damaged if a picture that players should show is missing or is not the recorded
one. Detected are

* packets that the container's index, header or structure declare and that are cut or missing;
* pictures that the decoder rejects, conceals or marks, and those that refer to a picture that is
  not in the stream (`pictures`, `ReferenceGaps`);
* pictures missing among the last ones of an unfinished recording, by their order counts.

Broken side information (SEI messages, reference marking) is no damage if every picture decodes
completely. Neither are pauses, nor pictures before the first keyframe, where players begin.

Not detectable: VP8, VP9, HEVC and MJPEG decode many flipped bits to some picture without an error,
and an unfinished recording may have been longer unless pictures before its last are missing.
"""

import os
import re
import stat
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, wraps
from itertools import islice, takewhile
from typing import BinaryIO, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from ssdet.data.storage.cache import identity, source
from ssdet.data.video import matroska
from ssdet.data.video.picture_decoder import (
    MAX_PIXELS,
    DamagedPictureError,
    Mode,
    most_tolerant,
    pictures,
)
from ssdet.data.video.stream_headers import header_parser, lost_at_end

CACHED_FILES = 256
START_TAG = "ssdet_start"
"""Metadata of a converted copy: seconds from the start of its source to the first frame."""
T = TypeVar("T")
AnyPath = str | os.PathLike[str]

# Codecs with one shown frame per packet; the first two also where storage order is not display
# order.
_REORDERED = {"h264", "hevc"}
_ONE_FRAME_A_PACKET = _REORDERED | {
    "mpeg4", "mjpeg", "vp9", "libvpx-vp9", "av1", "libdav1d", "ffv1", "prores", "huffyuv",
    "ffvhuff", "rawvideo", "png",
}  # fmt: skip
# "Not coded" MPEG-4 pictures, which packed B-frames leave behind, are shorter than any other.
_SHORTEST_PACKET = {"mpeg4": 16}
_MP4_BOXES = {
    b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"moof", b"uuid",
    b"pnot",
}  # fmt: skip
_LAST_PACKETS = 64
"""Packets that are searched for pictures missing at the end."""
_NO_TIME = int(np.iinfo(np.int64).min)


class CorruptVideo(Exception):
    """A file that cannot be read as a video: `path` and `reason`."""

    def __init__(self, path: AnyPath, reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"video {self.path!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Frames of one file and their times."""

    count: int
    """Frames that can be read: all unless the file is damaged."""
    declared: int
    """Frames that the container declares; 0 if it does not."""
    damage: str | None
    duration: float
    """Seconds; 0 if neither frame times nor a rate are stored."""
    pts: np.ndarray | None = None
    """[count] times of the frames, ascending; None: frames are counted by decoding."""
    key_pts: np.ndarray | None = None
    """Times of the packets at which decoding can begin, ascending."""
    open_gop: bool = False
    """Frames shown before a keyframe may follow it and refer to frames before it."""
    mode: Mode = Mode.STRICT
    """Decoder mode by which frames were counted."""
    part: slice = field(default_factory=lambda: slice(None))
    """Packets to decode when frames are counted: from the first keyframe to the damage."""
    counted_pts: np.ndarray | None = None
    """[count] times of frames that are counted by decoding; None: the file has none."""
    tick: Fraction = Fraction(1)
    """Seconds per unit of the times."""
    start: float = 0.0
    """Seconds from the start of the file to the first frame (sound may begin earlier)."""

    @property
    def times(self) -> np.ndarray | None:
        """[count] times of the frames in ticks, ascending, or None."""
        return self.counted_pts if self.pts is None else self.pts

    @property
    def irregularity(self) -> float:
        """Largest deviation in seconds of a frame's time from even spacing over the duration; 0 if
        within the rounding of a constant rate to ticks."""
        if self.times is None:
            return 0.0
        even_T = np.arange(self.count) * (self.duration / self.count)
        since_T = (self.times - self.times[0]) * float(self.tick)
        largest = float(np.abs(since_T - even_T).max())
        return largest if largest > rounding(self.tick, self.count / self.duration) else 0.0

    def key_before(self, frame: int) -> int:
        """Time of the last packet from which decoding reaches this frame."""
        assert self.pts is not None and self.key_pts is not None
        return int(self.key_pts[self.key_pts.searchsorted(self.pts[frame], side="right") - 1])


@contextmanager
def opened(path: AnyPath) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the demuxer and its first video stream that is no cover picture, one decoding thread.

    The first bytes alone choose the demuxer, which may use the `file` protocol only: no playlist
    can lead elsewhere. Raises CorruptVideo.
    """
    demuxer, _ = _container_format(path)
    readable = source(path)
    url = "file:" + os.path.abspath(readable) if isinstance(readable, str) else readable
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(url, format=demuxer, options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise CorruptVideo(path, f"not a readable {demuxer} file: {error.strerror}") from error
    with container:
        yield container, _video_stream(path, container)


def packets(
    container: InputContainer, stream: VideoStream, part: slice = slice(None)
) -> Iterator[Packet | None]:
    """Non-empty packets up to the end or the first damage, then None, which flushes a decoder.

    `part` selects a range of them.
    """
    try:
        for packet in islice((p for p in container.demux(stream) if p.size), part.start, part.stop):
            if packet.is_corrupt:
                break
            yield packet
    except av.FFmpegError:
        pass  # callers notice the missing frames
    yield None


def cached_per_file(read: Callable[[str], T]) -> Callable[[AnyPath], T]:
    """Cache what `read(path)` returns for the last 256 files, by path, size and time of change."""

    @lru_cache(CACHED_FILES)
    def cached(path: str, identity_of_file: tuple[str, int, int]) -> T:
        return read(path)

    @wraps(read)
    def read_cached(path: AnyPath) -> T:
        return cached(os.fspath(path), identity(path))

    return read_cached


def _video_stream(path: AnyPath, container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise CorruptVideo(path, "no decoder for its video stream")
        if stream.width * stream.height > MAX_PIXELS:
            reason = f"{stream.width}x{stream.height} pixels a frame, at most {MAX_PIXELS} are read"
            raise CorruptVideo(path, reason)
        stream.codec_context.thread_count = 1
        return stream
    raise CorruptVideo(path, "no video stream")


def _container_format(path: AnyPath) -> tuple[str, bool | None]:
    """Demuxer by the file's first bytes, and whether the file is shorter than its header declares
    (None: no length declared)."""
    readable = source(path)
    _, size, _ = identity(path)
    if isinstance(readable, str) and not stat.S_ISREG(os.stat(readable).st_mode):
        raise CorruptVideo(path, "not a regular file")
    with open_bytes(path) as file:
        head = file.read(512)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        # Compared without the 8 bytes before it: some writers are off by a few.
        return "avi", int.from_bytes(head[4:8], "little") > size
    if head[:4] == matroska.HEAD:
        return "matroska", None
    if head[4:8] in _MP4_BOXES:
        return "mp4", None
    if head[:4] == b"\0\0\1\xba":
        return "mpeg", None
    if any(
        head[first : first + 1] == b"G" == head[first + step : first + step + 1]
        for first, step in ((0, 188), (4, 192))
    ):
        return "mpegts", None
    kinds = "an MP4/MOV/3GP, Matroska/WebM, AVI, MPEG program or transport stream file"
    raise CorruptVideo(path, f"not {kinds}: convert it with ffmpeg" if head else "empty file")


def open_bytes(path: AnyPath) -> BinaryIO:
    """Open a local or remote file for reading bytes."""
    readable = source(path)
    return open(readable, "rb") if isinstance(readable, str) else readable


@cached_per_file
def frame_index(path: str) -> FrameIndex:
    """Index of a file's frames. Raises `CorruptVideo` if no frame can be read."""
    with opened(path) as (container, stream):
        return _scan(path, container, stream)


def _scan(path: str, container: InputContainer, stream: VideoStream) -> FrameIndex:
    format, cut = _container_format(path)
    codec = stream.codec_context
    unfinished = None if stream.frames else header_parser(codec.name, codec.extradata)
    last: deque[bytes] = deque(maxlen=_LAST_PACKETS if unfinished else 0)
    rows, damage = _packet_table(container, stream, last)
    if cut and not damage:
        damage = "the file ends before its declared length"
    if format == "matroska" and not damage:
        with open_bytes(path) as file:
            broken = matroska.damage(file)
        if broken:
            damage, sound = broken
            rows = rows[rows[:, 6] < sound]
    declared = 0
    if format == "mp4":
        discarded = int(rows[:, 3].sum())
        declared = len(stream.index_entries) - discarded
        if not damage and declared > len(rows) - discarded:
            damage = f"the file breaks off after {len(rows) - discarded} of {declared} frames"
    if not (rows[:, 3] == 0).any():
        raise CorruptVideo(path, damage or "no video frame in it")
    if not _packets_are_frames(container, stream, rows):
        first = 0 if _starts_with_keyframe(stream, rows) else int(np.argmax(rows[:, 2] == 1))
        part = slice(first, len(rows) if damage else None)
        return _count(path, rows, declared, damage, part)
    pts, dts, _, discard, *_ = rows.T
    shown = np.sort(pts[discard == 0])
    key_pts, open_gop = _entry_points(rows)
    if not damage and unfinished and lost_at_end(unfinished, last):
        damage = "frames are missing at the end"
    # After the last decoding time, frames in between may have been lost.
    whole = shown[shown <= dts[-1]] if damage else shown
    return FrameIndex(
        count=len(whole),
        declared=declared,
        damage=damage,
        duration=_duration(container, stream, rows, shown),
        pts=whole,
        key_pts=key_pts,
        open_gop=open_gop,
        tick=stream.time_base or Fraction(1),
        start=_start(container, stream, int(shown[0])),
    )


def _starts_with_keyframe(stream: VideoStream, rows: np.ndarray) -> bool:
    """Whether the container marks the first packet as a keyframe.

    Marks of packets alone may come from a parser of the pictures, which damage misleads.
    """
    entries = stream.index_entries
    if not len(entries):
        return bool(rows[0, 2])
    indexed = stream.container.format.name == "mp4"  # every packet; others only keyframes
    marked = entries[0 if indexed else max(entries.search_timestamp(int(rows[0, 0])), 0)]
    is_first = indexed or marked.timestamp in rows[0, :2]
    return bool(rows[0, 2]) or (is_first and marked.is_keyframe)


def _start(container: InputContainer, stream: VideoStream, first: int) -> float:
    """Seconds from the start of the file to its first frame, which has time `first`.

    A start below 0 is the delay of a sound encoder, which players skip. AVI files start at 0.
    """
    stated = container.metadata.get(START_TAG, "")
    if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", stated):
        return float(stated)
    tick = stream.time_base or Fraction(1)
    if container.format.name == "avi":
        return float(first * tick)
    if container.start_time is None:
        return 0.0
    begin = round(max(container.start_time, 0) / 1e6 / float(tick))
    return float(max(first - begin, 0) * tick)


def _duration(
    container: InputContainer, stream: VideoStream, rows: np.ndarray, times: np.ndarray
) -> float:
    """Seconds from the first of the frames' `times` to the end of the last packet."""
    tick, rate = stream.time_base or Fraction(1), stream.average_rate
    if container.format.name == "avi":
        return float(_avi_ticks(stream, rows, times) * tick)
    last = int(np.argmax(rows[:, 0]))
    length = int(rows[last, 5]) or round(np.diff(times).mean() if len(times) > 1 else 1)
    ticks = int(rows[last, 0]) + max(length, 1) - int(times[0])
    if not rate:
        return float(ticks * tick)
    # Matroska rounds times to milliseconds; the frame rate does not.
    constant = len(times) / rate
    return float(constant if abs(constant - ticks * tick) <= rounding(tick, rate) else ticks * tick)


def rounding(tick: Fraction, rate: float | Fraction) -> Fraction:
    """Largest error in seconds of times at a constant rate when rounded to ticks."""
    return min(2 * tick, 1 / (4 * Fraction(rate)))


def _packet_table(
    container: InputContainer, stream: VideoStream, last: deque[bytes]
) -> tuple[np.ndarray, str | None]:
    """Rows (pts, dts, keyframe, discarded, bytes, duration, position) of the packets before any
    damage, and the damage; appends the content of the last packets to `last`."""
    damage = None
    rows = array("q")
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                damage = f"packet {len(rows) // 7} is damaged or cut"
                break
            if packet.size or packet.dts is not None:
                times = (_NO_TIME if t is None else t for t in (packet.pts, packet.dts))
                rows.extend((*times, packet.is_keyframe, packet.is_discard))
                rows.extend((packet.size, packet.duration or 0, packet.pos or 0))
                if last.maxlen:
                    last.append(bytes(packet))
    except av.FFmpegError as error:
        damage = f"the file breaks off after {len(rows) // 7} packets: {error.strerror}"
    return np.array(rows).reshape(-1, 7), damage


def _packets_are_frames(container: InputContainer, stream: VideoStream, rows: np.ndarray) -> bool:
    """Whether packets and shown frames correspond one to one, with times that order them."""
    codec = stream.codec_context.name
    pts, dts, key, _, size, *_ = rows.T
    in_order = bool((pts == dts).all()) and not stream.codec_context.has_b_frames
    reorders = codec in _REORDERED and container.format.name in ("mp4", "matroska")
    return (
        codec in _ONE_FRAME_A_PACKET
        and (in_order or reorders)
        and int(size.min()) >= _SHORTEST_PACKET.get(codec, 1)
        and bool(key[0])
        and int(pts[0]) == int(pts.min()) > _NO_TIME
        and bool((pts >= dts).all())
        and len(np.unique(pts)) == len(pts)
    )


def _entry_points(rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Times of the packets at which decoding can begin, and whether any has leading frames."""
    pts, key = rows[:, 0], rows[:, 2].astype(bool)
    earlier = np.maximum.accumulate(pts)
    later = np.minimum.accumulate(pts[::-1])[::-1]
    clean = key & (earlier == pts)
    return pts[clean], bool((later < pts)[clean].any())


def _count(
    path: AnyPath, rows: np.ndarray, declared: int, damage: str | None, part: slice
) -> FrameIndex:
    """Index of a file whose frames are counted by decoding."""
    with opened(path) as (container, stream):
        for mode in dict.fromkeys((Mode.STRICT, most_tolerant(stream.codec_context.name))):
            stamps, failure = _decoded_stamps(path, mode, part, cut=damage is not None)
            if not failure:
                break
        damage = damage or failure or None
        if not len(stamps):
            raise CorruptVideo(path, damage or "no video frame in it")
        tick, rate = stream.time_base or Fraction(1), stream.average_rate
        index = FrameIndex(len(stamps), declared, damage, 0.0, mode=mode, part=part, tick=tick)
        first = int(rows[part, 1][0])
        avi = container.format.name == "avi"
        times = _avi_times(stamps, first) if avi else _frame_times(stamps)
        if times is None:
            return replace(index, duration=float(len(stamps) / rate) if rate else 0.0)
        return replace(
            index,
            duration=_duration(container, stream, rows, times),
            counted_pts=times,
            start=_start(container, stream, int(times[0])),
        )


def _decoded_stamps(path: AnyPath, mode: Mode, part: slice, cut: bool) -> tuple[np.ndarray, str]:
    """(pts, dts) of all frames up to the first damage, and the damage."""
    stamps = array("q")
    failure = ""
    with opened(path) as (container, stream):
        decodable = packets(container, stream, part)
        if cut:  # the flush returns frames whose predecessors may be lost
            decodable = takewhile(lambda packet: packet is not None, decodable)
        try:
            for frame in pictures(decodable, stream, mode):
                stamps.extend(_NO_TIME if t is None else t for t in (frame.pts, frame.dts))
        except (av.FFmpegError, DamagedPictureError) as error:
            failure = f"decoding fails after {len(stamps) // 2} frames: {error_text(error)}"
    return np.array(stamps, np.int64).reshape(-1, 2), failure


def error_text(error: Exception) -> str:
    """Reason of a decoding error, without FFmpeg's number and function names."""
    return str(error.strerror) if isinstance(error, av.FFmpegError) else str(error)


def _frame_times(stamps: np.ndarray) -> np.ndarray | None:
    """Times of frames from (pts, dts) as in FFmpeg's `best_effort_timestamp`: the pts unless they
    go backwards more often; None if a frame has neither."""
    pts, dts = stamps.T
    pts, dts = np.where(pts > _NO_TIME, pts, dts), np.where(dts > _NO_TIME, dts, pts)
    times = min((pts, dts), key=lambda column: int((np.diff(column) <= 0).sum()))
    ascending = times.min() > _NO_TIME and bool((np.diff(times) > 0).all())
    return times if ascending else None


def _avi_times(stamps: np.ndarray, first: int) -> np.ndarray:
    """Times of the frames of an AVI file, which numbers its packets including null frames.

    A frame leaves the decoder with the number of the last packet put in, so the decoder's delay is
    subtracted. `first` is the number of the first packet.
    """
    times: list[int] = []
    for dts in stamps[:, 1].tolist():
        times.append(max(dts, times[-1] + 1) if times else dts)
    return np.array(times) - times[0] + first


def _avi_ticks(stream: VideoStream, rows: np.ndarray, times: np.ndarray) -> int:
    """Duration in ticks of an AVI file whose frames have these times.

    Null frames at the end are no packets; only the header counts them. Packets that show nothing
    (left by packed B-frames) are no null frames, and many headers are off by one.
    """
    end = int(times[-1]) + 1
    hidden = max(len(rows) - len(times), 0)
    null = max(stream.frames, int(rows[:, 1].max()) + 1) - end - hidden
    return end + (null if null > 1 else 0) - int(times[0])
