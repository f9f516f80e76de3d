"""Volume Freeze against the paper's index maps, golden clips and its sampling rule."""

from collections import Counter

import pytest
import torch

from ssdet.augment import FreezeDraws, VolumeFreeze, freeze


def counted(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip whose pixels, and targets whose columns, tell their frame."""
    clip = torch.arange(frames, dtype=torch.float32)[None, :, None, None].expand(2, -1, 3, 4)
    target = torch.rand(5, frames, generator=torch.Generator().manual_seed(0)) + 1
    return clip.contiguous(), target


@pytest.mark.parametrize("background", ["class", "zero"])
def test_freeze_equals_golden_index_maps(golden, background):
    rows = golden("paper_vf")
    for (n, r, m), source, action in zip(
        rows["nrm"].tolist(), rows["src_index"], rows["is_action"], strict=True
    ):
        clip, target = counted(n)
        frozen, labels = freeze(clip, target, r - 1, m, background)
        assert frozen[0, :, 0, 0].tolist() == source[:n].tolist()
        expected = target[:, source[:n]].clone()
        expected[:, action[:n] == 0] = 0
        if background == "class":
            expected[0, action[:n] == 0] = 1
        assert torch.equal(labels, expected)
        assert torch.equal(clip, counted(n)[0]) and torch.equal(target, counted(n)[1])


def test_class_equals_function(golden):
    clip, target = counted(8)
    aug = VolumeFreeze(background="zero")
    draws = FreezeDraws(torch.tensor([[2], [0], [7]]), torch.tensor([[4], [8], [1]]))
    clips, targets = aug.apply(clip.expand(3, -1, -1, -1, -1), target.expand(3, -1, -1), draws)
    for b in range(3):
        expected = freeze(clip, target, int(draws.starts[b]), int(draws.lengths[b]), "zero")
        assert torch.equal(clips[b], expected[0]) and torch.equal(targets[b], expected[1])


@pytest.mark.parametrize("seed", range(3))
def test_released_golden(golden, seed):
    rows = golden("aug_ref_train_vf")
    part = {k.split("/")[-1]: torch.from_numpy(rows[k]) for k in rows if f"/s{seed}/" in k}
    hot = torch.nn.functional.one_hot(part["labels_in"], 50).transpose(1, 2).float()
    aug = VolumeFreeze(compat="released")
    draws = FreezeDraws(part["draw_start"], part["draw_len"])
    clips, targets, components = aug.apply(part["x"], hot, draws, return_components=True)
    assert torch.equal(clips, part["y"])
    assert torch.equal(components.labels.argmax(2), part["labels"])
    assert torch.equal(components.weights, part["gammas"])
    assert torch.equal(components.visible, part["mask"])
    expected = torch.nn.functional.one_hot(part["labels"][0], 50).transpose(1, 2).float()
    assert torch.equal(targets, expected)


@pytest.mark.parametrize(("frames", "segments"), [(16, 2), (16, 3), (17, 3), (9, 4), (7, 1)])
def test_segments_stay_in_their_windows_and_consume_frames_in_order(frames, segments):
    aug = VolumeFreeze(segments=segments, background="zero")
    draws = aug.draw(40, frames, 4, torch.Generator().manual_seed(1))
    clip, target = counted(frames)
    clips, targets = aug.apply(clip.expand(40, -1, -1, -1, -1), target.expand(40, -1, -1), draws)
    for b in range(40):
        pieces = list(zip(draws.starts[b].tolist(), draws.lengths[b].tolist(), strict=True))
        for k, (start, length) in enumerate(pieces):
            assert k * frames // segments <= start and length >= 2
            assert start + length <= (k + 1) * frames // segments
        expected, frozen, source = [], [], 0
        for t in range(frames):
            held = any(start < t < start + length for start, length in pieces)
            frozen.append(any(start <= t < start + length for start, length in pieces))
            source += 0 if held or t == 0 else 1
            expected.append(source)
        assert clips[b, 0, :, 0, 0].tolist() == expected
        assert (targets[b].sum(0) == 0).tolist() == frozen


def test_paper_sampling_is_uniform_in_r_then_in_m():
    draws = VolumeFreeze().draw(24000, 5, 4, torch.Generator().manual_seed(2))
    count = Counter(zip(draws.starts[:, 0].tolist(), draws.lengths[:, 0].tolist(), strict=True))
    legal = {(r - 1, m): 1 / 4 / (5 - r) for r in range(1, 5) for m in range(2, 5 - r + 2)}
    assert count.keys() == legal.keys()
    for pair, share in legal.items():
        assert count[pair] / 24000 == pytest.approx(share, abs=0.012)


def test_released_sampling_range():
    draws = VolumeFreeze(compat="released").draw(4000, 16, 4, torch.Generator().manual_seed(3))
    assert sorted(set(draws.lengths[:, 0].tolist())) == list(range(1, 8))
    assert int((draws.starts + draws.lengths).max()) == 16 and int(draws.starts.min()) == 0


def test_evaluation_draws_alternate():
    draws = VolumeFreeze(compat="released").evaluation_draws(4, 16, 4)
    assert draws.starts[:, 0].tolist() == [2, 10, 2, 10]
    assert draws.lengths[:, 0].tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("start", "length", "background", "message"),
    [
        (-1, 2, "class", "start=-1"),
        (3, 0, "class", "length=0"),
        (6, 3, "class", "start \\+ length <= 8"),
        (1, 2, "clas", "did you mean 'class'"),
    ],
)
def test_freeze_refuses(start, length, background, message):
    clip, target = counted(8)
    with pytest.raises(ValueError, match=message):
        freeze(clip, target, start, length, background)


def test_class_refuses():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="segments=0"):
        VolumeFreeze(segments=0)
    with pytest.raises(ValueError, match="one segment"):
        VolumeFreeze(segments=2, compat="released")
    with pytest.raises(ValueError, match="at least 2 frames each"):
        VolumeFreeze(segments=3).draw(2, 5, 4, generator)
    with pytest.raises(ValueError, match="at least 4"):
        VolumeFreeze(compat="released").draw(2, 3, 4, generator)
    clip, target = counted(8)
    with pytest.raises(ValueError, match="lengths"):
        VolumeFreeze().apply(
            clip[None], target[None], FreezeDraws(torch.tensor([6]), torch.tensor([3]))
        )
