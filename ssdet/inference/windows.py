"""Networks slid over videos of any length: what each pass reads, and what of it is kept.

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
    """One pass: clip frames start … stop-1 are read, `keep` names the columns that are kept."""

    start: int
    stop: int
    keep: slice


def windows(steps: int, size: int, context: int = 0) -> Iterator[Window]:
    """Passes of at most `size` clip frames over `steps`, which keep equal parts of them.

    With a context every pass reads so many frames more on each side, as far as there are any.
    ValueError for passes that are all context.
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
    """Clips of `frames` clip frames around the middle of every `hop`, moved inside the video at
    its ends; a video of one clip or less is one pass."""
    for part in range(1 if steps <= frames else -(-steps // hop)):
        middle = part * hop + hop // 2
        start = min(max(0, middle - frames // 2), max(0, steps - frames))
        yield Window(start, min(steps, start + frames), slice(None))


def slide(
    frames: Iterable[Tensor], passes: Iterable[Window], score: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Scores [K, n] that each pass keeps; `score` maps its frames [T, H, W, C] to [K, columns].

    Frames are read when they are needed and dropped when no later pass starts before them: those
    of one pass are the most that are held.
    """
    source, held, begin = iter(frames), deque[Tensor](), 0
    for one in passes:
        while begin < one.start:
            if held:
                held.popleft()
            else:
                next(source)
            begin += 1
        while begin + len(held) < one.stop:
            held.append(next(source))
        yield score(torch.stack(tuple(held)))[:, one.keep]


def upsample(blocks: Iterable[Tensor], stride: int) -> Iterator[Tensor]:
    """Blocks of columns [K, n] interpolated linearly to rows [n · stride, K], as all together
    would be (align_corners=False).

    The last column of a block waits for the next, and the one before it stays as its neighbour.
    """
    held = None
    for block in blocks:
        seen = 0 if held is None else held.shape[1] - 1
        held = block if held is None else torch.cat((held, block), 1)
        if held.shape[1] > seen + 1:
            yield _rows(held, seen, held.shape[1] - 1, stride)
            held = held[:, -2:]
    if held is not None:
        yield _rows(held, held.shape[1] - 1, held.shape[1], stride)


def _rows(columns_KT: Tensor, first: int, stop: int, stride: int) -> Tensor:
    """Rows of columns first … stop-1. A row's weights depend on its place within its column alone,
    so that far into a video they are as exact as at its start."""
    at_n, end = torch.arange(first, stop, device=columns_KT.device), columns_KT.shape[1] - 1
    before_Kn1 = columns_KT[:, (at_n - 1).clamp(min=0), None]
    after_Kn1 = columns_KT[:, (at_n + 1).clamp(max=end), None]
    shift_S = (torch.arange(stride, device=columns_KT.device) + 0.5) / stride - 0.5
    other_KnS = torch.where(shift_S < 0, before_Kn1, after_Kn1)
    return torch.lerp(columns_KT[:, at_n, None], other_KnS, shift_S.abs()).flatten(1).T


def retime(blocks: Iterable[Tensor], at_T: np.ndarray) -> Iterator[Tensor]:
    """Rows [n, K] at other places: at_T (ascending, 0 or more) counts rows, linearly between two;
    the last row holds beyond its place. Blocks that nothing lies in give no block."""
    held, first, done = None, 0, 0
    for block in blocks:
        held = block if held is None else torch.cat((held, block))
        stop = int(np.searchsorted(at_T, first + len(held) - 1, side="left"))
        if stop > done:
            yield _between(held, at_T[done:stop] - first)
            done = stop
        if done == len(at_T):
            return
        unused = min(int(at_T[done]) - first, len(held) - 1)
        held, first = held[unused:], first + unused
    if held is not None:
        yield _between(held, at_T[done:] - first)


def _between(rows_NK: Tensor, at_n: np.ndarray) -> Tensor:
    low_n = np.minimum(at_n.astype(np.int64), len(rows_NK) - 1)
    high_n = np.minimum(low_n + 1, len(rows_NK) - 1)
    share_n1 = torch.from_numpy(at_n - low_n).to(rows_NK)[:, None]
    return torch.lerp(rows_NK[low_n], rows_NK[high_n], share_n1)
