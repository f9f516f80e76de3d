"""A check of every frame and byte of a video: damage that no decoder reports is found, too."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path

from ssdet.data.datasets.manifest import Video
from ssdet.data.maintenance.digests import whole_digest
from ssdet.data.maintenance.isolated_pool import Record, still_busy
from ssdet.data.video.frame_index import CorruptVideo, opened, packets
from ssdet.data.video.image_folders import image_folder
from ssdet.data.video.packs import is_pack
from ssdet.data.video.reader import decoding, probe

ZEROLESS = {
    "h264", "hevc", "mpeg4", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "ffv1",
}  # fmt: skip
"""Codecs whose data have no long stretch of zeros, of black pictures neither. Those of others may:
the codes of flat pictures in JPEG and lossless codecs, padding, pictures that are not coded."""
LEAST_CODED, LEAST = 64, 512
"""Zero bytes in a row that are a hole, in these codecs and in others. Disks and file systems lose
512 bytes or more."""
SHORTEST = 16
"""Bytes of a packet that is a hole where all are zeros."""
Span = tuple[int, int]


def examine_whole(video: Video) -> Record:
    """Frames, seconds and digest of a video of which every frame decodes; CorruptVideo else.

    A stretch that was zeroed (lost sectors, an interrupted copy) is shown by some decoders as grey
    or smeared pictures, without an error. Zeros in the data are therefore damage, too; in codecs
    that may have some, they are only told as `hole`.
    """
    info = probe(video.path)
    digest = whole_digest(video.path, still_busy)
    with decoding(video.path) as decoded:
        for number, _ in decoded.decoded(list(range(decoded.index.count))):
            if number % 100 == 0:
                still_busy()
    hole = find_hole(video.path)
    if hole and info.codec in ZEROLESS:
        raise CorruptVideo(video.path, hole)
    return {
        "frames": info.frames, "duration": info.duration, "start": info.start,
        "irregularity": info.irregularity, "whole": digest, "hole": hole,
    }  # fmt: skip


def find_hole(path: str | PathLike[str]) -> str:
    """Where zeros stand in place of a video's data, in words; nothing where there are none.

    Zeros that the packet before or after has about as many of, in a row, are padding or black.
    """
    before, now = _NOTHING, _NOTHING
    for piece in chain(_pieces(path), [_NOTHING]):
        still_busy()
        for start, stop in now.holes:
            if not _repeated((start, stop), now, before, piece):
                return f"{now.name}: {stop - start:,} bytes from {start:,} on are zeros"
        if piece.void:
            return f"{piece.name}: all {piece.size:,} bytes are zeros"
        before, now = now, piece
    return ""


@dataclass(frozen=True)
class _Piece:
    """A packet, or a picture of a folder."""

    name: str
    size: int
    holes: tuple[Span, ...] = ()
    """Stretches of zeros: first byte and the byte after the last."""
    void: bool = False
    """Nothing but zeros, where that is no picture."""


_NOTHING = _Piece("", 0)


def _repeated(hole: Span, piece: _Piece, before: _Piece, after: _Piece) -> bool:
    """Whether a neighbour has a stretch at least half as long, other than the rest of this one."""
    others = [o for o in before.holes if o[1] < before.size or hole[0] > 0]
    others += [o for o in after.holes if o[0] > 0 or hole[1] < piece.size]
    return any(2 * (stop - start) >= hole[1] - hole[0] for start, stop in others)


def _piece(name: str, data: bytes, least: int = LEAST) -> _Piece:
    holes = tuple(found.span() for found in re.finditer(rb"\0{%d,}" % least, data))
    void = len(data) >= SHORTEST and not data.strip(b"\0")
    return _Piece(name, len(data), holes, void)


def _pieces(path: str | PathLike[str]) -> Iterator[_Piece]:
    """Packets of a file, pictures of a folder; none of a pack, which has checksums of its own."""
    if os.path.isdir(path):
        for file in image_folder(path).files:
            yield _piece(f"picture {file!r}", Path(path, file).read_bytes())
    elif not is_pack(path):
        with opened(path) as (container, stream):
            codec = stream.codec_context
            least = LEAST_CODED if codec.name in ZEROLESS else LEAST
            # Zeros are black in RGB, and green, which no camera records, in YUV.
            if codec.name == "rawvideo" and not (codec.pix_fmt or "").startswith("yuv"):
                return
            for number, packet in enumerate(packets(container, stream)):
                if packet is not None:
                    seconds = float((packet.pts or 0) * (stream.time_base or 0))
                    name = f"packet {number} (shown at {seconds:.2f} s)"
                    yield _piece(name, bytes(packet), least)
