"""Masks against the paper's formulas and golden rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssdet.augment import spatial_window, temporal_alpha


def paper_alpha(n1: int, n2: int, r: int, t: int) -> float:
    """Weight of clip 1 at frame t (from 1), straight from the paper's two cases and the guards."""
    if t <= r:
        return 1.0
    if t > n1:
        return 0.0
    if n2 + r >= n1:
        return min(1.0, max(0.0, (n1 - t) / (n1 - r)))
    return min(1.0, abs(n2 + 2 * r - 2 * t) / n2)


def covered(n1: int, n2: int, r: int, frames: int) -> bool:
    return r <= n1 <= frames and n2 <= frames and max(n1, n2 + r) >= frames


def test_alpha_equals_golden_rows(golden):
    rows = golden("paper_alpha")
    frames, compared = int(rows["n"]), 0
    for (n1, n2, r), expected in zip(rows["n1n2r"].tolist(), rows["alpha"], strict=True):
        if max(n1, n2 + r) >= frames:
            alpha = temporal_alpha(n1, n2, r, frames)
            assert alpha.dtype == torch.float64
            np.testing.assert_allclose(alpha.numpy(), expected, rtol=0, atol=1e-12)
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("frames", [2, 3, 5, 8])
def test_alpha_equals_the_formula_for_every_covered_plan(frames):
    sizes = range(1, frames + 1)
    plans = [(a, b, r) for a in sizes for b in sizes for r in range(a + 1)]
    for n1, n2, r in (plan for plan in plans if covered(*plan, frames)):
        expected = [paper_alpha(n1, n2, r, t) for t in range(1, frames + 1)]
        assert temporal_alpha(n1, n2, r, frames).tolist() == pytest.approx(expected, abs=1e-12)


def test_hard_masks_by_hand():
    seamless = [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert temporal_alpha(6, 6, 2, 8).tolist() == seamless
    assert temporal_alpha(6, 6, 2, 8, mask="half").tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert temporal_alpha(6, 6, 2, 8, mask="step").tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert temporal_alpha(8, 4, 1, 8).tolist() == [1, 0.5, 0, 0.5, 1, 1, 1, 1]
    assert temporal_alpha(8, 4, 1, 8, mask="half").tolist() == [1, 0.5, 0.5, 0.5, 0.5, 1, 1, 1]
    for mask in ("seamless", "half", "step"):
        assert temporal_alpha(3, 5, 3, 6, mask=mask).tolist() == [1, 1, 1, 0, 0, 0]


def test_ramps_by_hand():
    falling = [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert temporal_alpha(6, 6, 2, 8, ramp=1.0).tolist() == falling
    assert temporal_alpha(6, 6, 2, 8, ramp=0.75).tolist() == pytest.approx(
        [1, 1, 5 / 6, 0.5, 1 / 6, 0, 0, 0]
    )
    assert temporal_alpha(6, 6, 2, 8, ramp=0.5).tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    assert temporal_alpha(6, 6, 2, 8, ramp=0).tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    # Clip 2 in frames 2 to 9: V from 1 to 0 at frame 5 and back to 1 at frame 9.
    dipping = [1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1, 1]
    assert temporal_alpha(10, 8, 1, 10).tolist() == dipping
    half = [1, 1, 0.5, 0, 0, 0, 0.5, 1, 1, 1]
    assert temporal_alpha(10, 8, 1, 10, ramp=0.5).tolist() == half
    assert temporal_alpha(10, 8, 1, 10, ramp=0).tolist() == half
    # Without an overlap there is nothing to narrow.
    assert temporal_alpha(3, 5, 3, 6, ramp=0.2).tolist() == [1, 1, 1, 0, 0, 0]


@given(st.data())
def test_a_ramp_lies_between_a_cut_and_the_paper_s(data):
    frames = data.draw(st.integers(2, 40))
    n1 = data.draw(st.integers(1, frames))
    r = data.draw(st.integers(0, n1))
    n2 = data.draw(st.integers(max(1, frames - r if n1 < frames else 1), frames))
    ramp = data.draw(st.floats(0.01, 1))
    whole, cut, alpha = (temporal_alpha(n1, n2, r, frames, ramp=x) for x in (1, 0, ramp))
    expected = [min(1.0, max(0.0, 0.5 + (a - 0.5) / ramp)) for a in whole.tolist()]
    assert alpha.tolist() == pytest.approx(expected, abs=1e-12)
    between = torch.stack([whole, cut]).sort(0).values
    assert ((alpha >= between[0] - 1e-12) & (alpha <= between[1] + 1e-12)).all()
    # Continuous in the factor: the weight moves by no more than it would at the steepest frame.
    near = temporal_alpha(n1, n2, r, frames, ramp=min(1, ramp * 1.001))
    assert (near - alpha).abs().max() <= 0.001
    small = temporal_alpha(n1, n2, r, frames, ramp=1e-9)
    torch.testing.assert_close(small, cut, rtol=0, atol=1e-12)
    step = temporal_alpha(n1, n2, r, frames, mask="step")
    assert torch.equal(cut[whole != 0.5], step[whole != 0.5])


@given(st.data())
def test_seamless_alpha_never_jumps(data):
    frames = data.draw(st.integers(2, 40))
    n1 = data.draw(st.integers(1, frames))
    r = data.draw(st.integers(0, n1 - 1))
    n2 = data.draw(st.integers(max(1, frames - r if n1 < frames else 1), frames))
    steepest = 1 / (n1 - r) if n2 + r >= n1 else 2 / n2
    alpha = temporal_alpha(n1, n2, r, frames)
    assert alpha.diff().abs().max() <= steepest + 1e-12
    assert alpha.min() >= 0 and alpha.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 9, 16), "gap"),
        ((0, 8, 0, 16), "lengths >= 1"),
        ((8, 0, 0, 16), "lengths >= 1"),
        ((8, 8, -1, 16), "shift >= 0"),
        ((8, 8, 4, 16, "seemless"), "did you mean 'seamless'"),
        ((8, 8, 4, 16, "seamless", 1.5), r"ramp=1.5: expected 0 .* to 1"),
        ((8, 8, 4, 16, "seamless", math.nan), "ramp=nan"),
        ((8, 8, 4, 16, "half", 0.5), "mask='half', which has no ramp"),
    ],
)
def test_alpha_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        temporal_alpha(*arguments)


@pytest.mark.parametrize(("width", "delta"), [(32, 2), (224, 14), (16, 1)])
def test_window_equals_golden_rows(golden, width, delta):
    rows, name = golden("paper_mask"), f"W{width}d{delta}"
    for position, mask, area in zip(
        rows[f"{name}/wt"].tolist(), rows[f"{name}/mask"], rows[f"{name}/area"], strict=True
    ):
        window = spatial_window(position, width, delta)
        np.testing.assert_allclose(window.numpy(), mask, rtol=0, atol=1e-12)
        assert float(window.mean()) == pytest.approx(area, abs=1e-12)
    view = spatial_window(math.floor(width / 2 + 0.5), width, delta)
    np.testing.assert_allclose(view.numpy(), rows[f"{name}/view"], rtol=0, atol=1e-12)


def test_window_without_a_ramp_is_a_hard_edge():
    assert spatial_window(2, 5, 0).tolist() == [1, 1, 0, 0, 0]


@given(st.integers(1, 60), st.data())
def test_window_equals_the_three_cases(width, data):
    position = data.draw(st.integers(0, width))
    delta = data.draw(st.integers(1, width))
    expected = [
        1 if j < position - delta else 0 if j >= position + delta
        else (position + delta - j) / (2 * delta)
        for j in range(width)
    ]  # fmt: skip
    assert spatial_window(position, width, delta).tolist() == pytest.approx(expected)


def test_window_refuses_nonsense():
    with pytest.raises(ValueError, match="delta=-1"):
        spatial_window(3, 8, -1)
    with pytest.raises(ValueError, match="width=0"):
        spatial_window(0, 0, 1)
