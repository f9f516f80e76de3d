"""Draws frame_times.png: one action of a recording at a variable rate, labelled in two ways.

python docs/figures/frame_times.py
"""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from matplotlib.figure import Figure

from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.data.loading.frame_readers import Decoder, dense_targets

START, END, DURATION = 7.0, 9.0, 12.0
# A phone: six seconds at 10 frames a second in light, then six at 4 in the dark.
TIMES = [Fraction(n, 10) for n in range(60)] + [6 + Fraction(n, 4) for n in range(24)]


def write(path: Path) -> None:
    """Write the recording."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in TIMES:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    """Label the recording by its clock, and by count and duration, and draw both."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phone.mp4"
        write(path)
        video = Video("phone", str(path), "test", None, (Segment(0, START, END),), DURATION)
        manifest = Manifest("phone", ("action",), (video,))
        reader = Decoder()
        times_T = reader.clock(video).times_T
        by_clock_T = dense_targets(manifest, video, reader)[0]
        frames = len(times_T)
        by_count_T = manifest.frame_targets(video, frames, frames / DURATION)[0]
    figure = Figure(figsize=(8.4, 2.0), layout="constrained")
    panel = figure.subplots()
    panel.axvspan(START, END, color="#0072b2", alpha=0.15, lw=0)
    rows = (("at the times of the frames", by_clock_T), ("by count and duration", by_count_T))
    for row, (_, labels_T) in enumerate(rows):
        panel.vlines(times_T, row + 0.15, row + 0.85, color="#bbb", lw=0.8)
        panel.vlines(times_T[labels_T], row + 0.15, row + 0.85, color="#d55e00", lw=1.6)
    panel.set_yticks([0.5, 1.5], [name for name, _ in rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0, DURATION)
    panel.set_xlabel("seconds; a stroke is a frame, shaded is the action", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
