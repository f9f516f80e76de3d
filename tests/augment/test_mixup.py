"""Volume MixUp against a frame-by-frame reference, golden clips and its sampling rule."""

import pytest
import torch

from ssdet.augment import OverlapDraws, VolumeMixUp, WindowDraws, temporal_alpha


def batch(frames: int, count: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(frames)
    clips = torch.rand(count, 2, frames, 2, 3, generator=generator, dtype=dtype)
    targets = torch.rand(count, 4, frames, generator=generator, dtype=dtype)
    return clips, targets / targets.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("mask", "ramp"),
    [("seamless", 1), ("seamless", 0.4), ("seamless", 0), ("half", 1), ("step", 1)],
)
@pytest.mark.parametrize("frames", [2, 3, 7, 16])
def test_equals_frame_by_frame_reference(frames, mask, ramp):
    clips, targets = batch(frames)
    aug = VolumeMixUp(mask=mask, ramp=ramp)
    for seed in range(12):
        draws = aug.draw(5, frames, 3, torch.Generator().manual_seed(seed))
        mixed, labels = aug.apply(clips, targets, draws)
        for b in range(5):
            n1, n2, r = (int(x[b]) for x in (draws.n1, draws.n2, draws.shift))
            p, alpha = int(draws.partner[b]), temporal_alpha(n1, n2, r, frames, mask, ramp)
            for t in range(frames):
                a = float(alpha[t])
                picture, label = a * clips[b, :, t], a * targets[b, :, t]
                if a < 1:
                    assert 0 <= t - r < n2
                    picture = picture + (1 - a) * clips[p, :, t - r]
                    label = label + (1 - a) * targets[p, :, t - r]
                if a > 0:
                    assert t < n1
                torch.testing.assert_close(mixed[b, :, t], picture)
                torch.testing.assert_close(labels[b, :, t], label)


@pytest.mark.parametrize("mask", ["seamless", "half", "step"])
def test_no_frame_of_a_missing_clip_shows(mask):
    """Frames past a clip's length hold NaN; none may reach the result."""
    aug = VolumeMixUp(mask=mask)
    for seed in range(20):
        draws = aug.draw(1, 9, 3, torch.Generator().manual_seed(seed))
        n1, n2, r = (int(x) for x in (draws.n1, draws.n2, draws.shift))
        clips, targets = batch(9, count=2)
        clips[0, :, n1:] = torch.nan
        clips[1, :, n2:] = torch.nan
        pair = OverlapDraws(
            torch.tensor([1, 1]), *(torch.tensor([x, y]) for x, y in ((n1, 9), (n2, 9), (r, 0)))
        )
        mixed, _ = aug.apply(clips, targets, pair)
        assert not mixed[0].isnan().any()


def test_sampling_covers_every_frame_and_both_scenarios():
    draws = VolumeMixUp().draw(4000, 7, 3, torch.Generator().manual_seed(0))
    plans = set(zip(*(x.tolist() for x in (draws.n1, draws.n2, draws.shift)), strict=True))
    first = {(n1, n2, r) for n1 in range(4, 8) for n2 in range(4, 8) for r in range(7 - n2, n1 + 1)}
    second = {(7, n2, r) for n2 in range(4, 7) for r in range(7 - n2)}
    assert plans == first | second
    returning = (draws.n2 + draws.shift < draws.n1).double().mean()
    assert float(returning) == pytest.approx(0.5, abs=0.03)
    assert sorted(draws.partner.tolist()) == list(range(4000))


@pytest.mark.parametrize("seed", range(3))
def test_released_golden(golden, seed):
    rows = golden("aug_ref_train_vm")
    part = {k.split("/")[-1]: torch.from_numpy(rows[k]) for k in rows if f"/s{seed}/" in k}
    hot = torch.nn.functional.one_hot(part["labels_in"], 50).transpose(1, 2).float()
    draws = WindowDraws(
        part["draw_perm"][0], part["draw_start"].view(2, 4), part["draw_len"].view(2, 4)
    )
    aug = VolumeMixUp(compat="released")
    clips, targets, components = aug.apply(part["x"], hot, draws, return_components=True)
    torch.testing.assert_close(clips, part["y"], rtol=0, atol=1e-6)
    assert torch.equal(components.labels.argmax(2), part["labels"])
    torch.testing.assert_close(components.weights, part["gammas"], rtol=0, atol=1e-6)
    assert torch.equal(components.visible, part["mask"])
    expected = sum(
        torch.nn.functional.one_hot(part["labels"][m], 50) * part["gammas"][m][..., None]
        for m in range(2)
    )
    torch.testing.assert_close(targets, expected.transpose(1, 2), rtol=0, atol=1e-6)


def test_released_v_is_half_a_frame_early():
    """An inner window of 4 frames: the outer clip weighs .4, 0, .4, .8 there."""
    draws = WindowDraws(torch.tensor([0]), torch.tensor([[0], [2]]), torch.tensor([[8], [4]]))
    clips, targets = batch(8, count=1)
    _, _, parts = VolumeMixUp(compat="released").apply(
        clips, targets, draws, return_components=True
    )
    expected = torch.tensor([1, 1, 0.4, 0, 0.4, 0.8, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(parts.weights[0, 0], expected, rtol=0, atol=1e-6)


def test_released_windows_move_then_stretch():
    """[3, 15) and [6, 14) of 16: the first moves to [0, 12), then the second grows to 16."""
    draws = WindowDraws(torch.tensor([0]), torch.tensor([[3], [6]]), torch.tensor([[12], [8]]))
    clips, targets = batch(16, count=1)
    _, _, parts = VolumeMixUp(compat="released").apply(
        clips, targets, draws, return_components=True
    )
    assert parts.visible[0, 0].tolist() == [1] * 12 + [0] * 4
    assert parts.visible[1, 0].tolist() == [0] * 6 + [1] * 10


def test_released_gap_is_black():
    """[0, 2) and [3, 5) of 5: the windows of an odd clip can miss the middle frame."""
    draws = WindowDraws(torch.tensor([1, 0]), torch.tensor([[0, 0], [3, 3]]), torch.full((2, 2), 2))
    clips, targets = batch(5, count=2)
    aug = VolumeMixUp(compat="released")
    mixed, labels = aug.apply(clips, targets, draws)
    torch.testing.assert_close(mixed[0, :, :2], clips[0, :, :2])
    torch.testing.assert_close(mixed[0, :, 3:], clips[1, :, 3:])
    assert not mixed[:, :, 2].any() and not labels[..., 2].any()


def test_released_sampling_range():
    draws = VolumeMixUp(compat="released").draw(2000, 16, 3, torch.Generator().manual_seed(4))
    assert sorted(set(draws.lengths.flatten().tolist())) == list(range(8, 17))
    assert int(draws.starts.min()) == 0 and int((draws.starts + draws.lengths).max()) == 16


def test_evaluation_draws():
    released = VolumeMixUp(compat="released").evaluation_draws(4, 16, 3)
    assert released.partner.tolist() == [3, 0, 1, 2]
    assert released.starts.tolist() == [[0] * 4, [4] * 4]
    assert released.lengths.tolist() == [[12] * 4] * 2
    paper = VolumeMixUp().evaluation_draws(4, 16, 3)
    plan = (paper.n1[0], paper.n2[0], paper.shift[0])
    assert [int(x) for x in plan] == [12, 12, 4]


def test_refuses():
    for options in ({"mask": "half"}, {"ramp": 0.5}):
        with pytest.raises(ValueError, match="expected 'seamless' and 1"):
            VolumeMixUp(**options, compat="released")
    with pytest.raises(ValueError, match="ramp=-0.1"):
        VolumeMixUp(ramp=-0.1)
    clips, targets = batch(8, count=1)
    one = torch.tensor([0])
    for n1, n2, r, message in ((4, 8, 5, "shift"), (4, 3, 4, "n1, shift"), (9, 8, 0, "n1")):
        draws = OverlapDraws(one, one + n1, one + n2, one + r)
        with pytest.raises(ValueError, match=message):
            VolumeMixUp().apply(clips, targets, draws)
    with pytest.raises(ValueError, match="partner"):
        VolumeMixUp().apply(clips, targets, OverlapDraws(one + 1, one + 8, one + 8, one))
    with pytest.raises(TypeError, match="OverlapDraws"):
        VolumeMixUp().apply(clips, targets, WindowDraws(one, one, one))
