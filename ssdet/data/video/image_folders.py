"""Videos stored as folders of numbered JPEG files, such as the 24-fps frames of Charades."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from ssdet.data.storage.cache import identity
from ssdet.data.storage.folders import is_noise
from ssdet.data.video.frame_index import CorruptVideo, cached_per_file
from ssdet.data.video.orientation import Orientation, exif_orientation
from ssdet.data.video.picture_decoder import jpeg_decoder

PICTURE_FPS = 24.0
"""Rate of Charades' published frames (its README)."""
_PICTURE = re.compile(r"(.*?)(\d+)\.jpe?g", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The pictures of one video in the order of their numbers."""

    path: str
    files: tuple[str, ...]

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode these frames (from 0): (number, frame). Raises `CorruptVideo`."""
        for number in numbers:
            file = self.files[number]
            try:
                path = os.path.join(self.path, file)
                if not stat.S_ISREG(os.stat(path).st_mode):
                    raise ValueError("not a regular file")
                yield number, decode_jpeg(Path(path).read_bytes())
            except FileNotFoundError:
                raise CorruptVideo(self.path, f"picture {file!r}: the file has gone") from None
            except ValueError as error:
                raise CorruptVideo(self.path, f"picture {file!r}: {error}") from error


@cached_per_file
def image_folder(path: str) -> ImageFolder:
    """Pictures of a folder: `ID-000001.jpg`, `img_00001.jpg`, `0.jpeg`, …, from number 0 or 1 on.

    Other files are ignored. Raises `CorruptVideo` for a folder without pictures, for gaps in the
    numbers, duplicate numbers and several series of pictures (as of optical flow).
    """
    matches = [_PICTURE.fullmatch(name) for name in os.listdir(path) if not is_noise(name)]
    pictures = sorted((int(match[2]), match[1], match[0]) for match in matches if match)
    if not pictures:
        raise CorruptVideo(path, "no numbered JPEG files in this folder")
    series = sorted({prefix for _, prefix, _ in pictures})
    if len(series) > 1:
        reason = f"several series of pictures: {series[0]!r}, {series[1]!r}; expected one"
        raise CorruptVideo(path, reason)
    first = min(pictures[0][0], 1)
    for expected, (number, _, name) in enumerate(pictures, first):
        if number < expected:
            raise CorruptVideo(path, f"number {number} is there twice: {name!r}")
        if number > expected:
            reason = f"picture {expected} is missing ({len(pictures)} files, the next is {name!r})"
            raise CorruptVideo(path, reason)
    return ImageFolder(path, tuple(name for _, _, name in pictures))


def decode_jpeg(content: bytes) -> VideoFrame:
    """Decode a JPEG file, upright by its EXIF tag.

    Raises ValueError for damage, another format or more than 64 Mi pixels.
    """
    try:
        frames = jpeg_decoder().decode(Packet(content)) if content else []
    except av.FFmpegError as error:
        raise ValueError(f"not a readable JPEG file: {error.strerror}") from error
    # The decoder conceals a missing end: an end marker must follow the last scan.
    cut = content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")
    if len(frames) != 1 or frames[0].is_corrupt or cut:
        raise ValueError("cut short, or not a JPEG file" if content else "empty file")
    orientation = exif_orientation(content)
    if orientation == Orientation():
        return frames[0]
    upright = np.ascontiguousarray(orientation.upright(frames[0].to_ndarray(format="rgb24")))
    return VideoFrame.from_ndarray(upright, "rgb24")


def stored_size(path: str) -> int | list[int]:
    """Bytes of a video file; of an image folder [pictures, bytes of the first, of the last].

    The sizes of all pictures of thousands of folders would take too long. Raises FileNotFoundError.
    """
    if not os.path.isdir(path):
        return identity(path)[1]
    names = (name for name in os.listdir(path) if not is_noise(name))
    files = sorted(name for name in names if _PICTURE.fullmatch(name))
    ends = [os.path.getsize(os.path.join(path, name)) for name in (*files[:1], *files[-1:])]
    return [len(files), *ends]
