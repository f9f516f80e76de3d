"""Mixing inside a network: values, gradients and labels, against loops and matrices."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from ssdet.augment import create, draw_level, manifold, mixed_at, spatial_window, temporal_alpha
from ssdet.models import create as network

CASES = [
    ("freeze", {"segments": 2}),
    ("mixup", {}),
    ("mixup", {"mask": "half"}),
    ("mixup", {"ramp": 0.3}),
    ("cutmix", {"pan": "same", "delta": 1.5}),
    ("cutmix", {"window": "transient"}),
    ("joint", {"window": "transient", "p": 0.8}),
    ("joint_single", {}),
    *[(name, {"compat": "released"}) for name in ("freeze", "mixup", "cutmix", "joint")],
    ("cutmix", {"window": "transient", "compat": "released"}),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    clips = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    return clips, torch.eye(5, dtype=torch.float64)[: shape[0], :, None].repeat(1, 1, shape[2])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_features_mix_as_pictures_do_and_gradients_are_the_transpose(name, options):
    """Mixing is linear: its matrix, read off by mixing unit vectors, gives every gradient."""
    clips, targets = batch(3, 1, 5, 1, 4)
    aug = create(name, **options)
    for seed in range(4):
        draws = aug.draw(3, 5, 4, seeded(seed))
        units = torch.eye(clips.numel(), dtype=clips.dtype).view(-1, *clips.shape)
        matrix = torch.stack([aug.apply(unit, targets, draws)[0].flatten() for unit in units])
        features = clips.clone().requires_grad_()
        mixed, soft, parts = aug.apply(features, targets, draws, return_components=True)
        plain, labels, components = aug.apply(clips, targets, draws, return_components=True)
        torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-12)
        assert torch.equal(soft, labels) and torch.equal(parts.visible, components.visible)
        weights = torch.randn(clips.shape, generator=seeded(9), dtype=clips.dtype)
        (mixed * weights).sum().backward()
        expected = (matrix @ weights.flatten()).view(clips.shape)
        torch.testing.assert_close(features.grad, expected, rtol=0, atol=1e-12)


def looped_mixup(clips: Tensor, draws, frames: int) -> Tensor:
    rows = []
    for b in range(len(clips)):
        n1, n2, r, p = (int(x[b]) for x in (draws.n1, draws.n2, draws.shift, draws.partner))
        alpha = temporal_alpha(n1, n2, r, frames).tolist()
        row = [
            a * clips[b, :, t] + ((1 - a) * clips[p, :, t - r] if a < 1 else 0)
            for t, a in enumerate(alpha)
        ]
        rows.append(torch.stack(row, 1))
    return torch.stack(rows)


def looped_view(clips: Tensor, draws, frames: int) -> Tensor:
    width = clips.shape[-1]
    mask, rows = spatial_window((width + 1) // 2, width, width // 16).tolist(), []
    for b, p in enumerate(draws.partner.tolist()):
        row = []
        for t in range(frames):
            s = t * (7 * width // 16) // frames
            columns = [
                m * clips[b, :, t, :, (j + s) % width]
                + (1 - m) * clips[p, :, t, :, (j - s) % width]
                for j, m in enumerate(mask)
            ]
            row.append(torch.stack(columns, -1))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows)


def looped_freeze(clips: Tensor, draws, frames: int) -> Tensor:
    rows = []
    for b, clip in enumerate(clips):
        start, length = int(draws.starts[b, 0]), int(draws.lengths[b, 0])
        order = [*range(start), *[start] * length, *range(start + 1, frames)][:frames]
        rows.append(torch.stack([clip[:, t] for t in order], 1))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("name", "loop"),
    [("mixup", looped_mixup), ("cutmix", looped_view), ("freeze", looped_freeze)],
)
def test_gradients_equal_those_of_a_loop_over_frames(name, loop):
    frames, aug = 6, create(name)
    clips, targets = batch(4, 2, frames, 2, 17)
    for seed in range(3):
        draws = aug.draw(4, frames, 17, seeded(seed))
        ours, theirs = (clips.clone().requires_grad_() for _ in range(2))
        mixed, expected = aug.apply(ours, targets, draws)[0], loop(theirs, draws, frames)
        torch.testing.assert_close(mixed, expected)
        for result in (mixed, expected):
            result.pow(3).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.fixture(scope="module")
def x3d() -> nn.Module:
    return network("x3d_tiny", 5, generator=seeded(3), dropout=0.0).double().eval()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_network_goes_on_from_the_mixture(x3d, level):
    """Against the blocks called one by one."""
    clips, targets = batch(4, 3, 6, 24, 24)
    aug = create("cutmix", window="transient")
    logits, soft = manifold(aug, x3d, clips, targets, seeded(1), level)
    features = clips
    for block in x3d.blocks[: level + 1] if level else []:
        features = block(features)
    width = (24, 6, 3, 3)[level]
    assert features.shape[-1] == width
    draws = aug.draw(4, 6, width, seeded(1))
    mixed, labels = aug.apply(features.detach(), targets, draws)
    for block in x3d.blocks[level + 1 if level else 0 : -1]:
        mixed = block(mixed)
    torch.testing.assert_close(logits, x3d.score(x3d.pool(mixed)))
    assert torch.equal(soft, labels) and logits.shape == targets.shape
    x3d.zero_grad()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in x3d.blocks[0].parameters())


def test_gradients_of_early_weights_are_finite_differences(x3d):
    clips, targets = batch(4, 3, 6, 24, 24)
    weight = x3d.blocks[0].conv.conv_t.weight
    direction = torch.randn(weight.shape, generator=seeded(5), dtype=weight.dtype)

    def loss() -> Tensor:
        return manifold(create("joint"), x3d, clips, targets, seeded(2), 2)[0].square().mean()

    (slope,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.add_(sign * 1e-6 * direction)
            values.append(float(loss()))
            weight.sub_(sign * 1e-6 * direction)
    found = (values[0] - values[1]) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(found, rel=1e-4)


def test_levels_are_equally_likely_and_drawn_from_the_generator_alone(x3d):
    generator, state = seeded(0), torch.get_rng_state()
    counts = Counter(draw_level(x3d, generator) for _ in range(2000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(count == pytest.approx(500, abs=90) for count in counts.values())
    assert torch.equal(torch.get_rng_state(), state)
    clips, targets = batch(4, 3, 6, 24, 24)
    runs = [
        manifold(create("mixup"), x3d, clips, targets, seeded(4), return_components=True)
        for _ in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2].weights.shape == (2, 4, 6)


def test_the_network_is_left_as_it_was(x3d):
    clips, targets = batch(4, 3, 6, 24, 24)
    before = x3d(clips)
    with pytest.raises(ZeroDivisionError), mixed_at(x3d, 1, lambda x: x / (1 // 0)):
        x3d(clips)
    with torch.no_grad():
        manifold(create("mixup"), x3d, clips, targets, seeded(0), 3)
    assert torch.equal(x3d(clips), before)


def test_refuses(x3d):
    clips, targets = batch(4, 3, 6, 24, 24)
    with pytest.raises(ValueError, match=r"level=4: expected 0 \(input\) to 3"):
        manifold(create("mixup"), x3d, clips, targets, seeded(0), 4)
    with pytest.raises(TypeError, match="Identity has no attribute `layers`"):
        manifold(create("mixup"), nn.Identity(), clips, targets, seeded(0))
    with pytest.raises(TypeError, match="Generator"):
        manifold(create("mixup"), x3d, clips, targets, None)
    pooled = nn.Sequential(nn.AvgPool3d((2, 1, 1)))
    pooled.layers = [pooled[0]]
    with pytest.raises(ValueError, match=r"targets: shape .*expected \[4, K, 3\]"):
        manifold(create("mixup"), pooled, clips, targets, seeded(0), 1)
    features = clips.clone().requires_grad_()
    for options in ({"inplace": True}, {"out": torch.empty_like(clips)}):
        with pytest.raises(ValueError, match="require a gradient"):
            create("mixup")(features, targets, seeded(0), **options)
