"""Headers of H.264 and HEVC streams, beside the times at which their pictures are shown."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ssdet.data.video.stream_headers import ReferenceGaps, header_parser, lost_at_end

X265 = "log-level=none:keyint=20:min-keyint=20:scenecut=0"
KINDS: dict[str, dict[str, Any]] = {
    "a.mkv": dict(options={"bf": "3", "g": "12"}),
    "interlaced.mp4": dict(options={"bf": "3", "x264-params": "interlaced=1:bff=1"}),
    "444.mkv": dict(options={"bf": "2"}, pixels="yuv444p"),
    "annex_b.ts": dict(options={"bf": "2", "g": "12"}),
    "hevc.mkv": dict(codec="libx265", options={"x265-params": X265}, size=(64, 64)),
    "ten_bit.mp4": dict(
        codec="libx265", options={"x265-params": X265}, size=(64, 64), pixels="yuv420p10le"
    ),
}


def stream(path: Path) -> tuple[str, bytes | None, list[bytes], list[int]]:
    """Decoder, its extradata, content and times of the packets."""
    with av.open(str(path)) as file:
        codec = file.streams.video[0].codec_context
        packets = [(bytes(p), p.pts or 0) for p in file.demux(video=0) if p.size]
        return codec.name, codec.extradata, [c for c, _ in packets], [t for _, t in packets]


@pytest.mark.parametrize("name", KINDS)
def test_order_counts_are_in_the_order_of_times(name: str, tmp_path: Path, videos: Any) -> None:
    codec, extradata, packets, times = stream(videos.write(tmp_path / name, **KINDS[name]))
    parser = header_parser(codec, extradata)
    assert parser is not None
    pictures = [parser.picture(packet) for packet in packets]
    starts = [n for n, picture in enumerate(pictures) if picture is not None and picture.starts]
    assert starts[0] == 0
    for begin, end in zip(starts, [*starts[1:], len(packets)], strict=True):
        orders = [picture.order for picture in pictures[begin:end] if picture is not None]
        limit = pictures[begin].order_limit  # type: ignore[union-attr]
        if 2 * (end - begin) < limit:  # counts are not cut
            assert np.array_equal(np.argsort(orders), np.argsort(times[begin:end]))


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_lost_where_later_ones_are_there(
    name: str, tmp_path: Path, videos: Any
) -> None:
    codec, extradata, packets, times = stream(videos.write(tmp_path / name, **KINDS[name]))
    for count in range(8, len(packets) + 1):  # a few packets do not tell the step
        parser = header_parser(codec, extradata)
        assert parser is not None
        lost = min(times[count:], default=2**62) < max(times[:count])
        assert lost_at_end(parser, packets[:count][-64:]) == lost, count


def test_missing_reference_pictures_are_gaps(tmp_path: Path, videos: Any) -> None:
    _, extradata, packets, _ = stream(videos.write(tmp_path / "a.mkv", **KINDS["a.mkv"]))
    parser = header_parser("h264", extradata)
    assert parser is not None
    whole = ReferenceGaps(extradata)
    assert not any(whole.before(packet) for packet in packets)
    for left_out in range(1, len(packets) - 1):
        picture, following = (parser.picture(packets[left_out + n]) for n in (0, 1))
        assert picture is not None and following is not None
        if picture.starts:
            continue
        gaps = ReferenceGaps(extradata)
        found = any(gaps.before(p) for n, p in enumerate(packets) if n != left_out)
        assert found == (picture.reference and not following.starts)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_sei_messages_are_taken_out_and_nothing_else(
    codec: str, tmp_path: Path, videos: Any
) -> None:
    name = {"h264": "a.mkv", "hevc": "hevc.mkv"}[codec]
    decoder, extradata, packets, _ = stream(videos.write(tmp_path / name, **KINDS[name]))
    parser = header_parser(decoder, extradata)
    assert parser is not None
    sei = b"\x06\x05\x01a\x80" if codec == "h264" else bytes([78, 1, 5, 1, 97, 128])
    unit = len(sei).to_bytes(4, "big") + sei
    for packet in packets[1:]:
        assert parser.without_sei(unit + packet + unit) == packet
    for broken in (b"\0", b"\0\0\0\0", b"\0\0\0\x09ab", bytes(100), b"\xff" * 9):
        assert parser.without_sei(broken) == broken


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_noise_is_no_header(codec: str) -> None:
    rng = np.random.default_rng(0)
    for size in [*range(40), 5000]:
        noise = rng.bytes(size)
        parser = header_parser(codec, b"\1" + noise)
        assert parser is not None
        assert parser.picture(noise) is None
        assert not lost_at_end(parser, [noise] * 3)
    assert header_parser("vp9", b"") is None
