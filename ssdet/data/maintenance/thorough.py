"""Thorough check of a video: decode every frame and search its data for zeroed stretches."""

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
"""Codecs whose data contain no long runs of zeros, even for black pictures. Others may: codes of
flat pictures in JPEG and lossless codecs, padding, pictures that are not coded."""
MIN_HOLE_CODED, MIN_HOLE = 64, 512
"""Minimum length of a run of zero bytes that is a hole, in these codecs and in others. Disks and
file systems lose 512 bytes or more."""
MIN_VOID_PACKET = 16
"""Minimum size of a packet of zeros only that is a hole."""
Span = tuple[int, int]


def examine_whole(video: Video) -> Record:
    """Decode every frame: frames, seconds, digest and hole of a video. Raises CorruptVideo.

    Some decoders show a zeroed stretch (lost sectors, an interrupted copy) as grey or smeared
    pictures without an error. Runs of zeros are therefore damage, too; in codecs that may contain
    some they are only recorded as `hole`.
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
    """Describe the first zeroed stretch of a video's data; '' without one.

    Runs of zeros about as long as one in the packet before or after are padding or black pictures.
    """
    before, current = _EMPTY, _EMPTY
    for after in chain(_pieces(path), [_EMPTY]):
        still_busy()
        for start, stop in current.holes:
            if not _repeated((start, stop), current, before, after):
                return f"{current.name}: {stop - start:,} bytes from {start:,} on are zeros"
        if after.void:
            return f"{after.name}: all {after.size:,} bytes are zeros"
        before, current = current, after
    return ""


@dataclass(frozen=True)
class _Piece:
    """A packet of a file or a picture of a folder."""

    name: str
    size: int
    holes: tuple[Span, ...] = ()
    """Runs of zeros: first byte and the byte after the last."""
    void: bool = False
    """Whether all bytes are zeros and that cannot be a picture."""


_EMPTY = _Piece("", 0)


def _repeated(hole: Span, piece: _Piece, before: _Piece, after: _Piece) -> bool:
    """Whether a neighbour has a run at least half as long that does not continue this one."""
    others = [o for o in before.holes if o[1] < before.size or hole[0] > 0]
    others += [o for o in after.holes if o[0] > 0 or hole[1] < piece.size]
    return any(2 * (stop - start) >= hole[1] - hole[0] for start, stop in others)


def _piece(name: str, data: bytes, min_hole: int = MIN_HOLE) -> _Piece:
    holes = tuple(match.span() for match in re.finditer(rb"\0{%d,}" % min_hole, data))
    void = len(data) >= MIN_VOID_PACKET and not data.strip(b"\0")
    return _Piece(name, len(data), holes, void)


def _pieces(path: str | PathLike[str]) -> Iterator[_Piece]:
    """Packets of a file or pictures of a folder; none of a pack, which has checksums."""
    if os.path.isdir(path):
        for file in image_folder(path).files:
            yield _piece(f"picture {file!r}", Path(path, file).read_bytes())
    elif not is_pack(path):
        with opened(path) as (container, stream):
            codec = stream.codec_context
            min_hole = MIN_HOLE_CODED if codec.name in ZEROLESS else MIN_HOLE
            # Zeros are black in RGB but green in YUV, which no camera records.
            if codec.name == "rawvideo" and not (codec.pix_fmt or "").startswith("yuv"):
                return
            for number, packet in enumerate(packets(container, stream)):
                if packet is not None:
                    seconds = float((packet.pts or 0) * (stream.time_base or 0))
                    name = f"packet {number} (shown at {seconds:.2f} s)"
                    yield _piece(name, bytes(packet), min_hole)
