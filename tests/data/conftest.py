"""Files that tests of several readers are made from."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def clips() -> Callable[..., Path]:
    """Writes empty stand-ins: readers find files, they do not open them."""

    def write(folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode())
        return folder

    return write


class Videos:
    """Writes videos, decodes them whole, and says where their packets are."""

    @staticmethod
    def write(
        path: Path,
        codec: str = "libx264",
        frames: int = 50,
        size: tuple[int, int] = (48, 64),
        pixels: str = "yuv420p",
        options: dict[str, str] | None = None,
        container: dict[str, str] | None = None,
        times: Callable[[int], int] = lambda number: number,
    ) -> Path:
        """A video at 30 frames a second; frame n is shown at times(n) / 30 s."""
        tick = Fraction(1, 30)
        with av.open(str(path), "w", container_options=container or {}) as file:
            stream = file.add_stream(codec, rate=30, options=options or {})
            stream.height, stream.width = size
            stream.pix_fmt = pixels
            stream.codec_context.time_base = tick
            stream.codec_context.thread_count = 1
            for number, picture in enumerate(_pictures(frames, *size)):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = times(number), tick
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path

    @staticmethod
    def decode(path: Path) -> np.ndarray:
        """All frames, uint8 [T, H, W, 3]."""
        with av.open(str(path)) as file:
            return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])

    @staticmethod
    def patched(path: Path, name: str, change: Callable[[bytearray], None]) -> Path:
        """A changed copy beside the file."""
        content = bytearray(path.read_bytes())
        change(content)
        copy = path.with_name(name)
        copy.write_bytes(content)
        return copy

    @staticmethod
    def packets(path: Path) -> list[tuple[int, int]]:
        """Place and size of each packet."""
        with av.open(str(path)) as file:
            return [(p.pos or 0, p.size) for p in file.demux(video=0) if p.size]


def _pictures(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Blocks that slide under a bar of changing brightness: no two frames are alike."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    scene = np.kron(blocks, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)
    for number in range(count):
        picture = np.roll(scene, 2 * number, axis=1)
        picture[: height // 3] = number * 5 % 256
        yield picture


@pytest.fixture(scope="session")
def videos() -> Videos:
    """Maker of videos."""
    return Videos()
