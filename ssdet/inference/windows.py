"""Sliding windows over videos of any length, and streaming interpolation of their scores.

Times are clip frames: every stride-th frame of a video.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """One pass: reads clip frames start … stop-1; `keep` selects the output columns."""

    start: int
    stop: int
    keep: slice


def windows(steps: int, size: int, context: int = 0) -> Iterator[Window]:
    """Passes of at most `size` clip frames over `steps`, whose `keep` are equal parts.

    Every pass reads `context` more frames on each side, as far as they exist. ValueError for passes
    that are all context.
    """
    if steps > size and size <= 2 * context:
        raise ValueError(
            f"window={size}: the network sees {context} frames to each side, so passes over a "
            f"longer video need at least {2 * context + 1} frames"
        )
    count = 1 if steps <= size else -(-steps // (size - 2 * context))
    for part in range(count):
        first, last = steps * part // count, steps * (part + 1) // count
        start, stop = max(0, first - context), min(steps, last + context)
        yield Window(start, stop, slice(first - start, last - start))


def clip_windows(steps: int, frames: int, hop: int) -> Iterator[Window]:
    """Clips of `frames` clip frames around the middle of every `hop` frames, shifted into the video
    at its ends; a video of one clip or less is one pass."""
    for part in range(1 if steps <= frames else -(-steps // hop)):
        middle = part * hop + hop // 2
        start = min(max(0, middle - frames // 2), max(0, steps - frames))
        yield Window(start, min(steps, start + frames), slice(None))


def slide(
    frames: Iterable[Tensor], passes: Iterable[Window], score: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Scores [K, n] of each pass; `score` maps its frames [T, H, W, C] to [K, columns].

    Frames are read on demand and dropped when no later pass needs them, so that memory is that of
    one pass.
    """
    source, buffer, first = iter(frames), deque[Tensor](), 0
    for window in passes:
        while first < window.start:
            if buffer:
                buffer.popleft()
            else:
                next(source)
            first += 1
        while first + len(buffer) < window.stop:
            buffer.append(next(source))
        yield score(torch.stack(tuple(buffer)))[:, window.keep]


def upsample(blocks: Iterable[Tensor], stride: int) -> Iterator[Tensor]:
    """Interpolate blocks of columns [K, n] linearly to rows [n · stride, K], as if they were one
    block (align_corners=False).

    The last column of a block waits for the next block; the one before it is kept as a neighbour.
    """
    columns = None
    for block in blocks:
        first = 0 if columns is None else columns.shape[1] - 1
        columns = block if columns is None else torch.cat((columns, block), 1)
        if columns.shape[1] > first + 1:
            yield _rows(columns, first, columns.shape[1] - 1, stride)
            columns = columns[:, -2:]
    if columns is not None:
        yield _rows(columns, columns.shape[1] - 1, columns.shape[1], stride)


def _rows(columns_KT: Tensor, first: int, stop: int, stride: int) -> Tensor:
    """Rows of columns first … stop-1. A row's weights depend on its position within its column, not
    in the video, so that rounding does not grow with time."""
    at_n, end = torch.arange(first, stop, device=columns_KT.device), columns_KT.shape[1] - 1
    before_Kn1 = columns_KT[:, (at_n - 1).clamp(min=0), None]
    after_Kn1 = columns_KT[:, (at_n + 1).clamp(max=end), None]
    shift_S = (torch.arange(stride, device=columns_KT.device) + 0.5) / stride - 0.5
    other_KnS = torch.where(shift_S < 0, before_Kn1, after_Kn1)
    return torch.lerp(columns_KT[:, at_n, None], other_KnS, shift_S.abs()).flatten(1).T


def retime(blocks: Iterable[Tensor], at_T: np.ndarray) -> Iterator[Tensor]:
    """Interpolate blocks [n, K] linearly at row positions at_T (ascending, 0 or more; the last row
    is repeated beyond the end). A block without a position yields none."""
    rows, first, done = None, 0, 0
    for block in blocks:
        rows = block if rows is None else torch.cat((rows, block))
        stop = int(np.searchsorted(at_T, first + len(rows) - 1, side="left"))
        if stop > done:
            yield _between(rows, at_T[done:stop] - first)
            done = stop
        if done == len(at_T):
            return
        unused = min(int(at_T[done]) - first, len(rows) - 1)
        rows, first = rows[unused:], first + unused
    if rows is not None:
        yield _between(rows, at_T[done:] - first)


def _between(rows_NK: Tensor, at_n: np.ndarray) -> Tensor:
    low_n = np.minimum(at_n.astype(np.int64), len(rows_NK) - 1)
    high_n = np.minimum(low_n + 1, len(rows_NK) - 1)
    weight_n1 = torch.from_numpy(at_n - low_n).to(rows_NK)[:, None]
    return torch.lerp(rows_NK[low_n], rows_NK[high_n], weight_n1)
