"""Files that play whole are read whole, however odd; damaged pictures are refused."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet

from ssdet.data.video.reader import CorruptVideo, probe, read_clip
from ssdet.data.video.stream import video_clock
from ssdet.data.video.stream_headers import header_parser

X264 = {"bf": "2", "g": "12", "x264-params": "b-adapt=0:scenecut=0"}
OPEN_GOP = {"x264-params": "b-adapt=0:scenecut=0:open-gop=1:keyint=15:min-keyint=15", "bf": "3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=10:b-adapt=0", "bf": "2"}
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0"
KINDS: dict[str, dict[str, Any]] = {
    "h264": dict(options=X264),
    "h264_open": dict(options=OPEN_GOP),
    "h264_refresh": dict(options=REFRESH),
    "hevc": dict(codec="libx265", options={"x265-params": f"{X265}:open-gop=0"}, size=(64, 64)),
    "hevc_open": dict(codec="libx265", options={"x265-params": X265}, size=(64, 64)),
    "hevc_low_delay": dict(
        codec="libx265", options={"x265-params": f"{X265}:bframes=0"}, size=(64, 64)
    ),
    "vp8": dict(codec="libvpx", options={"g": "12"}),
    "vp9": dict(codec="libvpx-vp9", options={"g": "12"}),
    "av1": dict(codec="libsvtav1", options={"g": "12", "preset": "12"}, size=(64, 64)),
    "mpeg4": dict(codec="mpeg4", options={"g": "12"}),
    "mpeg4_b": dict(codec="mpeg4", options={"g": "12", "bf": "2"}),
    "mjpeg": dict(codec="mjpeg", pixels="yuvj420p"),
}
# User data of 200 bytes, of which 99 and 59 are there.
SHORT_SEI = {
    "h264": b"\x06\x05\xc8" + bytes(range(1, 100)) + b"\x80",
    "hevc": bytes([78, 1, 5, 200]) + bytes(range(1, 60)) + b"\x80",
}


def remux(path: Path, copy: Path, change: Callable[[int, bytes], bytes | None]) -> Path:
    """Copy a video; `change` gives the new content of each packet, None to leave it out."""
    with av.open(str(path)) as old, av.open(str(copy), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in old.demux(stream) if p.size):
            content = change(number, bytes(packet))
            if content is None:
                continue
            other = Packet(content)
            other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
            other.time_base, other.is_keyframe = packet.time_base, packet.is_keyframe
            other.stream = out
            new.mux(other)
    return copy


@pytest.mark.parametrize("name", [n for n in KINDS if n.startswith(("h264", "hevc"))])
@pytest.mark.parametrize("every", [1, 17])
def test_short_side_information_is_no_damage(
    name: str, every: int, tmp_path: Path, videos: Any
) -> None:
    path = videos.write(tmp_path / "plain.mp4", **KINDS[name])
    sei = SHORT_SEI[name.split("_")[0]]
    unit = len(sei).to_bytes(4, "big") + sei
    odd = remux(
        path, tmp_path / "odd.mp4", lambda n, content: content if n % every else unit + content
    )
    expected = videos.decode(path)
    assert np.array_equal(videos.decode(odd), expected)  # as players show it
    assert probe(odd) == probe(path)
    for wanted in ([0], [30, 4, 49], list(range(50))):
        assert np.array_equal(read_clip(odd, wanted), expected[wanted])


@pytest.mark.parametrize("name", ["h264", "h264_open", "mpeg4", "mpeg4_b", "mjpeg"])
@pytest.mark.parametrize("sei", [False, True], ids=["plain", "short SEI"])
def test_damaged_slices_are_refused(name: str, sei: bool, tmp_path: Path, videos: Any) -> None:
    """Every frame that is given is right."""
    unit = SHORT_SEI.get(name.split("_")[0])
    if sei and unit is None:
        pytest.skip("no SEI in this codec")
    suffix = {"mpeg4_b": "avi", "mjpeg": "avi"}.get(name, "mp4")
    path = videos.write(tmp_path / f"plain.{suffix}", **KINDS[name])
    if sei and unit is not None:
        extra = len(unit).to_bytes(4, "big") + unit
        path = remux(path, tmp_path / "odd.mp4", lambda n, content: extra + content)
    expected = videos.decode(path)
    begin, size = videos.packets(path)[13]

    def damage(content: bytearray) -> None:
        content[begin + size * 2 // 3 : begin + size] = bytes(size - size * 2 // 3)

    damaged = videos.patched(path, f"damaged.{suffix}", damage)
    refused = 0
    for number in range(50):
        try:
            found = read_clip(damaged, [number])[0]
        except CorruptVideo:
            refused += 1
        else:
            assert np.array_equal(found, expected[number]), number
    assert 0 < refused < 50


# Of 40 packets with noise in place of the picture, how many are refused at least: FFmpeg takes some
# noise for a picture. Its HEVC decoder does so with all of it unless it is strict.
NOISE = {"hevc_low_delay": (8, 20), "vp8": (0, 36), "vp9": (0, 30), "av1": (2, 30)}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_refused_where_the_decoder_detects_it(
    name: str, tmp_path: Path, videos: Any
) -> None:
    header, expected = NOISE[name]
    path = videos.write(tmp_path / "plain.mkv", **KINDS[name])
    places, rng = [p for p in videos.packets(path)[1:] if p[1] > 20], random.Random(0)
    detected = 0
    for number in range(40):
        begin, size = rng.choice(places)

        def damage(content: bytearray, begin: int = begin + 4, size: int = size - 4) -> None:
            content[begin + header : begin + size] = rng.randbytes(size - header)

        try:
            read_clip(videos.patched(path, f"{number}.mkv", damage), range(50))
        except CorruptVideo:
            detected += 1
    assert detected >= expected


def test_strict_hevc_survives_short_side_information(tmp_path: Path, videos: Any) -> None:
    path = videos.write(tmp_path / "plain.mp4", **KINDS["hevc_low_delay"])
    unit = len(SHORT_SEI["hevc"]).to_bytes(4, "big") + SHORT_SEI["hevc"]
    rng = random.Random(0)
    refused = []
    for extra in (b"", unit):
        for number in range(1, 30):
            noise = rng.randbytes(10_000)

            def damage(
                n: int, c: bytes, extra: bytes = extra, at: int = number, noise: bytes = noise
            ) -> bytes:
                return extra + (c[:8] + noise[: len(c) - 8] if n == at else c)

            damaged = remux(path, tmp_path / f"{len(extra)}{number}.mp4", damage)
            try:
                read_clip(damaged, range(50))
            except CorruptVideo:
                refused.append(len(extra))
    assert min(refused.count(0), refused.count(len(unit))) >= 10


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("h264", "mkv"), ("h264_open", "mkv"), ("h264_refresh", "mkv"), ("hevc", "mkv"),
        ("hevc_open", "mkv"), ("vp8", "webm"), ("vp9", "webm"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [3, 13])
def test_a_stream_that_starts_in_the_middle_is_whole_from_its_first_keyframe_on(
    name: str, suffix: str, first: int, tmp_path: Path, videos: Any
) -> None:
    path = videos.write(tmp_path / f"plain.{suffix}", **KINDS[name])
    late = remux(
        path, tmp_path / f"late.{suffix}", lambda n, content: content if n >= first else None
    )
    whole, shown = videos.decode(path), []
    with av.open(str(late)) as file:  # what a player shows, past packets that it cannot decode
        codec = file.streams.video[0].codec_context
        codec.thread_count = 1
        for packet in file.demux(video=0):
            try:
                shown += [f.to_ndarray(format="rgb24") for f in codec.decode(packet)]
            except av.FFmpegError:
                continue
    assert len(shown) >= 20
    assert np.array_equal(whole[-len(shown) :], shown)
    assert probe(late).frames == len(shown)
    assert np.array_equal(read_clip(late, range(len(shown))), shown)


RECORDINGS = {
    "live.mkv": {"live": "1"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof"},
}


@pytest.mark.parametrize("file", RECORDINGS)
@pytest.mark.parametrize("name", ["h264", "h264_open", "hevc", "hevc_open"])
def test_a_pause_is_no_loss(file: str, name: str, tmp_path: Path, videos: Any) -> None:
    """Nothing changed on a screen for a while before the last, or the last but one, picture."""
    for still in (48, 49):
        path = videos.write(
            tmp_path / f"{still}.{file}",
            times=lambda n, still=still: n if n < still else n + 40,
            container=RECORDINGS[file],
            **KINDS[name],
        )
        assert probe(path).frames == 50
        assert video_clock(path).times_T[[still - 1, still]] == pytest.approx(
            [(still - 1) / 30, (still + 40) / 30], abs=2e-3
        )
        assert np.array_equal(read_clip(path, range(50)), videos.decode(path))


@pytest.mark.parametrize("name", ["h264", "h264_open", "hevc", "hevc_open"])
def test_pictures_missing_before_the_last_are_a_loss(
    name: str, tmp_path: Path, videos: Any
) -> None:
    """A recording that breaks off between packets, at a constant rate and at one that varies."""
    for rate, times in (("steady", lambda n: n), ("variable", lambda n: n * n)):
        path = videos.write(
            tmp_path / f"{rate}.mkv", times=times, container=RECORDINGS["live.mkv"], **KINDS[name]
        )
        with av.open(str(path)) as file:
            pts = [packet.pts for packet in file.demux(video=0) if packet.size]
        for count in range(8, 50):
            cut = remux(
                path, tmp_path / "cut.mkv", lambda n, c, count=count: c if n < count else None
            )
            lost = set(pts[count:]) & set(range(max(pts[:count])))
            if not lost:
                assert probe(cut).frames == count
                continue
            with pytest.raises(CorruptVideo, match="missing at the end"):
                probe(cut)


def test_lost_reference_pictures_are_damage(tmp_path: Path, videos: Any) -> None:
    """A stream that starts at an open group, so that only a tolerant decoder gets through it."""
    path = videos.write(tmp_path / "plain.mkv", **KINDS["h264_open"])
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        parser = header_parser("h264", file.streams.video[0].codec_context.extradata)
        assert parser is not None
        pictures = [parser.picture(bytes(packet)) for packet in packets]
    first = [n for n, packet in enumerate(packets) if packet.is_keyframe][1]
    late = remux(path, tmp_path / "late.mkv", lambda n, c: c if n >= first else None)
    assert probe(late).frames >= 30
    for number, other in ((True, "reference"), (False, "none")):
        left_out = next(
            n for n in range(first + 6, 50) if pictures[n] and pictures[n].reference == number
        )
        lossy = remux(
            path,
            tmp_path / f"{other}.mkv",
            lambda n, c, gone=left_out: c if n >= first and n != gone else None,
        )
        if number:
            with pytest.raises(CorruptVideo, match="reference pictures are missing"):
                probe(lossy)
        else:
            assert probe(lossy).frames == probe(late).frames - 1


def test_a_broken_first_keyframe_is_not_a_start_in_the_middle(tmp_path: Path, videos: Any) -> None:
    for suffix in ("mp4", "mkv"):
        path = videos.write(tmp_path / f"plain.{suffix}", **KINDS["h264"])
        begin, size = videos.packets(path)[0]

        def damage(content: bytearray, begin: int = begin, size: int = size) -> None:
            content[begin + 4 : begin + size] = bytes(size - 4)

        with pytest.raises(CorruptVideo):
            probe(videos.patched(path, f"damaged.{suffix}", damage))
