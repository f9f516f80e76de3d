"""Orientation of pictures: one of the eight ways in which a stored picture can be shown."""

import io
import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image
from PIL.ExifTags import Base

_EXIF = b"Exif\0\0"
_EXIF_AT_MOST = 1 << 16
"""Bytes of a JPEG file within which its EXIF segment begins."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture becomes the one that is shown: mirrored first, then turned."""

    turns: int = 0
    """Quarter turns counter-clockwise, 0 to 3."""
    mirrored: bool = False
    """Left and right are exchanged before the turns."""

    def upright(self, picture_HWC: np.ndarray) -> np.ndarray:
        """The picture as it is shown: a view of the array."""
        mirrored_HWC = picture_HWC[:, ::-1] if self.mirrored else picture_HWC
        return np.rot90(mirrored_HWC, self.turns)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the turns; also the other way round."""
        return (width, height) if self.turns % 2 else (height, width)


# Mirrored or not, and turned by how much, for the values 1 to 8 of EXIF's tag 0x0112.
_BY_EXIF = {
    1: Orientation(), 2: Orientation(0, True), 3: Orientation(2), 4: Orientation(2, True),
    5: Orientation(1, True), 6: Orientation(3), 7: Orientation(3, True), 8: Orientation(1),
}  # fmt: skip


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Orientation by the display matrix of a frame; other angles than quarter turns are rounded to
    the nearest, and a matrix that shows nothing counts as none."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all kinds of side data, and then gives none
        angle = frame.rotation
        return Orientation(round(angle / 90) % 4 if math.isfinite(angle) else 0)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(cast(bytes, matrix), np.int32).astype(float).tolist()
    if not a * d - b * c:
        return Orientation()
    mirrored = a * d - b * c < 0
    if mirrored:  # what is left when the mirror image has been undone is a rotation
        a, b = -a, -b
    return Orientation(round(-math.degrees(math.atan2(b, a)) / 90) % 4, mirrored)


def exif_orientation(jpeg: bytes) -> Orientation:
    """Orientation by the EXIF tag of a JPEG file; as it is stored without one, or with a value
    that has no meaning."""
    if jpeg.find(_EXIF, 0, _EXIF_AT_MOST) < 0:
        return Orientation()
    try:
        value = Image.open(io.BytesIO(jpeg)).getexif().get(Base.Orientation, 1)
    except (OSError, ValueError, SyntaxError):  # a broken tag says nothing of the picture
        return Orientation()
    return _BY_EXIF.get(value, Orientation())
