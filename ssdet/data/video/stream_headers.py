"""Headers of H.264 and HEVC streams: display order, lost reference pictures, SEI messages.

FFmpeg decodes pictures after a lost reference picture without an error, and only these numbers
reveal a cut between two packets. Parsed are parameter sets and the first fields of slice headers
(ITU-T H.264, 7.3.2 and 7.3.3; H.265, 7.3.2 and 7.3.6), which FFmpeg prints only to its log.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

MAX_REORDER = 16
"""Maximum number of frames decoded before one that is shown earlier."""
_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


@dataclass(frozen=True, slots=True)
class Picture:
    """Header of one coded picture."""

    order: int | None
    """Low bits of the picture order count; None if not in the slice header."""
    order_limit: int
    """Modulus of the order count."""
    starts: bool
    """Whether it is an IDR picture, which resets all counts."""
    reference: bool
    number: int = 0
    """frame_num (H.264)."""
    number_limit: int = 0
    """Modulus of frame_num; 0 if the stream may omit numbers."""


def header_parser(codec: str, extradata: bytes | None) -> "HeaderParser | None":
    """Parser for a codec's streams; None for codecs other than H.264 and HEVC."""
    parsers: dict[str, Callable[[bytes], HeaderParser]] = {"h264": _H264, "hevc": _HEVC}
    return parsers[codec](extradata or b"") if codec in parsers else None


def lost_at_end(parser: "HeaderParser", packets: Iterable[bytes]) -> bool:
    """Whether pictures are missing at the end of a stream.

    `packets` are its last ones in decoding order. Order counts rise by the same step from one shown
    picture to the next, whatever their times; a larger step among the last ones is a picture that
    was never written. Streams with varying steps are not judged.
    """
    sequences = [np.diff(np.sort(orders)) for orders in _sequences(parser, packets)]
    if not sequences or not len(sequences[-1]):
        return False
    earlier, last = np.split(sequences[-1], [max(len(sequences[-1]) - MAX_REORDER, 0)])
    before = np.concatenate([*sequences[:-1], earlier])
    usual = before.max() if len(before) else last.min()
    return bool(last.max() > max(usual, parser.step))


class ReferenceGaps:
    """Detector of lost reference pictures in an H.264 stream (gaps of frame_num)."""

    def __init__(self, extradata: bytes | None) -> None:
        self._parser = _H264(extradata or b"")
        self._last: int | None = None

    def before(self, packet: bytes) -> bool:
        """Whether reference pictures are missing between the previous packets and this one."""
        picture = self._parser.picture(packet)
        if picture is None:
            return False
        last, limit = self._last, picture.number_limit
        follows = last is None or not limit or picture.number in (0, last, (last + 1) % limit)
        if picture.reference:
            self._last = picture.number
        return not follows


def _sequences(parser: "HeaderParser", packets: Iterable[bytes]) -> list[list[int]]:
    """Full order counts of the pictures in decoding order, by coded sequence."""
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
    """Bit reader of a NAL unit. Raises IndexError past its end."""

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
    """(prefix, NAL unit) pairs of a packet; prefixes are lengths, or start codes (length_size 0).

    Joined they are the packet, whatever its content.
    """
    if not length_size:
        before, *units = packet.split(b"\0\0\1")
        yield before, b""
        yield from ((b"\0\0\1", unit) for unit in units)
        return
    position = 0
    while position < len(packet):
        begin = position + length_size
        end = begin + int.from_bytes(packet[position:begin], "big")
        yield packet[position:begin], packet[begin:end]
        position = end


class HeaderParser(ABC):
    """Parser of one stream's headers, which collects the parameter sets of header and packets."""

    _HEAD = 64  # bytes of a slice that are parsed
    _SET = 4096  # bytes of a parameter set that are parsed
    step = 1
    """Usual increment of order counts from one shown frame to the next."""

    def __init__(self, length_size: int, units: Iterable[bytes]) -> None:
        self._length_size = length_size
        self._sequence_sets: dict[int, tuple[int, ...]] = {}
        self._picture_sets: dict[int, tuple[int, ...]] = {}
        for unit in units:
            self._parse(unit)

    def picture(self, packet: bytes) -> Picture | None:
        """Header of the packet's picture; None if there is none that can be parsed."""
        pictures = (self._parse(unit) for _, unit in _units(packet, self._length_size))
        return next((picture for picture in pictures if picture is not None), None)

    def without_sei(self, packet: bytes) -> bytes:
        """The packet without its SEI messages."""
        units = _units(packet, self._length_size)
        return b"".join(b"" if self._is_sei(unit) else before + unit for before, unit in units)

    def _parse(self, unit: bytes) -> Picture | None:
        try:
            return self._unit(unit)
        except (IndexError, KeyError):  # truncated, or refers to an absent parameter set
            return None

    @abstractmethod
    def _unit(self, unit: bytes) -> Picture | None: ...

    @staticmethod
    @abstractmethod
    def _is_sei(unit: bytes) -> bool: ...


class _H264(HeaderParser):
    step = 2  # fields are counted

    def __init__(self, extradata: bytes) -> None:
        if extradata[:1] != b"\1" or len(extradata) < 7:
            super().__init__(0, (unit for _, unit in _units(extradata, 0)))
            return
        sets, position = extradata[5] & 31, 6
        units: list[bytes] = []
        while position + 2 < len(extradata):
            if len(units) == sets and position == 6 + sum(2 + len(unit) for unit in units):
                position += 1  # the number of picture parameter sets
            size = int.from_bytes(extradata[position : position + 2], "big")
            units.append(extradata[position + 2 : position + 2 + size])
            position += 2 + size
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
        """Skip the fields of the high profiles; return whether colour planes are separate."""
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


class _HEVC(HeaderParser):
    def __init__(self, extradata: bytes) -> None:
        if extradata[:1] != b"\1" or len(extradata) < 23:
            super().__init__(0, (unit for _, unit in _units(extradata, 0)))
            return
        units, position = [], 23
        for _ in range(extradata[22]):
            count = int.from_bytes(extradata[position + 1 : position + 3], "big")
            position += 3
            for _ in range(count):
                if position >= len(extradata):
                    break
                size = int.from_bytes(extradata[position : position + 2], "big")
                units.append(extradata[position + 2 : position + 2 + size])
                position += 2 + size
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
