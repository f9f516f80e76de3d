"""Videos stored as packs: one file of JPEG pictures with an index of their offsets.

    b"ssdpack2" | JPEG … JPEG | uint64 [frames + 1] offsets | uint32 [frames] CRC-32 |
    int64 [frames] times in ticks, unless the rate is constant | trailer

All little-endian. Reading a frame is one short read and one JPEG decoding. Files are not
memory-mapped: a truncated file or a failing disk would kill the process instead of raising.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from ssdet.data.storage.filesystem import is_remote
from ssdet.data.video.frame_index import CorruptVideo, cached_per_file, open_bytes
from ssdet.data.video.picture_decoder import jpeg_decoder

PACK = ".pack"
QUALITY = 3
"""Quantiser of the JPEG pictures (2 is the finest)."""
_MAGIC = b"ssdpack2"
# frames, seconds, seconds before the first frame, a tick in seconds (0/1: no times), colour matrix
_DESCRIBED = struct.Struct("<QddQQI")
# those, CRC-32 of the index and of them, magic
_TRAILER = struct.Struct(f"{_DESCRIBED.format}I8s")


@dataclass(frozen=True, slots=True, eq=False)
class FrameTimes:
    """Times of frames that are not spread evenly from the start of their file."""

    pts_T: np.ndarray
    """int64 [frames], ascending, in ticks."""
    tick: Fraction
    """Seconds."""
    start: float
    """Seconds from the start of the file to the first frame."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Index of one pack."""

    path: str
    offsets: np.ndarray
    """[frames + 1] first byte of each picture, and the end of the last."""
    checksums: np.ndarray
    """[frames] CRC-32 of the pictures."""
    duration: float
    """Seconds."""
    colorspace: int
    """FFmpeg's number of the colour matrix, which JPEG files do not store."""
    times: FrameTimes | None = None
    """None: the frames are spread evenly over the duration."""

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.checksums)

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode these frames (from 0): (number, frame). Raises `CorruptVideo`."""
        decoder = jpeg_decoder()
        with open_bytes(self.path) as file:
            for number in numbers:
                begin, end = int(self.offsets[number]), int(self.offsets[number + 1])
                file.seek(begin)
                content = file.read(end - begin)
                if zlib.crc32(content) != self.checksums[number]:
                    raise CorruptVideo(self.path, f"frame {number} is damaged (checksum)")
                try:
                    (frame,) = decoder.decode(Packet(content))
                except (av.FFmpegError, ValueError) as error:
                    raise CorruptVideo(self.path, f"frame {number} is damaged: {error}") from error
                frame.colorspace = self.colorspace
                yield number, frame


def is_pack(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URI names a pack."""
    text = os.fspath(path)
    return (text.partition("?")[0] if is_remote(text) else text).endswith(PACK)


@cached_per_file
def pack(path: str) -> Pack:
    """Index of a pack. Raises `CorruptVideo` unless it is complete, FileNotFoundError."""
    with open_bytes(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size < len(_MAGIC) + _TRAILER.size:
            raise CorruptVideo(path, "cut short, or not a pack" if size else "empty file")
        file.seek(size - _TRAILER.size)
        trailer = file.read(_TRAILER.size)
        *described, checksum, magic = _TRAILER.unpack(trailer)
        frames, seconds, start, numerator, denominator, colorspace = described
        length = (20 if numerator else 12) * frames + 8
        begin = size - _TRAILER.size - length
        if magic != _MAGIC or begin < len(_MAGIC):
            raise CorruptVideo(path, "cut short, or not a pack of this version: convert again")
        file.seek(begin)
        index = file.read(length)
    if zlib.crc32(_DESCRIBED.pack(*described), zlib.crc32(index)) != checksum:
        raise CorruptVideo(path, "its index is damaged (checksum)")
    offsets = np.frombuffer(index, "<u8", frames + 1)
    if offsets[-1] != begin:
        raise CorruptVideo(path, f"{begin} bytes of pictures, {offsets[-1]} expected")
    checksums = np.frombuffer(index, "<u4", frames, offset=offsets.nbytes)
    times = None
    if numerator:
        pts_T = np.frombuffer(index, "<i8", offset=offsets.nbytes + checksums.nbytes)
        times = FrameTimes(pts_T, Fraction(numerator, denominator), start)
    return Pack(path, offsets, checksums, seconds, colorspace, times)


def write_pack(
    path: Path, pictures: Iterable[VideoFrame], seconds: float, times: FrameTimes | None = None
) -> None:
    """Write pictures (yuvj420p, all of one size) that last `seconds` in all as a pack.

    Raises ValueError without a picture, OSError.
    """
    encoder: VideoCodecContext | None = None
    offsets, checksums, colorspace = [len(_MAGIC)], [], 2
    with open(path, "wb") as file:
        file.write(_MAGIC)
        for number, picture in enumerate(pictures):
            if encoder is None:
                encoder, colorspace = _encoder(picture), int(picture.colorspace)
            picture.pts, picture.time_base = number, encoder.time_base
            (content,) = map(bytes, encoder.encode(picture))
            file.write(content)
            offsets.append(offsets[-1] + len(content))
            checksums.append(zlib.crc32(content))
        if not checksums:
            raise ValueError(f"{path}: no picture to write")
        index = np.array(offsets, "<u8").tobytes() + np.array(checksums, "<u4").tobytes()
        start, tick = 0.0, Fraction(0)
        if times is not None:
            index += times.pts_T.astype("<i8").tobytes()
            start, tick = times.start, times.tick
        described = len(checksums), seconds, start, tick.numerator, tick.denominator, colorspace
        checksum = zlib.crc32(_DESCRIBED.pack(*described), zlib.crc32(index))
        file.write(index + _TRAILER.pack(*described, checksum, _MAGIC))


def _encoder(picture: VideoFrame) -> VideoCodecContext:
    encoder = VideoCodecContext.create("mjpeg", "w")
    encoder.width, encoder.height = picture.width, picture.height
    encoder.pix_fmt = picture.format.name
    encoder.time_base = Fraction(1, 25)  # any value will do
    encoder.thread_count = 1
    encoder.options = {"qmin": str(QUALITY), "qmax": str(QUALITY)}
    return encoder
