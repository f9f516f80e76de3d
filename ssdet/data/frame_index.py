"""Opening a video file safely, and where in it each shown frame is."""

import os
import stat
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from threading import Lock
from typing import Generic, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from ssdet.data.remote_cache import identity, source

MAX_PIXELS = 64 << 20
CACHED_INDEXES = 256
T = TypeVar("T")

# Codecs whose packets are one shown frame each. Packets of the first two are trusted also where
# they are stored in another order than they are shown in.
_REORDERED = {"h264", "hevc"}
_ONE_FRAME_A_PACKET = _REORDERED | {
    "mpeg4", "mjpeg", "vp9", "libvpx-vp9", "av1", "libdav1d", "ffv1", "prores", "huffyuv",
    "ffvhuff", "rawvideo", "png",
}  # fmt: skip
# "Not coded" MPEG-4 pictures, which packed B-frames leave behind, are shorter than any other.
_SHORTEST_PACKET = {"mpeg4": 16}
_NO_TIME = int(np.iinfo(np.int64).min)


class CorruptVideo(Exception):
    """A file that cannot be read as the video it claims to be: `path`, and the `reason` why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"video {self.path!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where the shown frames of one file are."""

    count: int
    """Frames that can be read: all of them, unless the file is damaged."""
    promised: int
    """Frames the container speaks of; 0 where it does not say."""
    damage: str | None
    duration: float
    """Seconds; 0 where neither frame times nor a rate are stored."""
    pts: np.ndarray | None = None
    """[count] times of the frames, ascending; None: frames are counted by decoding."""
    key_pts: np.ndarray | None = None
    """Times of the packets at which decoding can begin, ascending."""
    open_gop: bool = False
    """Frames shown before a keyframe may come after it and refer to what went before it."""

    def key_before(self, frame: int) -> int:
        """Time of the last packet at which decoding can begin so as to show this frame."""
        assert self.pts is not None and self.key_pts is not None
        place = np.searchsorted(self.key_pts, self.pts[frame], side="right") - 1
        return int(self.key_pts[place])


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file's demuxer and its first real video stream, with one decoding thread.

    Only the demuxer that the first bytes tell is tried and only the `file` protocol is open to
    it, whatever the path looks like: no playlist can lead anywhere else.
    """
    demuxer, _ = _kind(path)
    place = source(path)
    url = "file:" + os.path.abspath(place) if isinstance(place, str) else place
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(url, format=demuxer, options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise CorruptVideo(path, f"not a readable {demuxer} file: {error.strerror}") from error
    with container:
        yield container, _video_stream(path, container)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """Packets up to the end or to the first damage; then None, which flushes a decoder."""
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                break
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass  # what lies behind the damage is missed by whoever needs it
    yield None


def strict(stream: VideoStream, open_gop: bool = False) -> None:
    """Let the decoder fail on damage where it would paint over it.

    Not with open GOPs: the frames shown before a keyframe at which decoding begins lack references.
    """
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)} | (
        {} if open_gop else {"err_detect": "explode"}
    )


class FileCache(Generic[T]):
    """What was found out about the last `size` files, as long as they stay the same."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[str, int, int], T] = OrderedDict()
        self._lock = Lock()

    def get(self, path: str | os.PathLike[str], make: Callable[[], T]) -> T:
        key = identity(path)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        entry = make()
        with self._lock:
            self._entries[key] = entry
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return entry


_indexes: FileCache[FrameIndex] = FileCache(CACHED_INDEXES)


def frame_index(
    path: str | os.PathLike[str], container: InputContainer, stream: VideoStream
) -> FrameIndex:
    """The file's index; the last 256 are kept by path, size and modification time.

    Raises `CorruptVideo` for a file without a frame that can be read.
    """
    return _indexes.get(path, lambda: _scan(path, container, stream))


def _video_stream(path: str | os.PathLike[str], container: InputContainer) -> VideoStream:
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


def _kind(path: str | os.PathLike[str]) -> tuple[str, bool | None]:
    """Demuxer by the file's first bytes; whether the file is shorter than its header says.

    None where the header does not say.
    """
    place = source(path)
    _, size, _ = identity(path)
    if isinstance(place, str) and not stat.S_ISREG(os.stat(place).st_mode):
        raise CorruptVideo(path, "not a regular file")
    with open(place, "rb") if isinstance(place, str) else place as file:
        head = file.read(64)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        # Counted without the 8 bytes before it: some writers are off by a few.
        return "avi", int.from_bytes(head[4:8], "little") > size
    if head[:4] == b"\x1aE\xdf\xa3":
        end = _matroska_end(head)
        return "matroska", end > size if end else None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4", None
    reason = "not an MP4/MOV, Matroska/WebM or AVI file" if head else "empty file"
    raise CorruptVideo(path, reason)


def _matroska_end(head: bytes) -> int:
    """Where the segment ends, by the sizes of the two outer elements; 0 where it does not say."""

    def element(start: int) -> tuple[int, int]:
        """Where the body of the element with a four-byte name at `start` begins, and its size."""
        first = head[start + 4] if start + 4 < len(head) else 0
        length = 9 - first.bit_length()
        size = int.from_bytes(head[start + 4 : start + 4 + length], "big")
        size -= 1 << 7 * length
        unknown = length == 9 or size == (1 << 7 * length) - 1
        return start + 4 + length, 0 if unknown else size

    header, size = element(0)
    segment = header + size
    begin, size = element(segment)
    return begin + size if size and head[segment : segment + 4] == b"\x18S\x80g" else 0


def _scan(
    path: str | os.PathLike[str], container: InputContainer, stream: VideoStream
) -> FrameIndex:
    _, cut = _kind(path)
    rows, damage = _packet_table(container, stream)
    if cut and not damage:
        damage = "the file ends before its header says"
    pts, dts, _, discard, _, length = rows.T
    shown = np.sort(pts[discard == 0])
    promised = 0
    if container.format.name == "mp4":
        promised = len(stream.index_entries) - int(discard.sum())
        if not damage and promised > len(shown):
            damage = f"the file breaks off after {len(shown)} of {promised} frames"
    if not len(shown):
        raise CorruptVideo(path, damage or "no video frame in it")
    duration = _duration(stream, shown, int(length[np.argmax(pts)]))
    if not _told_by_packets(container, stream, rows):
        timed = container.format.name != "avi" and shown[0] > _NO_TIME
        return _count(path, promised, damage, duration if timed else None)
    key_pts, open_gop = _entries(rows)
    if not damage and cut is None and not stream.frames and _gap_at_end(shown, rows):
        damage = "frames are missing at the end"
    # Behind the last decoding time, frames in between may have been lost.
    known = shown[shown <= dts[-1]] if damage else shown
    return FrameIndex(len(known), promised, damage, duration, known, key_pts, open_gop)


def _gap_at_end(shown: np.ndarray, rows: np.ndarray) -> bool:
    """Whether frames seem to be lost among those that were decoded ahead when the file ended.

    For files without a frame count: of one cut between packets there is no other trace.
    """
    gaps = np.diff(shown)
    ahead = int((shown > rows[-1, 1]).sum())
    before, last = np.split(gaps, [max(len(gaps) - ahead, 0)])
    usual = max(before.max(initial=0), rows[:, 5].max())
    return bool(last.max(initial=0) > 1.5 * usual > 0)


def _duration(stream: VideoStream, shown: np.ndarray, last: int) -> float:
    """Seconds from the first frame's start to the end of the last, whose length is given."""
    tick = stream.time_base or Fraction(1)
    ticks = int(shown.max() - shown.min()) + max(last, 1)
    constant = len(shown) / stream.average_rate if stream.average_rate else Fraction(0)
    # Matroska rounds times to milliseconds; the frame rate does not.
    return float(constant if abs(constant - ticks * tick) <= 2 * tick else ticks * tick)


def _packet_table(container: InputContainer, stream: VideoStream) -> tuple[np.ndarray, str | None]:
    """(pts, dts, keyframe, discarded, bytes, duration) of the packets before any damage."""
    damage = None
    rows = array("q")
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                damage = f"packet {len(rows) // 6} is damaged or cut"
                break
            if packet.size or packet.dts is not None:
                times = (_NO_TIME if t is None else t for t in (packet.pts, packet.dts))
                rows.extend((*times, packet.is_keyframe, packet.is_discard))
                rows.extend((packet.size, packet.duration or 0))
    except av.FFmpegError as error:
        damage = f"the file breaks off after {len(rows) // 6} packets: {error.strerror}"
    return np.array(rows).reshape(-1, 6), damage


def _told_by_packets(container: InputContainer, stream: VideoStream, rows: np.ndarray) -> bool:
    """Whether packets and shown frames are one to one, with times that put them in order."""
    codec = stream.codec_context.name
    pts, dts, key, _, size, _ = rows.T
    in_order = bool((pts == dts).all()) and not stream.codec_context.has_b_frames
    reorders = codec in _REORDERED and container.format.name != "avi"
    return (
        codec in _ONE_FRAME_A_PACKET
        and (in_order or reorders)
        and int(size.min()) >= _SHORTEST_PACKET.get(codec, 1)
        and bool(key[0])
        and int(pts[0]) == int(pts.min()) > _NO_TIME
        and bool((pts >= dts).all())
        and len(np.unique(pts)) == len(pts)
    )


def _entries(rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Times of the packets at which decoding can begin; whether any has leading frames."""
    pts, key = rows[:, 0], rows[:, 2].astype(bool)
    earlier = np.maximum.accumulate(pts)
    later = np.minimum.accumulate(pts[::-1])[::-1]
    clean = key & (earlier == pts)
    return pts[clean], bool((later < pts)[clean].any())


def _count(
    path: str | os.PathLike[str], promised: int, damage: str | None, duration: float | None
) -> FrameIndex:
    """Index of a file whose frames only decoding tells apart; duration None: by its frame rate."""
    count = 0
    with opened(path) as (container, stream):
        strict(stream)
        rate = stream.average_rate
        try:
            for packet in packets(container, stream):
                frames = stream.codec_context.decode(packet)
                # Of a cut file the flush brings frames whose predecessors may be lost.
                count += len(frames) if packet is not None or not damage else 0
        except av.FFmpegError as error:
            damage = f"decoding fails after {count} frames: {error.strerror}"
    if not count:
        raise CorruptVideo(path, damage or "no video frame in it")
    if duration is None:
        duration = float(count / rate) if rate else 0.0
    return FrameIndex(count, promised, damage, duration)
