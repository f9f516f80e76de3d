"""Declarations of clips and of stored features; importing them loads no framework."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float16", "float32"]
"""How features are stored."""
Layout = Literal["td", "dt"]
"""Axes of feature arrays of other tools: [T, D] or [D, T]."""

FEATURES = "features"
"""Name of the only tensor of a network that gives one."""
DENSE = "dense_map/v1"
"""Id of the protocol that every stage that scores videos reports itself."""


@dataclass(frozen=True)
class ClipRecipe:
    """How a clip is cut out of a video and made into a network's input."""

    frames: int = 16
    stride: int = 1
    """Video frames from one clip frame to the next."""
    size: int = 24
    """Side of the square that the network sees, in pixels."""
    short_side: tuple[int, int] = (24, 24)
    """Range in which the short side is drawn before the square is cut out."""
    flip: float = 0.0
    """Probability of a mirror image; 0 where left and right are classes."""
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    scales: tuple[float, ...] = ()
    """Published code: the square's side is one of these shares of the picture's short side, as
    likely each, in place of `short_side`."""
    window: int = 0
    """Video frames that must follow from a clip's start on; 0: as far as its last frame, that is
    (frames - 1) · stride + 1. The published code asks for a few more."""
    short_videos: Literal["repeat", "drop"] = "repeat"
    """Training videos shorter than the window: gone through cyclically, or (published code) left
    out: another clip stands in, and the video is counted as replaced."""

    @property
    def span(self) -> int:
        """Video frames that a clip takes from its start on."""
        return self.window or (self.frames - 1) * self.stride + 1

    def __post_init__(self) -> None:
        if self.frames < 2 or self.stride < 1:
            raise ValueError(f"{self.frames} frames at stride {self.stride}: need >= 2 and >= 1")
        if self.window and self.window <= (self.frames - 1) * self.stride:
            raise ValueError(
                f"window {self.window}: {self.frames} frames at stride {self.stride} take "
                f"{(self.frames - 1) * self.stride + 1} video frames at least"
            )
        if not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales {self.scales}: expected shares of the short side, to 1")
        low, high = self.short_side
        if not self.size <= low <= high:
            raise ValueError(
                f"short_side {self.short_side} must be a range from size {self.size} up"
            )
