"""Pictures of detections: a timeline, and the video with labels drawn on it."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from ssdet.data.video.reader import probe
from ssdet.data.video.stream import stream_frames
from ssdet.detection.segments import Detection, Rows
from ssdet.system.drawing import COLOURS, save
from ssdet.system.text_files import printable

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

BINS = 1200
TICK = Fraction(1, 90_000)
Boxes = Sequence[tuple[str, float]]


class Timeline:
    """Highest probability of every class in each of `BINS` equal stretches of a video."""

    def __init__(self, classes: Sequence[str], end: float) -> None:
        self.classes, self.end = tuple(classes), end
        self.best_KB = np.zeros((len(self.classes), BINS), np.float32)

    def add(self, rows: Rows) -> None:
        """Add the next frames."""
        scale = BINS / self.end
        first_N = np.minimum((rows.times_N * scale).astype(int), BINS - 1)
        last_N = np.clip(np.ceil(rows.ends_N * scale).astype(int) - 1, first_N, BINS - 1)
        for step in range(int((last_N - first_N).max()) + 1):
            bins_N = np.minimum(first_N + step, last_N)
            np.maximum.at(self.best_KB.T, bins_N, rows.probabilities_NK)

    def top(self, count: int) -> list[int]:
        """Classes with the highest peaks, the highest first."""
        return np.argsort(-self.best_KB.max(1), kind="stable")[:count].tolist()

    def write(self, segments: Sequence[Detection], path: Path, title: str, top: int) -> Path:
        """Draw the probabilities of the `top` highest classes over time as shades, 0 white, with
        segments as bars below. The font has no Chinese, Japanese or Korean characters."""
        from matplotlib.figure import Figure

        shown = self.top(top)
        figure = Figure(figsize=(8.4, 1.4 + 0.42 * len(shown)), layout="constrained")
        panel = figure.subplots()
        for row, k in enumerate(shown):
            shades: Any = panel.imshow(
                self.best_KB[k : k + 1], cmap="Blues", vmin=0, vmax=1, aspect="auto",
                interpolation="nearest", extent=(0, self.end, row + 0.7, row + 0.1),
            )  # fmt: skip
            bars = [(one.start, one.end - one.start) for one in segments if one.label == k]
            panel.broken_barh(bars, (row + 0.72, 0.18), color=COLOURS[1])
        panel.set_xlim(0, self.end)
        panel.set_ylim(len(shown), 0)
        names = [printable(self.classes[k]) for k in shown]
        panel.set_yticks(np.arange(len(shown)) + 0.5, names, fontsize=8)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("seconds; bars: segments", fontsize=8)
        panel.set_title(title, fontsize=9)
        figure.colorbar(shades, ax=panel, pad=0.01, label="probability", fraction=0.05)
        return save(figure, path)


class Overlay:
    """Copy of a video as H.264, upright, with its size and times, and labels in a corner.

    Odd widths and heights lose the last pixel; sound is left out. One frame is in memory at a time.
    Use it as a context manager.
    """

    def __init__(
        self, video: str, out: Path, classes: Sequence[str], threshold: float, top: int
    ) -> None:
        info = probe(video)
        self.classes, self.threshold, self.top = tuple(classes), threshold, top
        self._frames = stream_frames(video, range(info.frames))
        self._container = av.open(str(out), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = self._container.add_stream(
            "libx264", rate=Fraction(info.fps).limit_denominator(1001), options={"crf": "20"}
        )
        self._stream.width, self._stream.height = info.width // 2 * 2, info.height // 2 * 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TICK
        self._stream.codec_context.thread_count = 1
        self._last = -1
        self._font = _font(max(10, info.height // 22))

    def __enter__(self) -> "Overlay":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def add(self, rows: Rows) -> None:
        """Draw and encode the next frames."""
        for time, scores_K in zip(rows.times_N.tolist(), rows.probabilities_NK, strict=True):
            order = np.argsort(-scores_K, kind="stable")[: self.top].tolist()
            boxes = [(self.classes[k], float(scores_K[k])) for k in order]
            boxes = [box for box in boxes if box[1] >= self.threshold]
            picture = draw_labels(next(self._frames), boxes, self._font)
            height, width = self._stream.height, self._stream.width
            even = np.ascontiguousarray(picture[:height, :width])
            frame = av.VideoFrame.from_ndarray(even, "rgb24").reformat(format="yuv420p", threads=1)
            self._last = max(self._last + 1, round(time / TICK))
            frame.pts, frame.time_base = self._last, TICK
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode())


def draw_labels(picture_HWC: np.ndarray, boxes: Boxes, font: "FreeTypeFont") -> np.ndarray:
    """The picture with names and probabilities at the top left, each on a bar whose length is the
    probability; the same array without boxes."""
    from PIL import Image, ImageDraw

    if not boxes:
        return picture_HWC
    image = Image.fromarray(picture_HWC)
    draw = ImageDraw.Draw(image, "RGBA")
    texts = [f"{' '.join(name.split())} {score:.2f}" for name, score in boxes]
    height = round(font.size * 1.4)
    width = max(draw.textlength(text, font=font) for text in texts) + font.size
    for row, (text, (_, score)) in enumerate(zip(texts, boxes, strict=True)):
        top = row * height
        draw.rectangle((0, top, width, top + height - 1), fill=(0, 0, 0, 150))
        draw.rectangle((0, top, width * score, top + height - 1), fill=(0, 114, 178, 170))
        draw.text((font.size / 2, top + font.size * 0.15), text, fill="white", font=font)
    return np.asarray(image)


def _font(size: int) -> "FreeTypeFont":
    """A font with Latin, Greek and Cyrillic letters that every installation has."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
