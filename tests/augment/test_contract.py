"""What every augmentation must keep, whatever its options."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssdet.augment import create

CASES = [
    ("none", {}),
    ("freeze", {}),
    ("freeze", {"segments": 2}),
    ("freeze", {"background": "zero"}),
    ("mixup", {}),
    ("mixup", {"mask": "half"}),
    ("mixup", {"mask": "step"}),
    ("mixup", {"ramp": 0.4}),
    ("freeze", {"segments": 3}),
    ("cutmix", {}),
    ("cutmix", {"pan": "same", "delta": 3}),
    ("cutmix", {"window": "transient"}),
    ("joint_single", {}),
    ("joint_single", {"window": "transient"}),
    ("joint", {}),
    ("joint", {"window": "transient", "p": 0.8}),
]
RELEASED = [
    (name, {**options, "compat": "released"})
    for name in ("freeze", "mixup", "cutmix", "joint_single", "joint")
    for options in ([{}, {"window": "transient"}] if name[0] in "cj" else [{}])
]
every = pytest.mark.parametrize(("name", "options"), CASES + RELEASED)
quick = settings(max_examples=15, deadline=None)
shapes = st.tuples(
    st.integers(1, 6), st.integers(1, 3), st.integers(6, 12), st.integers(1, 3), st.integers(1, 40)
)
seeds = st.integers(0, 2**32)


def batch(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.rand(shape, generator=generator)
    classes = torch.randint(1, 7, (shape[0],), generator=generator)
    hot = torch.nn.functional.one_hot(classes, 7).float()
    return clips, hot[..., None].repeat(1, 1, shape[2])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every
@quick
@given(shape=shapes, seed=seeds)
def test_fresh_out_and_in_place_agree(name, options, shape, seed):
    aug, (clips, targets) = create(name, **options), batch(shape, seed)
    before, targets_before, state = clips.clone(), targets.clone(), torch.get_rng_state()
    fresh, soft, parts = aug(clips, targets, seeded(seed), return_components=True)
    assert torch.equal(clips, before) and torch.equal(targets, targets_before)
    assert fresh.shape == clips.shape and soft.shape == targets.shape
    assert fresh.dtype == clips.dtype and soft.dtype == targets.dtype
    buffer = torch.full_like(clips, torch.nan)
    out, _ = aug(clips, targets, seeded(seed), out=buffer)
    assert out is buffer and torch.equal(out, fresh)
    moved, again = aug(clips, targets, seeded(seed), inplace=True)
    assert moved is clips and torch.equal(moved, fresh) and torch.equal(again, soft)
    assert torch.equal(targets, targets_before)
    assert torch.equal(torch.get_rng_state(), state)
    assert parts.weights.shape == parts.visible.shape == parts.labels[:, :, 0].shape
    torch.testing.assert_close((parts.labels * parts.weights[:, :, None]).sum(0), soft)
    assert not parts.weights[parts.visible == 0].any()


def black(options: dict, frames: int) -> bool:
    """Whether the published windows may leave a frame to neither clip."""
    odd = frames % 2 == 1
    return options.get("compat") == "released" and (odd or options.get("window") == "transient")


@every
@quick
@given(shape=shapes, seed=seeds)
def test_label_mass_is_kept(name, options, shape, seed):
    clips, targets = batch(shape, seed)
    _, soft, parts = create(name, **options)(clips, targets, seeded(seed), return_components=True)
    mass, weight = soft.sum(1), parts.weights.sum(0)
    assert soft.min() >= 0 and mass.max() <= 1 + 1e-5
    if not black(options, shape[2]):
        torch.testing.assert_close(weight, torch.ones_like(weight))
    if options.get("background") != "zero":
        torch.testing.assert_close(mass, weight)


@every
@quick
@given(seed=seeds, width=st.sampled_from([16, 32, 64, 48]))
def test_the_picture_mixes_as_the_labels_do(name, options, seed, width):
    """Clip b has one brightness, that of its class; so a frame's mean must be its label's.

    The view's plane covers half a column more than the half that its label says; frozen frames
    keep their picture and lose their label, so here the label of freeze is left out.
    """
    classes = torch.arange(1, 6)
    hot = torch.nn.functional.one_hot(classes, 6).double()[..., None].repeat(1, 1, 8)
    clips = classes.double()[:, None, None, None, None].repeat(1, 2, 8, 2, width)
    aug = create(name, **options)
    draws = aug.draw(5, 8, width, seeded(seed))
    if name.startswith("joint"):
        draws.active = draws.active.clone()
        draws.active[:, 0] = False
    if name == "freeze":
        out, _ = aug.apply(clips, hot, draws)
        assert torch.equal(out, clips)
        return
    out, soft = aug.apply(clips, hot, draws)
    brightness = (soft * torch.arange(6.0, dtype=torch.float64)[:, None]).sum(1)
    slack = 4 * 0.5 / width + 1e-6
    assert (out.mean((1, 3, 4)) - brightness).abs().max() <= slack
    if options.get("window") == "transient" or name == "mixup":
        torch.testing.assert_close(out.mean((1, 3, 4)), brightness, rtol=0, atol=1e-5)


def layouts(clips: Tensor) -> dict[str, Tensor]:
    """The same values in other memory orders."""
    every_other = torch.zeros(2 * len(clips), *clips.shape[1:])
    every_other[1::2] = clips
    time_first = clips.permute(2, 0, 1, 3, 4).contiguous().permute(1, 2, 0, 3, 4)
    wider = torch.zeros(*clips.shape[:-1], clips.shape[-1] + 3)
    wider[..., 2:-1] = clips
    return {
        "clips[j::n]": every_other[1::2],
        "channels_last_3d": clips.to(memory_format=torch.channels_last_3d),
        "time first": time_first,
        "cropped": wider[..., 2:-1],
    }


@every
def test_any_memory_layout(name, options):
    clips, targets = batch((6, 3, 8, 5, 32))
    aug = create(name, **options)
    expected, _ = aug(clips, targets, seeded(7))
    for layout, view in layouts(clips).items():
        assert torch.equal(aug(view, targets, seeded(7))[0], expected), layout
        buffer = layouts(torch.zeros_like(clips))[layout]
        assert torch.equal(aug(clips, targets, seeded(7), out=buffer)[0], expected), layout
        assert torch.equal(aug(view, targets, seeded(7), inplace=True)[0], expected), layout


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(name, options, dtype):
    clips, targets = batch((4, 2, 8, 3, 32))
    aug = create(name, **options)
    expected, soft = aug(clips, targets, seeded(1))
    out, labels = aug(clips.to(dtype), targets.to(dtype), seeded(1))
    assert out.dtype == labels.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(labels.float(), soft, rtol=0, atol=0.01)


@every
@pytest.mark.parametrize("inplace", [False, True])
def test_work_stays_on_the_device_of_the_clips(name, options, inplace):
    """The meta device refuses to mix devices and to wait for a value."""
    clips, targets = (x.to("meta") for x in batch((5, 2, 8, 3, 32)))
    out, soft = create(name, **options)(clips, targets, seeded(0), inplace=inplace)
    assert out.device.type == soft.device.type == "meta" and out.shape == clips.shape


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(name, options):
    clips, targets = batch((6, 3, 8, 5, 32))
    aug = create(name, **options)
    expected, soft = aug(clips, targets, seeded(2))
    cuda, labels = clips.cuda(), targets.cuda()
    for inplace in (False, True):
        out, targets_out = aug(cuda, labels, seeded(2), inplace=inplace)
        torch.testing.assert_close(out.cpu(), expected)
        torch.testing.assert_close(targets_out.cpu(), soft)


@every
def test_smallest_clips(name, options):
    if name == "none" or options.get("segments"):
        return
    frames = 4 if options.get("compat") == "released" else 2
    for width in (1, 2, 15):
        clips, targets = batch((1, 1, frames, 1, width))
        aug = create(name, **options)
        out, soft = aug(clips, targets, seeded(0))
        assert out.isfinite().all() and soft.isfinite().all()
        aug.apply(clips, targets, aug.evaluation_draws(1, frames, width))


@pytest.mark.parametrize("partner", [[1, 2, 0, 3], [0, 0, 0, 0], [1, 0, 1, 2], [3, 3, 0, 1]])
def test_in_place_reads_no_overwritten_partner(partner):
    """Rings, fixed points and chains of partners, also such that are no permutation."""
    clips, targets = batch((4, 1, 20, 2, 32))
    for name, options in (("mixup", {}), ("cutmix", {}), ("cutmix", {"window": "transient"})):
        aug = create(name, **options)
        draws = aug.draw(4, 20, 32, seeded(0))
        draws.partner = torch.tensor(partner)
        expected, _ = aug.apply(clips, targets, draws)
        out, _ = aug.apply(clips.clone(), targets, draws, inplace=True)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["freeze", "mixup", "cutmix", "joint", "joint_single", "none"])
def test_refuses_what_does_not_fit(name):
    aug, (clips, targets), generator = create(name), batch((4, 2, 8, 3, 32)), seeded(0)
    with pytest.raises(TypeError, match=r"clips: dtype torch\.uint8.*clips.float\(\)"):
        aug(clips.byte(), targets, generator)
    with pytest.raises(TypeError, match=r"targets: dtype torch\.int64"):
        aug(clips, targets.long(), generator)
    with pytest.raises(ValueError, match=r"clips: shape \(2, 8, 3, 32\)"):
        aug(clips[0], targets, generator)
    with pytest.raises(ValueError, match="T >= 2"):
        aug(clips[:, :, :1], targets[..., :1], generator)
    for bad in (targets[:3], targets[..., :7], targets[:, :0], targets[0]):
        with pytest.raises(ValueError, match=r"targets: shape .*expected \[4, K, 8\]"):
            aug(clips, bad, generator)
    with pytest.raises(ValueError, match="require a gradient"):
        aug(clips, targets.clone().requires_grad_(), generator)
    for bad in (clips[:3].clone(), clips.double()):
        with pytest.raises(ValueError, match=r"out: .*like clips"):
            aug(clips, targets, generator, out=bad)
    with pytest.raises(ValueError, match="shares memory"):
        aug(clips, targets, generator, out=clips)
    with pytest.raises(ValueError, match="exclude each other"):
        aug(clips, targets, generator, out=torch.empty_like(clips), inplace=True)


@pytest.mark.parametrize("name", ["freeze", "mixup", "cutmix", "joint", "joint_single"])
def test_refuses_memory_and_generators_it_cannot_use(name):
    aug, (clips, targets), generator = create(name), batch((4, 2, 8, 3, 32)), seeded(0)
    buffer = torch.rand(5, *clips.shape[1:])
    with pytest.raises(ValueError, match="shares memory"):
        aug(buffer[:4], targets, generator, out=buffer[1:])
    with pytest.raises(ValueError, match="clone"):
        aug(clips[:1].expand(4, -1, -1, -1, -1), targets, generator, inplace=True)
    sliding = torch.rand(2, 11, 3, 32).unfold(1, 8, 1).permute(1, 0, 4, 2, 3)
    with pytest.raises(ValueError, match="clone"):
        aug(sliding, targets, generator, inplace=True)
    assert torch.equal(
        aug(sliding, targets, seeded(1))[0], aug(sliding.clone(), targets, seeded(1))[0]
    )
    with pytest.raises(TypeError, match=r"expected a torch\.Generator"):
        aug(clips, targets, None)
    with pytest.raises(TypeError, match="draws of type"):
        aug.apply(clips, targets, None)


def test_every_other_clip_of_a_buffer_may_be_the_output():
    clips, targets = batch((6, 2, 8, 3, 32))
    aug = create("mixup")
    expected, _ = aug(clips[::2].clone(), targets[::2], seeded(0))
    out, _ = aug(clips[::2], targets[::2], seeded(0), out=clips[1::2])
    assert torch.equal(out, expected)
