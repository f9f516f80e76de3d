"""Decoding of packets into pictures, with an error at the first damaged one.

`ssdet.data.video.frame_index` defines damage.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ssdet.data.video.stream_headers import ReferenceGaps, header_parser

MAX_PIXELS = 64 << 20
Decode = Callable[[Packet | None], list[VideoFrame]]


class DamagedPictureError(Exception):
    """A decoded picture that lacks parts or the pictures that it refers to."""


class Mode(Enum):
    """How damaged pictures are detected."""

    STRICT = "strict"
    """The decoder fails at any error, side information (SEI) included."""
    WITHOUT_SEI = "without SEI"
    """Strict, without the SEI messages of H.264 and HEVC."""
    MARKED = "marked"
    """Errors of side information and reference marking are ignored, as in players; damaged are
    pictures that the decoder marks and those after a lost reference picture (H.264)."""


# FFmpeg's H.264 decoder marks every picture that it had to repair, its HEVC decoder does not.
_WHILE_SEEKING = {"h264": (Mode.WITHOUT_SEI,), "hevc": (Mode.WITHOUT_SEI,)}
_FROM_START = {"h264": Mode.MARKED, "hevc": Mode.WITHOUT_SEI}


def seeking_modes(codec: str) -> tuple[Mode, ...]:
    """Modes to try in turn when decoding begins at a keyframe within the file."""
    return Mode.STRICT, *_WHILE_SEEKING.get(codec, ())


def most_tolerant(codec: str) -> Mode:
    """Mode that decides finally; it needs the whole stream from its start."""
    return _FROM_START.get(codec, Mode.STRICT)


def pictures(
    packets: Iterable[Packet | None],
    stream: VideoStream,
    mode: Mode = Mode.STRICT,
    open_until: int | None = None,
) -> Iterator[VideoFrame]:
    """Pictures of these packets (None flushes the decoder) in display order.

    Pictures before the time `open_until` may be damaged: those of an open group refer to frames
    before the first packet. Raises `DamagedPictureError` or av.FFmpegError at any other damage.
    """
    codec = stream.codec_context
    strict = mode is not Mode.MARKED and open_until is None
    codec.options = {"max_pixels": str(MAX_PIXELS)} | ({"err_detect": "explode"} if strict else {})
    decoders = {Mode.WITHOUT_SEI: _without_sei, Mode.MARKED: _without_gaps}
    decode = decoders[mode](stream) if mode in decoders else codec.decode
    frames = (frame for packet in packets for frame in decode(packet))
    checked = _checked(frames, open_until)
    return checked if strict else _delayed(checked, stream)


def jpeg_decoder() -> VideoCodecContext:
    """Decoder of single JPEG pictures that fails at any error."""
    decoder = VideoCodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    return decoder


def _without_sei(stream: VideoStream) -> Decode:
    codec = stream.codec_context
    parser = header_parser(codec.name, codec.extradata)
    assert parser is not None

    def decode(packet: Packet | None) -> list[VideoFrame]:
        content = b"" if packet is None else bytes(packet)
        stripped = Packet(parser.without_sei(content))
        if packet is None or stripped.size == len(content):
            return codec.decode(packet)
        stripped.pts, stripped.dts, stripped.time_base = packet.pts, packet.dts, packet.time_base
        stripped.is_keyframe = packet.is_keyframe
        return codec.decode(stripped) if stripped.size else []

    return decode


def _without_gaps(stream: VideoStream) -> Decode:
    codec = stream.codec_context
    gaps = ReferenceGaps(codec.extradata)

    def decode(packet: Packet | None) -> list[VideoFrame]:
        if packet is not None and gaps.before(bytes(packet)):
            raise DamagedPictureError("reference pictures are missing")
        return codec.decode(packet)

    return decode


def _checked(frames: Iterator[VideoFrame], open_until: int | None) -> Iterator[VideoFrame]:
    """Frames up to the first damaged one, which raises `DamagedPictureError`."""
    for frame in frames:
        early = open_until is not None and frame.pts is not None and frame.pts < open_until
        if frame.is_corrupt and not early:
            raise DamagedPictureError("a picture is damaged")
        yield frame


def _delayed(frames: Iterator[VideoFrame], stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames delayed by the reorder depth: a frame may refer to a damaged one shown later."""
    waiting: deque[VideoFrame] = deque()
    for frame in frames:
        waiting.append(frame)
        if len(waiting) > stream.codec_context.reorder_depth:
            yield waiting.popleft()
    yield from waiting
