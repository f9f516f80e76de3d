"""Structure of Matroska and WebM files: whether their elements follow one another to the end.

FFmpeg's demuxer searches for the next cluster where bytes are missing or destroyed, and ends
without an error where a file breaks off; only the sizes of the elements show either.
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
    """What is wrong with the structure of a Matroska file, and the byte up to which it is sound.

    Elements of unknown size (live recordings) end where one begins that cannot be inside them.
    Bytes behind the segment do not count, nor do zeros behind the last element of a segment of
    unknown size: recorders reserve room.
    """
    size = file.seek(0, os.SEEK_END)
    header = _element(file, 0, size)
    segment = header and _element(file, header[1] + (header[2] or 0), size)
    if not segment or segment[0] != _SEGMENT:
        return "no Matroska segment in it", 0
    _, place, length = segment
    end = size if length is None else min(place + length, size)
    # Bytes that are missing make the end of the element that they were in look like another: within
    # a cluster of known size, which does not add up then, any of its elements.
    sound = place
    cluster_end: int | None = None
    in_cluster = False
    while place < end:
        element = _element(file, place, size)
        if in_cluster and cluster_end is None and element:
            in_cluster = element[0] in _IN_CLUSTER
        elif place == cluster_end:
            in_cluster = False
        if not element or element[0] not in (_IN_CLUSTER if in_cluster else _IN_SEGMENT):
            if length is None and not in_cluster and _only_zeros(file, place):
                return None
            if not element and size - place < _LONGEST_HEADER:
                return f"the file breaks off {size - place} bytes into an element", size
            return f"bytes from {place} on are no Matroska element", sound
        name, body, inner = element
        if name == _CLUSTER:
            in_cluster, cluster_end = True, None if inner is None else body + inner
            sound, place = place, body
            continue
        if inner is None:
            return f"the element at byte {place} has no size", place
        if not in_cluster or cluster_end is None:
            sound = place
        begin, place = place, body + inner
        if place > end:
            return f"the file ends {place - end} bytes before its last element", size
        if in_cluster and cluster_end is not None and place > cluster_end:
            return f"the element at byte {begin} is longer than its cluster", sound
    lacking = 0 if length is None else segment[1] + length - size
    return (f"the file ends {lacking} bytes before its header says", size) if lacking > 0 else None


def _element(file: BinaryIO, place: int, size: int) -> tuple[int, int, int | None] | None:
    """Name, first byte of the body, and length (None: unknown) of the element at a place."""
    if place >= size:
        return None
    file.seek(place)
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
    body = place + name_length + size_length
    return int.from_bytes(head[:name_length], "big"), body, None if unknown else length


def _only_zeros(file: BinaryIO, place: int) -> bool:
    file.seek(place)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            return False
    return True
