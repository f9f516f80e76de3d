"""Videos that are cut, damaged, or none at all: what `read_clip` gives is right, or refused."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ssdet.data.video.reader import CorruptVideo, probe, read_clip

X264 = {"bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
FASTSTART = {"movflags": "faststart"}
OPEN_GOP = {"x264-params": "b-adapt=0:scenecut=0:open-gop=1:keyint=15:min-keyint=15", "bf": "3"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16"}
WHOLE: dict[str, dict[str, Any]] = {
    "plain.mov": dict(options=X264 | {"g": "12"}),
    "open_gop.mp4": dict(options=OPEN_GOP),
}
TRUNCATED: dict[str, dict[str, Any]] = {
    "cut.mp4": dict(options=X264 | {"g": "12"}, container=FASTSTART, frames=40),
    "cut_open.mp4": dict(options=OPEN_GOP, container=FASTSTART, frames=40),
    "cut_fragments.mp4": dict(options=X264 | {"g": "12"}, container={"movflags": "frag_keyframe"}),
    "cut.mkv": dict(options=X264 | {"g": "12"}, frames=40),
    "cut_stream.mkv": dict(options=X264 | {"g": "12"}, container={"live": "1"}, frames=40),
    "cut.avi": dict(codec="mpeg4", options={"bf": "2", "g": "12"}, frames=40),
    "cut_h264.avi": dict(options=X264 | {"g": "12"}, frames=40),
    "cut.webm": dict(codec="libvpx", options=HIDDEN, frames=40),
}


def readable(path: Path, expected: np.ndarray) -> int:
    """How many frames from the first on can be read; all must be right."""
    for number in range(len(expected) + 1):
        try:
            assert np.array_equal(read_clip(path, [number])[0], expected[number]), number
        except CorruptVideo as error:
            assert error.reason
            return number
        except IndexError as error:
            # Only a file that does not say how long it is can seem complete.
            assert "stream" in path.name or "fragments" in path.name, error
            return number
    raise AssertionError("a frame past the end")


@pytest.mark.parametrize("name", TRUNCATED)
def test_cut_files_never_give_wrong_frames(name: str, tmp_path: Path, videos: Any) -> None:
    """Cut anywhere or between packets, a file gives what was complete but for a last few frames."""
    path = videos.write(tmp_path / name, **TRUNCATED[name])
    expected, places, whole = videos.decode(path), videos.packets(path), path.read_bytes()
    rng = random.Random(1)
    between = [begin for begin, _ in rng.sample(places[5:], 7)]
    within = rng.sample(range(places[0][0] + 100, len(whole)), 7)
    for cut in [len(whole) // 30, len(whole) - 30, *between, *within]:
        path.write_bytes(whole[:cut])
        complete = sum(begin + size <= cut for begin, size in places)
        assert complete - 6 <= readable(path, expected) <= complete, cut
        for number in rng.sample(range(complete, len(expected) + 1), 1):
            with pytest.raises((CorruptVideo, IndexError)):
                read_clip(path, [0, number])


def test_cut_file_says_where_it_breaks_off(tmp_path: Path, videos: Any) -> None:
    path = videos.write(tmp_path / "cut.mp4", **TRUNCATED["cut.mp4"])
    expected = videos.decode(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert np.array_equal(read_clip(path, [0, 5]), expected[[0, 5]])
    with pytest.raises(CorruptVideo, match="frame 39 requested"):
        read_clip(path, [39])
    with pytest.raises(CorruptVideo, match="can be read"):
        probe(path)
    with pytest.raises(IndexError, match="has 40 "):
        read_clip(path, [40])


@pytest.mark.parametrize("name", WHOLE)
def test_damage_matters_only_where_it_is(name: str, tmp_path: Path, videos: Any) -> None:
    """Noise in the second group of pictures leaves the first and the third as they are."""
    path = videos.write(tmp_path / name, **WHOLE[name])
    expected = videos.decode(path)
    places = videos.packets(path)

    def damage(content: bytearray) -> None:
        for begin, size in places[18:23]:
            content[begin + 6 : begin + size] = random.Random(0).randbytes(size - 6)

    damaged = videos.patched(path, f"damaged_{name}", damage)
    for wanted in ([0, 9], list(range(30, 50)), [40, 33], [2, 49, 30]):
        assert np.array_equal(read_clip(damaged, wanted), expected[wanted])
    for wanted in ([3, 20], list(range(50))):
        with pytest.raises(CorruptVideo):
            read_clip(damaged, wanted)


def test_damage_is_not_painted_over(tmp_path: Path, videos: Any) -> None:
    """Decoders hide damage within a picture unless told to fail."""
    path = videos.write(tmp_path / "plain.mov", **WHOLE["plain.mov"])
    begin, size = videos.packets(path)[13]

    def damage(content: bytearray) -> None:
        content[begin + size // 2 : begin + size] = bytes(size - size // 2)

    with pytest.raises(CorruptVideo, match="decoding fails"):
        read_clip(videos.patched(path, "half.mov", damage), [16])


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def still_picture(path: Path) -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        container.mux(stream.encode(picture))


NOT_VIDEOS: dict[str, Callable[[Path], object]] = {
    "empty.mp4": lambda path: path.write_bytes(b""),
    "short.mp4": lambda path: path.write_bytes(b"\0\0"),
    "noise.mp4": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "header.mp4": lambda path: path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(12)),
    "header.mkv": lambda path: path.write_bytes(b"\x1aE\xdf\xa3\xff"),
    "header.avi": lambda path: path.write_bytes(b"RIFF\xff\xff\0\0AVI LIST"),
    "text.txt": lambda path: path.write_text("a long time ago\n" * 100),
    "folder.mp4": lambda path: path.mkdir(),
    "pipe.mp4": lambda path: os.mkfifo(path),
    "audio.mp4": audio_only,
    "audio.mkv": audio_only,
    "none.mp4": no_frames,
    "none.mkv": no_frames,
    "none.avi": no_frames,
    "picture.png": still_picture,
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
@pytest.mark.parametrize("read", [probe, lambda path: read_clip(path, [0])], ids=["probe", "read"])
def test_not_a_video(
    name: str, read: Callable, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    NOT_VIDEOS[name](path)
    with pytest.raises(CorruptVideo) as caught:
        read(path)
    assert caught.value.path == str(path) and caught.value.reason
    assert name in str(caught.value)
    assert capfd.readouterr() == ("", "")


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{video}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{video}'\n",
    "list.mp4": "ffconcat version 1.0\nfile '{video}'\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_nothing(name: str, tmp_path: Path, videos: Any) -> None:
    path = tmp_path / name
    video = videos.write(tmp_path / "plain.mov", **WHOLE["plain.mov"])
    path.write_text(PLAYLISTS[name].format(video=video))
    with pytest.raises(CorruptVideo, match="not an MP4"):
        read_clip(path, [0])
