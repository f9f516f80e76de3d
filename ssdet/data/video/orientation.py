"""Orientation of stored pictures: mirroring and quarter turns, from frames and EXIF tags."""

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
    """Transformation of a stored picture to the displayed one: mirrored first, then turned."""

    turns: int = 0
    """Quarter turns counter-clockwise, 0 to 3."""
    mirrored: bool = False
    """Left and right are exchanged before the turns."""

    def upright(self, picture_HWC: np.ndarray) -> np.ndarray:
        """The displayed picture, as a view of the array."""
        mirrored_HWC = picture_HWC[:, ::-1] if self.mirrored else picture_HWC
        return np.rot90(mirrored_HWC, self.turns)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the turns (its own inverse)."""
        return (width, height) if self.turns % 2 else (height, width)


# Mirrored or not, and turned by how much, for the values 1 to 8 of EXIF's tag 0x0112.
_BY_EXIF = {
    1: Orientation(), 2: Orientation(0, True), 3: Orientation(2), 4: Orientation(2, True),
    5: Orientation(1, True), 6: Orientation(3), 7: Orientation(3, True), 8: Orientation(1),
}  # fmt: skip


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Orientation by the display matrix of a frame, rounded to quarter turns; a singular matrix is
    ignored."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV fails if the frame has side data of an unknown kind
        angle = frame.rotation
        return Orientation(round(angle / 90) % 4 if math.isfinite(angle) else 0)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(cast(bytes, matrix), np.int32).astype(float).tolist()
    if not a * d - b * c:
        return Orientation()
    mirrored = a * d - b * c < 0
    if mirrored:  # without the mirroring the matrix is a rotation
        a, b = -a, -b
    return Orientation(round(-math.degrees(math.atan2(b, a)) / 90) % 4, mirrored)


def exif_orientation(jpeg: bytes) -> Orientation:
    """Orientation by the EXIF tag of a JPEG file; the identity without a valid one."""
    if jpeg.find(_EXIF, 0, _EXIF_AT_MOST) < 0:
        return Orientation()
    try:
        value = Image.open(io.BytesIO(jpeg)).getexif().get(Base.Orientation, 1)
    except (OSError, ValueError, SyntaxError):  # a broken tag is no damage of the picture
        return Orientation()
    return _BY_EXIF.get(value, Orientation())
