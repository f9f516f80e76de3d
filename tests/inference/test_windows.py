"""Passes over long videos: every frame kept once, seen with its surroundings, few held."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ssdet.inference.windows import Window, clip_windows, retime, slide, upsample, windows

COUNTS = st.integers(1, 400)


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.integers(1, 50), st.integers(0, 30))
def test_passes_keep_every_frame_once_and_see_around_it(steps, hop, context) -> None:
    size = hop + 2 * context
    parts = list(windows(steps, size, context))
    kept = [step for p in parts for step in range(p.start, p.stop)[p.keep]]
    assert kept == list(range(steps))
    for part in parts:
        mine = range(part.start, part.stop)[part.keep]
        assert part.stop - part.start <= size
        if len(parts) > 1:
            assert part.start == max(0, mine.start - context)
            assert part.stop == min(steps, mine.stop + context)
    lengths = [len(range(p.start, p.stop)[p.keep]) for p in parts]
    assert max(lengths) - min(lengths) <= 1


def test_a_window_that_is_all_context_is_refused() -> None:
    with pytest.raises(ValueError, match="window=14: the network sees 7 frames .* at least 15"):
        list(windows(100, 14, 7))
    assert len(list(windows(14, 14, 7))) == 1


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.integers(2, 40))
def test_clips_stand_around_the_middle_of_what_they_speak_for(steps, frames) -> None:
    hop = frames // 2
    parts = list(clip_windows(steps, frames, hop))
    assert len(parts) == (1 if steps <= frames else -(-steps // hop))
    for place, part in enumerate(parts):
        assert 0 <= part.start < part.stop <= steps
        assert part.stop - part.start == min(frames, steps)
        middle = (place + 0.5) * hop
        if part.start > 0 and part.stop < steps:
            assert abs((part.start + part.stop) / 2 - middle) <= 1
    assert [p.start for p in parts] == sorted(p.start for p in parts)


class Tracked:
    """Endless-looking frames; counts those that are alive."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.count):
            frame = torch.full((1, 1, 1), number, dtype=torch.int64)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(frame, self._gone)
            yield frame
            del frame

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize(("size", "context"), [(20, 0), (20, 4), (64, 30)])
def test_only_the_frames_of_one_pass_are_held(size, context) -> None:
    frames = Tracked(5000)
    seen = []

    def score(frames_THWC: Tensor) -> Tensor:
        seen.append(len(frames_THWC))
        return frames_THWC[:, 0, 0, 0][None]

    out = torch.cat(list(slide(frames, windows(5000, size, context), score)), 1)
    assert out.tolist() == [list(range(5000))]
    assert max(seen) <= size and frames.most <= size + 1


def test_frames_that_no_pass_reads_are_skipped() -> None:
    frames = (torch.full((1, 1, 1), n) for n in range(10))
    parts = [Window(2, 4, slice(None)), Window(7, 9, slice(1, 2))]
    found = list(slide(frames, parts, lambda f: f[:, 0, 0, 0][None]))
    assert [block.tolist() for block in found] == [[[2, 3]], [[8]]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 11))
def test_interpolation_does_not_see_blocks(lengths, stride) -> None:
    rng = np.random.default_rng(len(lengths))
    columns = torch.from_numpy(rng.normal(size=(3, sum(lengths))).astype("f4"))
    rows = torch.cat(list(upsample(columns.split(lengths, 1), stride)))
    whole = F.interpolate(columns[None], size=columns.shape[1] * stride, mode="linear")[0].T
    torch.testing.assert_close(rows, whole, atol=1e-4, rtol=0)
    # By the formula, in double precision: row f lies at (f + 0.5) / stride - 0.5.
    at = (np.arange(len(rows)) + 0.5) / stride - 0.5
    exact = [np.interp(at, np.arange(columns.shape[1]), line) for line in columns.double().numpy()]
    np.testing.assert_allclose(rows.numpy(), np.stack(exact, 1), atol=1e-6)
    again = torch.cat(list(upsample([columns], stride)))
    assert torch.equal(rows, again)


def test_interpolation_is_as_exact_hours_into_a_video() -> None:
    columns = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    quiet = torch.zeros(1, 50_000)
    rows = torch.cat(list(upsample([quiet, columns], 3)))[-3 * 39 :]
    alone = torch.cat(list(upsample([columns], 3)))[3:]
    assert torch.equal(rows, alone)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_rows_at_other_times_are_interpolated_and_held_at_the_end(lengths, gaps) -> None:
    rows = torch.randn(sum(lengths), 2, generator=torch.Generator().manual_seed(len(gaps)))
    at = np.cumsum(gaps) - gaps[0]
    blocks = list(retime(rows.split(lengths), at))
    assert all(len(block) for block in blocks)
    expected = [np.interp(at, np.arange(len(rows)), line) for line in rows.double().numpy().T]
    np.testing.assert_allclose(torch.cat(blocks).numpy(), np.stack(expected, 1), atol=1e-5)


def test_rows_at_their_own_times_stay_as_they_are() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    found = torch.cat(list(retime(rows.split(7), np.arange(50.0))))
    assert torch.equal(found, rows)
