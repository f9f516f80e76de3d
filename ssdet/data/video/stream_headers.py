"""Headers of H.264 and HEVC streams: display order, gaps between reference pictures, SEI messages.

FFmpeg decodes what follows a lost reference picture without an error, and a file that was cut
between two packets has no other trace of the loss than these numbers. Only parameter sets and the
first fields of slice headers are parsed (ITU-T H.264, 7.3.2 and 7.3.3; H.265, 7.3.2 and 7.3.6).
FFmpeg prints them, but only through its process-wide log.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MAX_REORDER = 16
"""Most frames that can be decoded before one that is shown earlier."""
_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


@dataclass(frozen=True, slots=True)
class Picture:
    """Header of one coded picture."""

    order: int | None
    """Low bits of the picture order count; None where they are not in the slice header."""
    order_limit: int
    """What the order count is taken modulo."""
    starts: bool
    """An IDR picture: all counts begin anew."""
    reference: bool
    number: int = 0
    """frame_num (H.264)."""
    number_limit: int = 0
    """What frame_num is taken modulo; 0 where the stream may leave numbers out."""


class HeaderParser(Protocol):
    """Parser of one stream's headers, with the parameter sets that it has met."""

    step: int
    """What order counts usually rise by from one shown frame to the next."""

    def picture(self, packet: bytes) -> Picture | None:
        """Header of the packet's picture; None without one that can be parsed."""

    def without_sei(self, packet: bytes) -> bytes:
        """The packet without its SEI messages."""


def header_parser(codec: str, extradata: bytes | None) -> HeaderParser | None:
    """Parser for the streams of a decoder; None for codecs other than H.264 and HEVC."""
    parsers = {"h264": _H264, "hevc": _HEVC}
    return parsers[codec](extradata or b"") if codec in parsers else None


def lost_at_end(parser: HeaderParser, packets: Iterable[bytes]) -> bool:
    """Whether pictures are missing among those that are shown last.

    `packets` are the last ones of the stream in decoding order. Order counts rise by the same
    step from each shown picture to the next, whatever the time between them; a larger step among
    the last ones is a picture that was never written. Streams with other steps tell nothing.
    """
    sequences = [np.diff(np.sort(orders)) for orders in _sequences(parser, packets)]
    if not sequences or not len(sequences[-1]):
        return False
    earlier, last = np.split(sequences[-1], [max(len(sequences[-1]) - MAX_REORDER, 0)])
    before = np.concatenate([*sequences[:-1], earlier])
    usual = before.max() if len(before) else last.min()
    return bool(last.max() > max(usual, parser.step))


class ReferenceGaps:
    """Finds pictures whose reference pictures are not in an H.264 stream (frame_num skips)."""

    def __init__(self, extradata: bytes | None) -> None:
        self._parser = _H264(extradata or b"")
        self._last: int | None = None

    def before(self, packet: bytes) -> bool:
        """Whether reference pictures are missing between the packets given so far and this one."""
        picture = self._parser.picture(packet)
        if picture is None:
            return False
        last, limit = self._last, picture.number_limit
        known = last is None or not limit or picture.number in (0, last, (last + 1) % limit)
        if picture.reference:
            self._last = picture.number
        return not known


def _sequences(parser: HeaderParser, packets: Iterable[bytes]) -> list[list[int]]:
    """Full order counts of the pictures in decoding order, apart for each coded sequence."""
    sequences: list[list[int]] = []
    anchor = 0
    for packet in packets:
        picture = parser.picture(packet)
        if picture is None or picture.order is None:
            return []
        if picture.starts or not sequences:
            sequences.append([])
            anchor = picture.order
        half = picture.order_limit // 2
        order = anchor + (picture.order - anchor + half) % picture.order_limit - half
        sequences[-1].append(order)
        if picture.reference:
            anchor = order
    return sequences


class _Bits:
    """Reads a NAL unit bit by bit; IndexError behind its end."""

    def __init__(self, unit: bytes, skip: int) -> None:
        payload = unit.replace(b"\0\0\3", b"\0\0")[skip:]
        self._bits = int.from_bytes(payload, "big")
        self._left = 8 * len(payload)

    def fixed(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("end of NAL unit")
        return self._bits >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        zeros = 0
        while not self.fixed(1):
            zeros += 1
        return (1 << zeros) - 1 + self.fixed(zeros)

    def skip_golomb(self, count: int) -> None:
        for _ in range(count):
            self.golomb()


def _units(packet: bytes, length_size: int) -> Iterator[tuple[bytes, bytes]]:
    """NAL units of a packet and what is before each: its length, or a start code (length_size 0).

    Together they are the packet, whatever is in it.
    """
    if not length_size:
        before, *units = packet.split(b"\0\0\1")
        yield before, b""
        yield from ((b"\0\0\1", unit) for unit in units)
        return
    place = 0
    while place < len(packet):
        begin = place + length_size
        end = begin + int.from_bytes(packet[place:begin], "big")
        yield packet[place:begin], packet[begin:end]
        place = end


class _Parser:
    """What both codecs have in common: parameter sets come first, in the header or in packets."""

    _HEAD = 64  # bytes of a slice that are parsed
    _SET = 4096  # bytes of a parameter set that are parsed
    step = 1

    def __init__(self, length_size: int, units: Iterable[bytes]) -> None:
        self._length_size = length_size
        self._sequence_sets: dict[int, tuple[int, ...]] = {}
        self._picture_sets: dict[int, tuple[int, ...]] = {}
        for unit in units:
            self._parse(unit)

    def picture(self, packet: bytes) -> Picture | None:
        pictures = (self._parse(unit) for _, unit in _units(packet, self._length_size))
        return next((picture for picture in pictures if picture is not None), None)

    def without_sei(self, packet: bytes) -> bytes:
        units = _units(packet, self._length_size)
        return b"".join(b"" if self._is_sei(unit) else before + unit for before, unit in units)

    def _parse(self, unit: bytes) -> Picture | None:
        try:
            return self._unit(unit)
        except (IndexError, KeyError):  # cut short, or of a parameter set that is not there
            return None

    def _unit(self, unit: bytes) -> Picture | None:
        raise NotImplementedError

    @staticmethod
    def _is_sei(unit: bytes) -> bool:
        raise NotImplementedError


class _H264(_Parser):
    step = 2  # fields are counted

    def __init__(self, extradata: bytes) -> None:
        if extradata[:1] != b"\1" or len(extradata) < 7:
            super().__init__(0, (unit for _, unit in _units(extradata, 0)))
            return
        sets, place = extradata[5] & 31, 6
        units: list[bytes] = []
        while place + 2 < len(extradata):
            if len(units) == sets and place == 6 + sum(2 + len(unit) for unit in units):
                place += 1  # the number of picture parameter sets
            size = int.from_bytes(extradata[place : place + 2], "big")
            units.append(extradata[place + 2 : place + 2 + size])
            place += 2 + size
        super().__init__((extradata[4] & 3) + 1, units)

    def _unit(self, unit: bytes) -> Picture | None:
        kind = unit[0] & 31
        if kind == 7:
            self._sequence_set(_Bits(unit[: self._SET], 1))
        elif kind == 8:
            bits = _Bits(unit[: self._SET], 1)
            self._picture_sets[bits.golomb()] = (bits.golomb(),)
        elif kind in (1, 2, 5):
            return self._slice(_Bits(unit[: self._HEAD], 1), kind == 5, bool(unit[0] & 96))
        return None

    @staticmethod
    def _is_sei(unit: bytes) -> bool:
        return bool(unit) and unit[0] & 31 == 6

    def _sequence_set(self, bits: _Bits) -> None:
        profile = bits.fixed(8)
        bits.fixed(16)
        number, planes = bits.golomb(), 0
        if profile in _HIGH_PROFILES:
            planes = self._skip_high_profile(bits)
        number_bits, order_type, order_bits = bits.golomb() + 4, bits.golomb(), 0
        if order_type == 0:
            order_bits = bits.golomb() + 4
        elif order_type == 1:
            bits.fixed(1)
            bits.skip_golomb(2)
            bits.skip_golomb(bits.golomb())
        bits.golomb()
        gaps = bits.fixed(1)
        bits.skip_golomb(2)
        fields = 1 - bits.fixed(1)
        self._sequence_sets[number] = planes, number_bits, order_bits, gaps, fields

    @staticmethod
    def _skip_high_profile(bits: _Bits) -> int:
        """Skip the fields of the high profiles; whether colour planes are coded apart."""
        chroma = bits.golomb()
        planes = bits.fixed(1) if chroma == 3 else 0
        bits.skip_golomb(2)
        bits.fixed(1)
        if bits.fixed(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.fixed(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
        return planes

    def _slice(self, bits: _Bits, starts: bool, reference: bool) -> Picture:
        bits.skip_golomb(2)
        (sequence_set,) = self._picture_sets[bits.golomb()]
        planes, number_bits, order_bits, gaps, fields = self._sequence_sets[sequence_set]
        bits.fixed(2 * planes)
        number = bits.fixed(number_bits)
        if fields and bits.fixed(1):
            bits.fixed(1)
        if starts:
            bits.golomb()
        order = bits.fixed(order_bits) if order_bits else None
        limit = 0 if gaps else 1 << number_bits
        return Picture(order, 1 << order_bits, starts, reference, number, limit)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            following = (last + (code + 1 >> 1) * (1 if code & 1 else -1)) % 256
        last = following or last


class _HEVC(_Parser):
    def __init__(self, extradata: bytes) -> None:
        if extradata[:1] != b"\1" or len(extradata) < 23:
            super().__init__(0, (unit for _, unit in _units(extradata, 0)))
            return
        units, place = [], 23
        for _ in range(extradata[22]):
            count = int.from_bytes(extradata[place + 1 : place + 3], "big")
            place += 3
            for _ in range(count):
                if place >= len(extradata):
                    break
                size = int.from_bytes(extradata[place : place + 2], "big")
                units.append(extradata[place + 2 : place + 2 + size])
                place += 2 + size
        super().__init__((extradata[21] & 3) + 1, units)

    def _unit(self, unit: bytes) -> Picture | None:
        kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
        if layer:
            return None
        if kind == 33:
            self._sequence_set(_Bits(unit[: self._SET], 2))
        elif kind == 34:
            bits = _Bits(unit[: self._SET], 2)
            number, sequence_set, _ = bits.golomb(), bits.golomb(), bits.fixed(1)
            self._picture_sets[number] = sequence_set, bits.fixed(1), bits.fixed(3)
        elif kind < 10 or 16 <= kind <= 21:
            return self._slice(_Bits(unit[: self._HEAD], 2), kind, (unit[1] & 7) - 1)
        return None

    @staticmethod
    def _is_sei(unit: bytes) -> bool:
        return bool(unit) and unit[0] >> 1 & 63 in (39, 40)

    def _sequence_set(self, bits: _Bits) -> None:
        bits.fixed(4)
        layers = bits.fixed(3)
        bits.fixed(1 + 96)
        sublayers = [bits.fixed(2) for _ in range(layers)]
        bits.fixed(2 * (8 - layers) if layers else 0)
        for present in sublayers:
            bits.fixed(88 * (present >> 1) + 8 * (present & 1))
        number, chroma = bits.golomb(), bits.golomb()
        planes = bits.fixed(1) if chroma == 3 else 0
        bits.skip_golomb(2)
        if bits.fixed(1):
            bits.skip_golomb(4)
        bits.skip_golomb(2)
        self._sequence_sets[number] = planes, bits.golomb() + 4

    def _slice(self, bits: _Bits, kind: int, temporal_layer: int) -> Picture:
        bits.fixed(1 if kind < 16 else 2)
        sequence_set, output_flag, extra = self._picture_sets[bits.golomb()]
        planes, order_bits = self._sequence_sets[sequence_set]
        bits.fixed(extra)
        bits.golomb()
        bits.fixed(output_flag + 2 * planes)
        starts = kind in (19, 20)
        order = 0 if starts else bits.fixed(order_bits)
        anchors = kind >= 16 or (kind % 2 == 1 and kind < 6)
        return Picture(order, 1 << order_bits, starts, anchors and not temporal_layer)
