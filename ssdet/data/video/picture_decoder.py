"""Decodes packets into pictures and raises at the first damaged one; see `frame_index` for what
counts as damage."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ssdet.data.video.stream_headers import ReferenceGaps, header_parser

MAX_PIXELS = 64 << 20
Decode = Callable[[Packet | None], list[VideoFrame]]


class DamagedPictureError(Exception):
    """The decoder shows a picture of which parts, or the pictures it refers to, are lost."""


class Mode(Enum):
    """How a decoder is made to tell damaged pictures."""

    STRICT = "strict"
    """It fails at anything that is not as it should be, side information (SEI) included."""
    WITHOUT_SEI = "without SEI"
    """Strict, without the SEI messages of H.264 and HEVC."""
    MARKED = "marked"
    """Broken side information and reference marking are passed over, as in players; damaged
    pictures are those that the decoder marks, and those after a lost reference picture (H.264)."""


# FFmpeg's H.264 decoder marks every picture that it had to repair, its HEVC decoder does not.
_WHILE_SEEKING = {"h264": (Mode.WITHOUT_SEI,), "hevc": (Mode.WITHOUT_SEI,)}
_FROM_START = {"h264": Mode.MARKED, "hevc": Mode.WITHOUT_SEI}


def seeking_modes(codec: str) -> tuple[Mode, ...]:
    """Modes to try in turn where decoding begins at a keyframe within the file."""
    return Mode.STRICT, *_WHILE_SEEKING.get(codec, ())


def most_tolerant(codec: str) -> Mode:
    """Mode whose verdict is final; it needs all of the stream, from its start."""
    return _FROM_START.get(codec, Mode.STRICT)


def pictures(
    packets: Iterable[Packet | None],
    stream: VideoStream,
    mode: Mode = Mode.STRICT,
    open_until: int | None = None,
) -> Iterator[VideoFrame]:
    """Pictures of these packets (None flushes the decoder) in the order in which they are shown.

    Pictures before the time `open_until` may be damaged: those of an open group refer to what went
    before the first packet. Raises `DamagedPictureError` or av.FFmpegError at any other damage.
    """
    codec = stream.codec_context
    strict = mode is not Mode.MARKED and open_until is None
    codec.options = {"max_pixels": str(MAX_PIXELS)} | ({"err_detect": "explode"} if strict else {})
    decode = _decoder(stream, mode)
    frames = (frame for packet in packets for frame in decode(packet))
    whole = _checked(frames, open_until)
    return whole if strict else _held(whole, stream)


def _decoder(stream: VideoStream, mode: Mode) -> Decode:
    if mode is Mode.WITHOUT_SEI:
        return _without_sei(stream)
    return _without_gaps(stream) if mode is Mode.MARKED else stream.codec_context.decode


def _without_sei(stream: VideoStream) -> Decode:
    codec = stream.codec_context
    parser = header_parser(codec.name, codec.extradata)
    assert parser is not None

    def decode(packet: Packet | None) -> list[VideoFrame]:
        content = b"" if packet is None else bytes(packet)
        rest = Packet(parser.without_sei(content))
        if packet is None or rest.size == len(content):
            return codec.decode(packet)
        rest.pts, rest.dts, rest.time_base = packet.pts, packet.dts, packet.time_base
        rest.is_keyframe = packet.is_keyframe
        return codec.decode(rest) if rest.size else []

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


def _held(frames: Iterator[VideoFrame], stream: VideoStream) -> Iterator[VideoFrame]:
    """Each frame after all that were decoded before it: it may refer to one that is shown later."""
    waiting: deque[VideoFrame] = deque()
    for frame in frames:
        waiting.append(frame)
        if len(waiting) > stream.codec_context.reorder_depth:
            yield waiting.popleft()
    yield from waiting
