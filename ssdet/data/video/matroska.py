"""Structural check of Matroska and WebM files: do their elements follow one another to the end?

FFmpeg's demuxer searches for the next cluster if bytes are missing or destroyed and ends without
an error if a file breaks off; only the sizes of the elements reveal either.
"""

import os
from typing import BinaryIO

HEAD = b"\x1aE\xdf\xa3"
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_IN_SEGMENT = {
    _CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367,
    0xEC, 0xBF,
}  # fmt: skip
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0xEC, 0xBF}
_LONGEST_HEADER = 12


def damage(file: BinaryIO) -> tuple[str, int] | None:
    """Damage to the structure of a Matroska file and the byte up to which it is intact, or None.

    Elements of unknown size (live recordings) end at the first element that cannot be inside them.
    Ignored are bytes after the segment, and zeros (reserved space) after the last element of a
    segment of unknown size.
    """
    size = file.seek(0, os.SEEK_END)
    header = _element(file, 0, size)
    segment = header and _element(file, header[1] + (header[2] or 0), size)
    if not segment or segment[0] != _SEGMENT:
        return "no Matroska segment in it", 0
    _, position, length = segment
    end = size if length is None else min(position + length, size)
    # Missing bytes make the end of their element look like another one. Within a cluster of known
    # size, whose sizes then do not add up, that can be any of its elements.
    sound = position
    cluster_end: int | None = None
    in_cluster = False
    while position < end:
        element = _element(file, position, size)
        if in_cluster and cluster_end is None and element:
            in_cluster = element[0] in _IN_CLUSTER
        elif position == cluster_end:
            in_cluster = False
        if not element or element[0] not in (_IN_CLUSTER if in_cluster else _IN_SEGMENT):
            if length is None and not in_cluster and _only_zeros(file, position):
                return None
            if not element and size - position < _LONGEST_HEADER:
                return f"the file breaks off {size - position} bytes into an element", size
            return f"bytes from {position} on are no Matroska element", sound
        name, body, inner = element
        if name == _CLUSTER:
            in_cluster, cluster_end = True, None if inner is None else body + inner
            sound, position = position, body
            continue
        if inner is None:
            return f"the element at byte {position} has no size", position
        if not in_cluster or cluster_end is None:
            sound = position
        begin, position = position, body + inner
        if position > end:
            return f"the file ends {position - end} bytes before its last element", size
        if in_cluster and cluster_end is not None and position > cluster_end:
            return f"the element at byte {begin} is longer than its cluster", sound
    lacking = 0 if length is None else segment[1] + length - size
    return (
        (f"the file ends {lacking} bytes before its declared length", size) if lacking > 0 else None
    )


def _element(file: BinaryIO, position: int, size: int) -> tuple[int, int, int | None] | None:
    """ID, first byte of the body and length (None: unknown) of the element at a byte."""
    if position >= size:
        return None
    file.seek(position)
    head = file.read(_LONGEST_HEADER)
    name_length = 9 - head[0].bit_length()
    if name_length > 4 or len(head) <= name_length or not head[name_length]:
        return None
    size_length = 9 - head[name_length].bit_length()
    coded = head[name_length : name_length + size_length]
    if len(coded) < size_length:
        return None
    length = int.from_bytes(coded, "big") - (1 << 7 * size_length)
    unknown = length == (1 << 7 * size_length) - 1
    body = position + name_length + size_length
    return int.from_bytes(head[:name_length], "big"), body, None if unknown else length


def _only_zeros(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            return False
    return True
