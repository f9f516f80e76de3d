"""Opening of video files, and an index of the frames that a file shows.

A file is judged by its pictures. It is damaged if its container ends or breaks off before what it
announces, or if a frame that it announces cannot be decoded, comes out concealed, or refers to one
that does. It is not damaged because of side information: a decoder that stops at the first error
(`strict`) is tried first, since most damage shows in no other way; where it stops in an H.264 or
HEVC stream, a tolerant one decides, and accepts a picture if every frame from the keyframe on came
out whole. So user data that are shorter than they say, or notes on reference pictures that are not
needed, condemn nothing. A stream that begins between keyframes begins, as in players, at the first
keyframe; a pause is no loss.
"""

import os
import re
import stat
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice, pairwise
from threading import Lock
from typing import BinaryIO, Generic, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from ssdet.data import matroska, picture_order
from ssdet.data.remote_cache import identity, source

MAX_PIXELS = 64 << 20
CACHED_INDEXES = 256
START_TAG = "ssdet_start"
"""Metadata of a converted copy: seconds from the start of its source to the first frame."""
T = TypeVar("T")

# Codecs whose packets are one shown frame each. Packets of the first two are trusted also where
# they are stored in another order than they are shown in.
_REORDERED = {"h264", "hevc"}
_ONE_FRAME_A_PACKET = _REORDERED | {
    "mpeg4", "mjpeg", "vp9", "libvpx-vp9", "av1", "libdav1d", "ffv1", "prores", "huffyuv",
    "ffvhuff", "rawvideo", "png",
}  # fmt: skip
FLAGGED = _REORDERED
"""Codecs whose decoder flags the frames that it conceals, or leaves them out."""
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
    part: slice = field(default_factory=lambda: slice(None))
    """Packets that are decoded where frames are counted: from the first keyframe to the damage."""
    counted_pts: np.ndarray | None = None
    """[count] times of frames that are counted by decoding; None: the file does not say."""
    tick: Fraction = Fraction(1)
    """Seconds of one unit of the times."""
    start: float = 0.0
    """Seconds from the start of the file to the first frame: sound may begin earlier."""

    @property
    def times(self) -> np.ndarray | None:
        """[count] times of the frames in ticks, ascending, if the file has any."""
        return self.counted_pts if self.pts is None else self.pts

    @property
    def irregularity(self) -> float:
        """Seconds by which the frame that is furthest from an even spread over the duration is off;
        0 where it is no more than the rounding of a constant rate to ticks."""
        if self.times is None:
            return 0.0
        even_T = np.arange(self.count) * (self.duration / self.count)
        since_T = (self.times - self.times[0]) * float(self.tick)
        off = float(np.abs(since_T - even_T).max())
        return off if off > rounding(self.tick, self.count / self.duration) else 0.0

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


def packets(
    container: InputContainer, stream: VideoStream, part: slice = slice(None)
) -> Iterator[Packet | None]:
    """Packets up to the end or to the first damage; then None, which flushes a decoder.

    `part` of those that hold something: all by default.
    """
    try:
        for packet in islice((p for p in container.demux(stream) if p.size), part.start, part.stop):
            if packet.is_corrupt:
                break
            yield packet
    except av.FFmpegError:
        pass  # what lies behind the damage is missed by whoever needs it
    yield None


def strict(stream: VideoStream, tolerant: bool = False) -> None:
    """Let the decoder stop at damage where it would paint over it, unless it should be tolerant.

    Tolerant it must be with open GOPs: the frames shown before a keyframe at which decoding begins
    lack references.
    """
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)} | (
        {} if tolerant else {"err_detect": "explode"}
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
    with _bytes_of(path) as file:
        head = file.read(512)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        # Counted without the 8 bytes before it: some writers are off by a few.
        return "avi", int.from_bytes(head[4:8], "little") > size
    if head[:4] == matroska.HEAD:
        return "matroska", None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4", None
    if head[:4] == b"\0\0\1\xba":
        return "mpeg", None
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return "mpegts", None
    kinds = "an MP4/MOV/3GP, Matroska/WebM, AVI, MPEG program or transport stream file"
    raise CorruptVideo(path, f"not {kinds}: convert it with ffmpeg" if head else "empty file")


def _bytes_of(path: str | os.PathLike[str]) -> BinaryIO:
    place = source(path)
    return open(place, "rb") if isinstance(place, str) else place


def _scan(
    path: str | os.PathLike[str], container: InputContainer, stream: VideoStream
) -> FrameIndex:
    kind, cut = _kind(path)
    rows, damage = _packet_table(container, stream)
    if cut and not damage:
        damage = "the file ends before its header says"
    if kind == "matroska" and not damage:
        with _bytes_of(path) as file:
            broken = matroska.damage(file)
        if broken:
            damage, sound = broken
            rows = rows[rows[:, 6] < sound]
    promised = 0
    if kind == "mp4":
        discarded = int(rows[:, 3].sum())
        promised = len(stream.index_entries) - discarded
        if not damage and promised > len(rows) - discarded:
            damage = f"the file breaks off after {len(rows) - discarded} of {promised} frames"
    if not (rows[:, 3] == 0).any():
        raise CorruptVideo(path, damage or "no video frame in it")
    if not _packets_are_frames(container, stream, rows):
        # Of MP4 files the first frame must be there: their index lists every one.
        first = 0 if kind == "mp4" else int(np.argmax(rows[:, 2] == 1))
        part = slice(first, len(rows) if damage else None)
        return _count(path, rows, promised, damage, part)
    pts, dts, _, discard, *_ = rows.T
    shown = np.sort(pts[discard == 0])
    key_pts, open_gop = _entries(rows)
    if not damage and not stream.frames and _gap_at_end(shown, rows):
        since = int(rows[np.flatnonzero(rows[:, 2])[-2:][0], 0])
        with opened(path) as (again, its_stream):
            if picture_order.frames_lost(again, its_stream, since):
                damage = "frames are missing at the end"
    # Behind the last decoding time, frames in between may have been lost.
    whole = shown[shown <= dts[-1]] if damage else shown
    return FrameIndex(
        count=len(whole),
        promised=promised,
        damage=damage,
        duration=_duration(stream, rows, len(shown), int(shown[0])),
        pts=whole,
        key_pts=key_pts,
        open_gop=open_gop,
        tick=stream.time_base or Fraction(1),
        start=_start(container, stream, int(shown[0])),
    )


def _start(container: InputContainer, stream: VideoStream, first: int) -> float:
    """Seconds from the start of the file to its first frame, of time `first`.

    AVI files have no presentation times: what FFmpeg gives the first frame is a delay of its
    decoder. A start below 0 is the delay of a sound encoder, which players skip.
    """
    told = container.metadata.get(START_TAG, "")
    if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", told):
        return float(told)
    tick = stream.time_base or Fraction(1)
    if container.format.name == "avi" or container.start_time is None:
        return 0.0
    begin = round(max(container.start_time, 0) / 1e6 / float(tick))
    return float(max(first - begin, 0) * tick)


def _gap_at_end(shown: np.ndarray, rows: np.ndarray) -> bool:
    """Whether the frames that were decoded ahead when the file ended are further apart than usual.

    A file without a frame count that was cut between packets looks like that, and a pause does.
    """
    gaps = np.diff(shown)
    ahead = int((shown > rows[-1, 1]).sum())
    before, last = np.split(gaps, [max(len(gaps) - ahead, 0)])
    usual = max(before.max(initial=0), rows[:, 5].max())
    return bool(last.max(initial=0) > 1.5 * usual > 0)


def _duration(stream: VideoStream, rows: np.ndarray, frames: int, first: int) -> float:
    """Seconds from the time `first` of the first frame to the end of the last packet."""
    tick = stream.time_base or Fraction(1)
    last = int(np.argmax(rows[:, 0]))
    ticks = int(rows[last, 0]) + max(int(rows[last, 5]), 1) - first
    rate = stream.average_rate
    if not rate:
        return float(ticks * tick)
    # Matroska rounds times to milliseconds; the frame rate does not.
    constant = frames / rate
    return float(constant if abs(constant - ticks * tick) <= rounding(tick, rate) else ticks * tick)


def rounding(tick: Fraction, rate: float | Fraction) -> Fraction:
    """Seconds by which times at a constant rate may be off because they are counted in ticks."""
    return min(2 * tick, 1 / (4 * Fraction(rate)))


def _packet_table(container: InputContainer, stream: VideoStream) -> tuple[np.ndarray, str | None]:
    """(pts, dts, keyframe, discarded, bytes, duration, place) of the packets before any damage."""
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
    except av.FFmpegError as error:
        damage = f"the file breaks off after {len(rows) // 7} packets: {error.strerror}"
    return np.array(rows).reshape(-1, 7), damage


def _packets_are_frames(container: InputContainer, stream: VideoStream, rows: np.ndarray) -> bool:
    """Whether packets and shown frames are one to one, with times that put them in order."""
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


def _entries(rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Times of the packets at which decoding can begin; whether any has leading frames."""
    pts, key = rows[:, 0], rows[:, 2].astype(bool)
    earlier = np.maximum.accumulate(pts)
    later = np.minimum.accumulate(pts[::-1])[::-1]
    clean = key & (earlier == pts)
    return pts[clean], bool((later < pts)[clean].any())


def _count(
    path: str | os.PathLike[str], rows: np.ndarray, promised: int, damage: str | None, part: slice
) -> FrameIndex:
    """Index of a file whose frames only decoding tells apart."""
    pts, failure = _decoded_times(path, part, tolerant=False, flush=not damage)
    if failure:
        strictly = len(pts)
        with opened(path) as (_, stream):
            flagged = stream.codec_context.name in FLAGGED
        whole, tolerated = _decoded_times(path, part, tolerant=True) if flagged else ([], failure)
        if tolerated or len(whole) != len(rows[part]):
            damage = damage or f"decoding fails after {strictly} frames: {failure}"
        else:
            pts = whole
    if not pts:
        raise CorruptVideo(path, damage or "no video frame in it")
    with opened(path) as (container, stream):
        tick, rate = stream.time_base or Fraction(1), stream.average_rate
        index = FrameIndex(len(pts), promised, damage, 0.0, part=part, tick=tick)
        if not _ascending(pts):
            return replace(index, duration=float(len(pts) / rate) if rate else 0.0)
        times = np.array(pts)
        return replace(
            index,
            duration=_duration(stream, rows, len(times), int(times[0])),
            counted_pts=times,
            start=_start(container, stream, int(times[0])),
        )


def _decoded_times(
    path: str | os.PathLike[str], part: slice, tolerant: bool, flush: bool = True
) -> tuple[list[int | None], str]:
    """Times of the frames that decoding a file gives, and why it stopped, if it did.

    A tolerant decoder stops at a frame that it flags. Of a cut file the flush brings frames whose
    predecessors may be lost.
    """
    pts: list[int | None] = []
    dts: list[int | None] = []
    with opened(path) as (container, stream):
        strict(stream, tolerant)
        try:
            for packet in packets(container, stream, part):
                frames = stream.codec_context.decode(packet) if packet or flush else []
                if tolerant and any(frame.is_corrupt for frame in frames):
                    return pts, "a frame is concealed"
                pts += [frame.pts for frame in frames]
                dts += [frame.dts for frame in frames]
        except av.FFmpegError as error:
            return pts, error.strerror or str(error)
        # AVI stores when a frame is decoded; FFmpeg adds a delay that it guesses.
        return (dts if container.format.name == "avi" and _ascending(dts) else pts), ""


def _ascending(times: Sequence[int | None]) -> bool:
    """Whether all times are known and each is later than the one before."""
    return None not in times and all(a < b for a, b in pairwise(times))  # type: ignore[operator]
