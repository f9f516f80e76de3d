"""Volume CutMix against column-by-column references, golden clips and hand-worked rows."""

from fractions import Fraction
from math import floor

import pytest
import torch

from ssdet.augment import OverlapDraws, ViewDraws, VolumeCutMix, WindowDraws, temporal_alpha


def batch(frames: int, width: int, count: int = 4):
    generator = torch.Generator().manual_seed(width)
    clips = torch.rand(count, 2, frames, 3, width, generator=generator, dtype=torch.float64)
    targets = torch.rand(count, 4, frames, generator=generator, dtype=torch.float64)
    return clips, targets / targets.sum(1, keepdim=True)


def ramp(j: int, plane: int, delta: float) -> float:
    if j < plane - delta:
        return 1.0
    return 0.0 if j >= plane + delta else (plane + delta - j) / (2 * delta)


@pytest.mark.parametrize("width", [224, 32, 33, 31, 17, 16, 15, 7, 2])
@pytest.mark.parametrize(("pan", "delta"), [("opposite", None), ("same", None), ("opposite", 5)])
def test_view_equals_column_by_column_reference(width, pan, delta):
    frames, travel = 5, 7 * width // 16
    clips, targets = batch(frames, width)
    aug = VolumeCutMix(pan=pan, delta=delta)
    draws = aug.draw(4, frames, width, torch.Generator().manual_seed(1))
    cut, labels = aug.apply(clips, targets, draws)
    plane, soft = floor(width / 2 + 0.5), width // 16 if delta is None else delta
    for b, p in enumerate(draws.partner.tolist()):
        for t in range(frames):
            s = floor(t * travel / frames)
            back = -s if pan == "opposite" else s - travel
            for j in range(width):
                m = ramp(j, plane, soft)
                expected = m * clips[b, :, t, :, (j + s) % width]
                expected = expected + (1 - m) * clips[p, :, t, :, (j + back) % width]
                torch.testing.assert_close(cut[b, :, t, :, j], expected)
        torch.testing.assert_close(labels[b], (targets[b] + targets[p]) / 2)


def test_published_motion_at_224_columns():
    """Column 0 shows these source columns over 16 frames."""
    clip = torch.arange(224.0).expand(1, 1, 16, 1, 224)
    cut, _ = VolumeCutMix().apply(clip, torch.ones(1, 2, 16), ViewDraws(torch.tensor([0])))
    steps = [0, 6, 12, 18, 24, 30, 36, 42, 49, 55, 61, 67, 73, 79, 85, 91]
    assert cut[0, 0, :, 0, 0].tolist() == steps
    assert cut[0, 0, :, 0, 223].tolist() == [223 - step for step in steps]


@pytest.mark.parametrize("width", [224, 33, 16, 7, 2])
@pytest.mark.parametrize("delta", [None, 0, 3])
def test_transient_equals_column_by_column_reference(width, delta):
    frames = 7
    clips, targets = batch(frames, width)
    aug = VolumeCutMix(window="transient", delta=delta)
    soft = width // 16 if delta is None else delta
    for seed in range(6):
        draws = aug.draw(4, frames, width, torch.Generator().manual_seed(seed))
        cut, labels = aug.apply(clips, targets, draws)
        for b, p in enumerate(draws.partner.tolist()):
            n1, n2, r = (int(x[b]) for x in (draws.n1, draws.n2, draws.shift))
            alpha = temporal_alpha(n1, n2, r, frames).tolist()
            for t in range(1, frames + 1):
                plane = floor(width * alpha[t - 1] + 0.5)
                row = [ramp(j, plane, soft) for j in range(width)]
                if t <= r or (n2 + r < n1 and t >= n2 + r):
                    row = [1.0] * width
                elif n2 + r >= n1 and t >= n1:
                    row = [0.0] * width
                mask, area = torch.tensor(row, dtype=torch.float64), sum(row) / width
                other = max(t - r, 1) - 1
                expected = mask * clips[b, :, t - 1] + (1 - mask) * clips[p, :, other]
                torch.testing.assert_close(cut[b, :, t - 1], expected)
                soft_label = area * targets[b, :, t - 1] + (1 - area) * targets[p, :, other]
                torch.testing.assert_close(labels[b, :, t - 1], soft_label)


def test_transient_shows_no_frame_of_a_missing_clip():
    aug = VolumeCutMix(window="transient")
    for seed in range(20):
        draws = aug.draw(1, 9, 32, torch.Generator().manual_seed(seed))
        n1, n2, r = (int(x) for x in (draws.n1, draws.n2, draws.shift))
        clips, targets = batch(9, 32, count=2)
        clips[0, :, n1:], clips[1, :, n2:] = torch.nan, torch.nan
        plan = (torch.tensor([x, y]) for x, y in ((n1, 9), (n2, 9), (r, 0)))
        cut, _ = aug.apply(clips, targets, OverlapDraws(torch.tensor([1, 1]), *plan))
        assert not cut[0].isnan().any()


@pytest.mark.parametrize("seed", range(3))
def test_released_view_golden(golden, seed):
    rows = golden("aug_ref_train_vc")
    part = {k.split("/")[-1]: torch.from_numpy(rows[k]) for k in rows if f"/s{seed}/" in k}
    hot = torch.nn.functional.one_hot(part["labels_in"], 50).transpose(1, 2).float()
    aug, draws = VolumeCutMix(compat="released"), ViewDraws(part["draw_perm"][0])
    clips, targets, components = aug.apply(part["x"], hot, draws, return_components=True)
    torch.testing.assert_close(clips, part["y"], rtol=0, atol=1e-6)
    assert torch.equal(components.labels.argmax(2), part["labels"])
    torch.testing.assert_close(components.weights, part["gammas"], rtol=0, atol=1e-6)
    assert torch.equal(components.visible, part["mask"])
    torch.testing.assert_close(targets, (hot + hot[draws.partner]) / 2)


def test_released_view_leaves_the_middle_of_seven_columns_to_clip_1():
    clips = torch.tensor([1.0, 2.0])[:, None, None, None, None].expand(2, 1, 2, 1, 7)
    aug, draws = VolumeCutMix(compat="released"), ViewDraws(torch.tensor([1, 0]))
    cut, targets = aug.apply(clips, torch.eye(2)[..., None].expand(2, 2, 2), draws)
    assert cut[0, 0, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    torch.testing.assert_close(targets[0, :, 0], torch.tensor([4 / 7, 3 / 7]))


def released_rows(windows: list[tuple[int, int]], frames: int, width: int):
    """Weights of both clips for each frame and column, in exact arithmetic.

    None for a frame whose window edge is a whole column through a division that binary floats
    cannot do exactly: there rounding decides.
    """
    (s0, e0), (s1, e1) = windows
    begin, end = max(s0, s1), min(e0, e1)
    length, rows = max(0, end - begin), []
    for t in range(frames):
        inside = s0 <= t < e0, s1 <= t < e1
        if not all(inside):
            rows.append([(int(inside[0]), int(inside[1] and not inside[0]))] * width)
            continue
        entering = Fraction(width * (t + 1 - begin), length + 1)
        outer = width * 2 * abs(t + 1 - Fraction(begin + end, 2)) / (length + 1)
        wide0 = {
            (True, True): entering,
            (False, False): width - entering,
            (True, False): width - outer,
            (False, True): outer,
        }[s0 >= s1, e0 >= e1]
        whole = wide0.denominator == 1 and (length + 1) & length
        wide = [min(width, max(0, w + width // 16)) for w in (wide0, width - wide0)]
        left = [j < wide[0] for j in range(width)]
        right = [j >= width - wide[1] for j in range(width)]
        both = sum(a and b for a, b in zip(left, right, strict=True))
        row = []
        for j in range(width):
            k = (j + 1 - (width - wide[1])) / Fraction(both + 1)
            weight = k if left[j] and right[j] else Fraction(int(right[j]))
            row.append((float((1 - weight) * left[j]), float(weight)))
        rows.append(None if whole else row)
    return rows


@pytest.mark.parametrize("width", [224, 32, 33, 16])
def test_released_transient_equals_exact_reference(width):
    frames, aug = 16, VolumeCutMix(window="transient", compat="released")
    clips, targets = batch(frames, width, count=6)
    seen = 0
    for seed in range(4):
        draws = aug.draw(6, frames, width, torch.Generator().manual_seed(seed))
        cut, _, parts = aug.apply(clips, targets, draws, return_components=True)
        for b, p in enumerate(draws.partner.tolist()):
            ends = (draws.starts + draws.lengths)[:, b].tolist()
            windows = list(zip(draws.starts[:, b].tolist(), ends, strict=True))
            for t, row in enumerate(released_rows(windows, frames, width)):
                if row is None:
                    continue
                own, other = torch.tensor(row, dtype=torch.float64).T
                expected = own * clips[b, :, t] + other * clips[p, :, t]
                close = {"rtol": 0, "atol": 1e-5}
                torch.testing.assert_close(cut[b, :, t], expected, **close)
                shares = torch.stack([own.mean(), other.mean()])
                torch.testing.assert_close(parts.weights[:, b, t], shares, **close)
                assert parts.visible[:, b, t].tolist() == (shares > 0).tolist()
                seen += 1
    assert seen > 200


def test_released_transient_can_be_black():
    """[2, 10) and [3, 11) of 16: nothing before frame 2 and after frame 10, without label."""
    draws = WindowDraws(torch.tensor([0]), torch.tensor([[2], [3]]), torch.tensor([[8], [8]]))
    clips, targets = batch(16, 32, count=1)
    cut, labels = VolumeCutMix(window="transient", compat="released").apply(
        clips + 1, targets, draws
    )
    black = [t < 2 or t >= 11 for t in range(16)]
    assert (cut[0].abs().amax((0, 2, 3)) == 0).tolist() == black
    assert (labels[0].sum(0) == 0).tolist() == black


def test_gathers_for_accelerators_equal_the_frame_loop():
    for options in ({}, {"pan": "same", "delta": 9}, {"window": "transient"}):
        aug, (clips, targets) = VolumeCutMix(**options), batch(6, 32)
        draws = aug.draw(4, 6, 32, torch.Generator().manual_seed(3))
        expected, _ = aug.apply(clips, targets, draws)
        effect, out = aug.effects(draws, clips)[0], torch.empty_like(clips)
        for b, p in enumerate(effect.partner):
            effect.write_gathered(b, out[b], clips[b], clips[p])
        torch.testing.assert_close(out, expected)


def test_evaluation_draws():
    assert VolumeCutMix().evaluation_draws(4, 16, 32).partner.tolist() == [0, 1, 2, 3]
    released = VolumeCutMix(window="transient", compat="released").evaluation_draws(6, 16, 32)
    assert released.partner.tolist() == [5, 0, 1, 2, 3, 4]
    assert released.lengths.tolist() == [[12] * 6] * 2


def test_refuses():
    with pytest.raises(ValueError, match="did you mean 'transient'"):
        VolumeCutMix(window="transent")
    with pytest.raises(ValueError, match="delta=-1"):
        VolumeCutMix(delta=-1)
    with pytest.raises(ValueError, match="fixed delta"):
        VolumeCutMix(delta=2, compat="released")
    with pytest.raises(ValueError, match="pan='left'"):
        VolumeCutMix(pan="left")
    clips, targets = batch(4, 16)
    with pytest.raises(ValueError, match="partner"):
        VolumeCutMix().apply(clips, targets, ViewDraws(torch.tensor([0, 1, 2, 4])))
    with pytest.raises(ValueError, match="partner"):
        VolumeCutMix().apply(clips, targets, ViewDraws(torch.tensor([0, 1, 2])))
