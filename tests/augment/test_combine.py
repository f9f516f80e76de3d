"""Joint training and creation by name."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import ssdet.augment as augment
from ssdet.augment import Joint, JointSingle, VolumeCutMix, VolumeFreeze, VolumeMixUp, create


def batch(count: int = 6, frames: int = 8, width: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(count, 2, frames, 2, width, generator=generator)
    classes = torch.randint(1, 5, (count,), generator=generator)
    return clips, torch.nn.functional.one_hot(classes, 5)[..., None].float().repeat(1, 1, frames)


def stage_by_stage(clips: Tensor, targets: Tensor, draws, members) -> tuple[Tensor, Tensor]:
    """Each augmentation on the whole batch, kept for the clips that have it; soft targets only."""
    parts = (draws.freeze, draws.mixup, draws.cutmix)
    for member, part, active in zip(members, parts, draws.active.T, strict=True):
        new_clips, new_targets = member.apply(clips, targets, part)
        clips = torch.where(active[:, None, None, None, None], new_clips, clips)
        targets = torch.where(active[:, None, None], new_targets, targets)
    return clips, targets


@pytest.mark.parametrize("compat", ["paper", "released"])
@pytest.mark.parametrize("window", ["view", "transient"])
def test_joint_is_freeze_then_mixup_then_cutmix(window, compat):
    clips, targets = batch()
    members = (
        VolumeFreeze(compat=compat),
        VolumeMixUp(compat=compat),
        VolumeCutMix(window, compat=compat),
    )
    aug = Joint(window=window, compat=compat)
    for seed in range(12):
        draws = aug.draw(6, 8, 32, torch.Generator().manual_seed(seed))
        expected = stage_by_stage(clips, targets, draws, members)
        result = aug.apply(clips, targets, draws)
        torch.testing.assert_close(result[0], expected[0])
        torch.testing.assert_close(result[1], expected[1])


def test_joint_components_keep_own_before_partner_and_multiply_weights():
    clips, targets = batch(frames=8)
    aug = Joint(p=1.0)
    draws = aug.draw(6, 8, 32, torch.Generator().manual_seed(5))
    _, soft, parts = aug.apply(clips, targets, draws, return_components=True)
    frozen = VolumeFreeze().apply(clips, targets, draws.freeze)[1]
    mixed = VolumeMixUp().apply(clips, frozen, draws.mixup, return_components=True)[2]
    assert parts.labels.shape == (4, 6, 5, 8)
    for b, p in enumerate(draws.cutmix.partner.tolist()):
        for m in range(2):
            assert torch.equal(parts.labels[m, b], mixed.labels[m, b])
            assert torch.equal(parts.labels[2 + m, b], mixed.labels[m, p])
            torch.testing.assert_close(parts.weights[m, b], mixed.weights[m, b] / 2)
            torch.testing.assert_close(parts.weights[2 + m, b], mixed.weights[m, p] / 2)
            assert torch.equal(parts.visible[2 + m, b], mixed.visible[m, p])
    torch.testing.assert_close(parts.weights.sum(0), torch.ones(6, 8))
    torch.testing.assert_close((parts.labels * parts.weights[:, :, None]).sum(0), soft)


def test_clips_without_an_augmentation_have_components_without_weight():
    clips, targets = batch()
    aug = JointSingle()
    draws = aug.draw(6, 8, 32, torch.Generator().manual_seed(0))
    active = torch.zeros(6, 3, dtype=torch.bool)
    active[0, 1] = True
    out, soft, parts = aug.apply(
        clips, targets, replace(draws, active=active), return_components=True
    )
    assert torch.equal(out[1:], clips[1:]) and torch.equal(soft[1:], targets[1:])
    assert parts.weights.shape == (2, 6, 8)
    assert not parts.weights[1, 1:].any() and not parts.visible[1, 1:].any()
    assert parts.weights[1, 0].any()


def test_joint_without_any_augmentation_is_the_input():
    clips, targets = batch()
    aug, generator = Joint(p=0.0), torch.Generator()
    out, soft, parts = aug(clips, targets, generator, return_components=True)
    assert torch.equal(out, clips) and out.data_ptr() != clips.data_ptr()
    assert torch.equal(soft, targets) and len(parts.weights) == 1
    assert aug(clips, targets, generator, inplace=True)[0] is clips


@pytest.mark.parametrize("window", ["view", "transient"])
def test_joint_single_gives_each_clip_its_own_augmentation(window):
    clips, targets = batch()
    aug = JointSingle(window=window)
    members = VolumeFreeze(), VolumeMixUp(), VolumeCutMix(window)
    for seed in range(12):
        draws = aug.draw(6, 8, 32, torch.Generator().manual_seed(seed))
        parts = (draws.freeze, draws.mixup, draws.cutmix)
        results = [m.apply(clips, targets, d) for m, d in zip(members, parts, strict=True)]
        out, soft = aug.apply(clips, targets, draws)
        for b, choice in enumerate(draws.active.long().argmax(1).tolist()):
            assert torch.equal(out[b], results[choice][0][b])
            torch.testing.assert_close(soft[b], results[choice][1][b])


def test_which_clips_get_what():
    generator = torch.Generator().manual_seed(0)
    single = JointSingle().draw(6000, 8, 32, generator).active
    assert (single.sum(1) == 1).all()
    assert single.double().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    joint = Joint(p=0.3).draw(6000, 8, 32, generator).active.double()
    assert joint.mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.03)
    both = (joint[:, 0] * joint[:, 2]).mean()
    assert float(both) == pytest.approx(0.09, abs=0.02)
    assert JointSingle().evaluation_draws(4, 8, 32).active.long().argmax(1).tolist() == [0, 1, 2, 0]
    assert Joint().evaluation_draws(4, 8, 32).active.all()


@pytest.mark.parametrize(("kind", "outcomes"), [(JointSingle, 4), (Joint, 8)])
def test_released_draws_once_per_batch(kind, outcomes):
    aug, generator, seen = kind(compat="released"), torch.Generator().manual_seed(1), set()
    for _ in range(200):
        active = aug.draw(5, 8, 32, generator).active
        assert (active == active[0]).all()
        seen.add(tuple(active[0].tolist()))
    assert len(seen) == outcomes


def test_none_returns_the_very_same_tensors():
    clips, targets = batch()
    none, generator = create("none"), torch.Generator()
    out, soft = none(clips, targets, generator)
    assert out is clips and soft is targets
    buffer = torch.empty_like(clips)
    out, soft, parts = none(clips, targets, generator, out=buffer, return_components=True)
    assert out is buffer and torch.equal(buffer, clips)
    assert torch.equal(parts.labels[0], targets) and parts.weights.eq(1).all()


def test_create_passes_options():
    assert create("freeze", segments=2, background="zero") == VolumeFreeze(2, "zero")
    assert create("mixup", mask="half") == VolumeMixUp("half")
    assert create("cutmix", window="transient", delta=3) == VolumeCutMix("transient", 3)
    assert create("joint", p=0.2, mask="step") == Joint(p=0.2, mask="step")
    assert create("joint_single", compat="released") == JointSingle(compat="released")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cutmx", {}, "did you mean 'cutmix'"),
        ("mixup", {"maks": "half"}, "no option 'maks'.*did you mean 'mask'"),
        ("none", {"p": 1}, "choose from none"),
        ("joint", {"p": 1.5}, "expected a probability"),
        ("joint", {"window": "veiw"}, "did you mean 'view'"),
        ("joint_single", {"compat": "release"}, "did you mean 'released'"),
    ],
)
def test_create_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, **options)


def test_draws_of_several_augmentations_need_joint():
    clips, targets = batch()
    aug = JointSingle()
    draws = aug.draw(6, 8, 32, torch.Generator())
    with pytest.raises(ValueError, match="use Joint"):
        aug.apply(clips, targets, replace(draws, active=torch.ones(6, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="active"):
        aug.apply(clips, targets, replace(draws, active=torch.ones(5, 3, dtype=torch.bool)))


def test_public_names():
    assert all(hasattr(augment, name) for name in augment.__all__)
