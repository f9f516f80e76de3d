"""Coarse-Fine against its specification written out a second time, with nothing left small."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssdet.evaluation.cost import conv_macs, parameters
from ssdet.models import accelerate, create, set_splits
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.pyramid import FineFeatures, pyramid

PUBLISHED = {"backbone_options": {"shortcut_norm": True}}
TINY = {"backbone": "x3d_tiny", "grid": 3}


def tiny(classes=5, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return create("coarse_fine", classes, generator=generator, **{**TINY, **options})


def clips(frames=8, batch=2, seed=0):
    return torch.randn(batch, 3, frames, 24, 24, generator=torch.Generator().manual_seed(seed))


def seen(model, frames, start, seed=1):
    """What the model's own fine stream sees of a longer clip."""
    with torch.no_grad():
        levels = pyramid(model.fine, clips(frames, seed=seed), 3)
    return FineFeatures(levels, torch.ones(2, frames, dtype=torch.bool), torch.tensor(start))


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_parameter_counts():
    with torch.device("meta"):
        whole = create("coarse_fine", 157, **PUBLISHED)
        second = create("coarse_fine", 157, own_fine=False, **PUBLISHED)
        plain = create("coarse_fine", 157, own_fine=False, mixing=False, **PUBLISHED)
    assert (parameters(whole), parameters(second)) == (7_828_742, 4_532_327)
    counts = {name: parameters(part) for name, part in second.fusion.named_children()}
    assert counts == {
        "rw2": 3_025, "rw3": 11_809, "rw4": 46_657, "rw5": 185_473, "rw6": 697_563,
        "mix2": 17_328, "mix3": 34_656, "mix4": 69_312, "mix5": 138_624,
    }  # fmt: skip
    assert parameters(second.grid_pool) == 31_465
    assert parameters(second) - parameters(plain) == 17_328 + 34_656 + 69_312 + 138_624


def test_multiply_adds_at_paper_size():
    """MODELS.md 5.5: 64 coarse frames, 128 fine ones. Its 0.47 G are the four stages' levels; the
    logits' level attends at 7 x 7 too, for another 1.18 G."""
    with torch.device("meta"):
        model = create("coarse_fine", 157, own_fine=False).eval()
        widths = {"layer1": 24, "layer2": 48, "layer3": 96, "layer4": 192, "conv5": 432}
        levels = {name: torch.empty(1, width, 128, 7, 7) for name, width in widths.items()}
        fine = FineFeatures(levels, torch.ones(1, 128, dtype=torch.bool), torch.zeros(1))
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(torch.empty(1, 3, 64, 224, 224), fine)
        fast = create("fast", 157)
    found = counter.get_flop_counts()
    macs = {
        k: v[torch.ops.aten.convolution] / 2e9
        for k, v in found.items()
        if torch.ops.aten.convolution in v
    }
    part = {name: macs[f"CoarseFine.fusion.{name}"] for name, _ in model.fusion.named_children()}
    assert sum(part[f"rw{n}"] for n in (2, 3, 4, 5)) == pytest.approx(0.47, abs=0.005)
    assert sum(part[f"mix{n}"] for n in (2, 3, 4, 5)) == pytest.approx(0.2, abs=0.02)
    assert part["rw6"] == pytest.approx(1.18, abs=0.005)
    assert macs["CoarseFine.grid_pool"] == pytest.approx(0.44, abs=0.005)
    assert conv_macs(fast, (1, 3, 128, 224, 224)) / 1e9 == pytest.approx(37.96, abs=0.005)
    assert macs["Global"] + 37.96 == pytest.approx(47 + 1.2, abs=0.3)


def large(x, size):
    """Adaptive max-pooling over space of [B, C, T, H, W]."""
    pooled = F.adaptive_max_pool2d(x.flatten(1, 2), size)
    return pooled.unflatten(1, x.shape[1:3])


def pointwise(conv, x):
    return torch.einsum("oi,bithw->bothw", conv.weight[..., 0], x) + conv.bias.view(-1, 1, 1, 1)


def level_by_hand(level, maps, mask, aligned, size, pooled=False):
    x = large(maps, size)
    attention = pointwise(level.at2, pointwise(level.at1, x).relu()).sigmoid()
    weight = attention[:, :, :, None] * aligned[:, None, :, :, None, None]
    weight = weight * mask[:, None, :, None, None, None]
    mean = (x[:, :, :, None] * weight / (weight.sum(2, keepdim=True) + 1e-6)).sum(2)
    mean = mean.mean((3, 4), keepdim=True) if pooled else mean
    shift = pointwise(level.fc2, pointwise(level.fc1, mean).relu())
    return pointwise(level.fc4, pointwise(level.fc3, mean).relu()), shift


def by_hand(model, x, fine, mixing):
    """MODELS.md 5.2 to 5.4 in full: 5-D grid_sample, both times multiplied out at full size."""
    frames, mask = x.shape[2], fine.mask_BT.float()
    x = model.blocks[1](model.blocks[0](x))
    pool, y = model.grid_pool, x
    y = pool.bn2(pool.conv2(pool.bn1(pool.conv1(y)).relu())).relu()
    keep = 1 - (pool.conv3(y).mean((1, 3, 4)) / 2).sigmoid()
    grid = F.pad((keep / keep.sum(1, keepdim=True)).cumsum(1), (1, 0))

    def at(places, values):
        axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in values.shape[3:]]
        mesh = [torch.meshgrid(2 * row - 1, *axes, indexing="ij") for row in places]
        points = torch.stack([torch.stack(axis[::-1], -1) for axis in mesh])
        return F.grid_sample(values, points, align_corners=True)

    x = at(grid, x)
    centres = grid * frames + fine.start_B[:, None]
    deviation = mask.sum(1).view(-1, 1, 1) / 8
    steps = torch.arange(mask.shape[1])[:, None]
    aligned = torch.exp(-((steps - centres[:, None]) ** 2) / (2 * deviation**2))
    aligned = aligned / aligned.max(1, keepdim=True).values

    sizes, names = (6, 3, 3), ("layer1", "layer2", "layer3")
    rw = [model.fusion.get_submodule(f"rw{n}") for n in (2, 3, 4, 5)]
    found = [
        level_by_hand(level, fine.levels[name], mask, aligned, size)
        for level, name, size in zip(rw, names, sizes, strict=False)
    ]
    for number, size in enumerate(sizes):
        x = model.blocks[1 + number](x) if number else x
        scale, shift = found[number]
        if mixing:
            mix = model.fusion.get_submodule(f"mix{number + 2}")
            scale = torch.cat([large(scale, size) for scale, _ in found], 1)
            shift = torch.cat([large(shift, size) for _, shift in found], 1)
            scale, shift = pointwise(mix.conv_at2, scale), pointwise(mix.conv_at, shift)
        x = x * scale.sigmoid() + shift
    scale, shift = level_by_hand(rw[3], fine.levels["conv5"], mask, aligned, 3, pooled=True)
    logits = model.score(model.pool(x)) * scale[..., 0, 0].sigmoid() + shift[..., 0, 0]

    even = torch.linspace(0, 1, grid.shape[1])
    inverse = [np.interp(even.numpy(), row.numpy(), even.numpy()) for row in grid]
    inverse_BS = torch.from_numpy(np.stack(inverse)).float()
    logits = at(inverse_BS, logits[..., None, None])[..., 0, 0]
    return F.interpolate(logits, size=frames, mode="linear", align_corners=True)


@pytest.mark.parametrize("mixing", [True, False])
def test_forward_is_the_specification_in_full(mixing):
    model = tiny(mixing=mixing).eval()
    fine = seen(model, 11, [2.0, 0.5])
    fine = fine._replace(mask_BT=torch.arange(11) < torch.tensor([[11], [7]]))
    with torch.no_grad():
        close(model(clips(8), fine), by_hand(model, clips(8), fine, mixing))


@pytest.mark.parametrize("divisor", [8, 32])
def test_both_ways_of_training_are_one_network(divisor):
    whole = tiny(divisor=divisor).eval()
    second = tiny(own_fine=False, divisor=divisor, seed=1).eval()
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("fine.")}
    second.load_state_dict(state)
    stored = seen(whole, 8, [0.0, 0.0], seed=0)
    with torch.no_grad():
        for call in ("forward", "classify", "features"):
            own, given = getattr(whole, call)(clips()), getattr(second, call)(clips(), stored)
            torch.testing.assert_close(own, given)


def test_what_is_given_counts_and_not_the_own_stream():
    model = tiny().eval()
    with torch.no_grad():
        first = model(clips(), seen(model, 20, [2.0, 3.0]))
        moved = model(clips(), seen(model, 20, [9.0, 3.0]))
        other = model(clips(), seen(model, 20, [2.0, 3.0], seed=5))
    assert not torch.allclose(first[0], moved[0]) and torch.equal(first[1], moved[1])
    assert not torch.allclose(first, other) and not torch.allclose(first, model(clips()))


@pytest.mark.parametrize("padding", ["exact", "released"])
def test_padding_of_stored_features(padding):
    """It changes nothing, but in the released form where a clip goes on in the padding."""
    model = tiny(own_fine=False, padding=padding).eval()
    short = seen(tiny(), 7, [-1.0, 2.0])
    levels = {k: F.pad(maps, (0, 0, 0, 0, 0, 5), value=7.0) for k, maps in short.levels.items()}
    padded = FineFeatures(levels, F.pad(short.mask_BT, (0, 5)), short.start_B)
    with torch.no_grad():
        one, other = model(clips(), short), model(clips(), padded)
    equal = [torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(one, other, strict=True)]
    assert equal == [True, padding == "exact"]


def test_without_fine_stream_and_features_there_is_an_error():
    with pytest.raises(ValueError, match=r"no fine stream.*model\(clips, fine\).*own_fine=True"):
        tiny(own_fine=False)(clips())


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_any_length_trains(frames):
    model = tiny()
    logits = model(clips(frames))
    assert logits.shape == (2, 5, frames)
    logits.square().mean().backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())


def test_gradients_reach_the_fine_stream_and_the_grid():
    model = tiny()
    model(clips()).square().mean().backward()
    for part in (model.fine.blocks[0], model.grid_pool, model.fusion):
        assert all(p.grad.abs().max() > 0 for p in part.parameters() if p.ndim > 1)
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    head = ("fine.blocks.4.pool.post_conv.weight", "fine.blocks.4.proj.weight")
    assert frozen == {*head, "fine.blocks.4.proj.bias"}


def test_other_precisions():
    model, fine = tiny().eval(), seen(tiny(), 9, [1.0, 0.0])
    with torch.no_grad():
        expected = model(clips(), fine)
        for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
            with torch.autocast("cpu", dtype):
                close(model(clips(), fine).float(), expected, tolerance)


def test_contract():
    model = tiny(backbone_options={"norm_splits": 2})
    assert model.takes == "clips" and model.temporal_context is None and len(model.layers) == 1
    assert {id(p) for p in model.fusion.parameters()} == {
        id(p) for k, p in model.named_parameters() if ".rw" in k or ".mix" in k
    }
    groups = [*model.head_parameters(), *model.backbone_parameters()]
    assert len({id(p) for p in groups}) == len(groups) == len(list(model.parameters()))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, SubBatchNorm3d) and norm.splits == 2 for norm in norms)
    set_splits(model, 1)
    assert {norm.splits for norm in norms} == {1}
    model.reset_classifier(9, torch.Generator().manual_seed(0))
    assert model(clips(4)).shape == (2, 9, 4) and model.classify(clips(4)).shape == (2, 9)
    assert model.features(clips(5)).shape == (2, 144, 5)


def test_fresh_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    one = tiny().state_dict()
    torch.manual_seed(2)
    other, third = tiny().state_dict(), tiny(seed=3).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["fusion.rw2.fc1.weight"], third["fusion.rw2.fc1.weight"])


def test_faster_parts_give_the_same_scores():
    model = tiny().eval()
    with torch.no_grad():
        expected = model(clips())
        close(accelerate(model)(clips()), expected)
