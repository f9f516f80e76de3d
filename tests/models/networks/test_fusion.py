import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssdet.models.networks.fusion import Fusion, Modulation, Reweight, alignment, replicated
from ssdet.models.networks.pyramid import FineFeatures


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def loaded(golden, name):
    data = golden(name)
    return {key: torch.from_numpy(data[key]) for key in data.files}


def test_alignment_equals_the_reference(golden):
    data = loaded(golden, "cf_gaussian")
    start = data["meta"][:, :1]
    centres = data["gx"] * data["tl"] + start
    close(alignment(centres, data["mask"]), data["G_grid"])
    close(alignment(torch.arange(4.0) + start, data["mask"]), data["G_plain"])


def test_alignment_width_is_a_share_of_the_existing_steps():
    mask = torch.arange(40) < torch.tensor([[32], [16]])
    aligned = alignment(torch.tensor([[10.0], [10.0]]), mask, divisor=16)
    for row, deviation in zip(aligned[..., 0], (2.0, 1.0), strict=True):
        expected = torch.exp(-((torch.arange(40) - 10) ** 2) / (2 * deviation**2))
        torch.testing.assert_close(row, expected)


def test_reweight_equals_the_reference(golden):
    data = loaded(golden, "cf_reweight")
    level = Reweight(6, 8)
    level.load_state_dict({k[2:]: v for k, v in data.items() if k.startswith("w/")})
    scale, shift = level(data["feat"], data["mask"], data["G"])
    close(shift, data["bias"])
    close(scale, data["scale_mixing"])
    close(scale.sigmoid(), data["scale_plain"])
    close(replicated(shift, data["bias_h14"]), data["bias_h14"])


def materialised(level, maps, mask, aligned, size):
    """MODELS.md 5.4 as it stands: maps brought to size x size first, both times multiplied out."""

    def layer(name, x):
        conv = getattr(level, name)
        return torch.einsum("oi,bi...->bo...", conv.weight[..., 0], x) + conv.bias.view(
            -1, *[1] * (x.ndim - 2)
        )

    batch, depth, steps = maps.shape[:3]
    if mask.shape[1] != steps:
        mask = F.adaptive_max_pool1d(mask[:, None], steps)[:, 0]
        aligned = F.adaptive_avg_pool2d(aligned[:, None], (steps, aligned.shape[2]))[:, 0]
    x = F.adaptive_max_pool2d(maps.flatten(1, 2), size).view(batch, depth, steps, size, size)
    attention = layer("at2", layer("at1", x).relu()).sigmoid()
    weight = attention[:, :, :, None] * aligned[:, None, :, :, None, None]
    mask = mask[:, None, :, None, None, None]
    weight = weight * mask / ((weight * mask).sum(2, keepdim=True) + 1e-6)
    mean = (x[:, :, :, None] * weight).sum(2)
    shift = layer("fc2", layer("fc1", mean).relu())
    return Modulation(layer("fc4", layer("fc3", mean).relu()), shift)


@pytest.mark.parametrize("steps", [9, 5])
def test_what_is_done_at_the_maps_size_is_what_large_maps_give(steps):
    level = Reweight(5, 6)
    maps = rand(2, 5, steps, 3, 3)
    mask = (torch.arange(9) < torch.tensor([[9], [6]])).float()
    aligned = alignment(torch.tensor([[0.0, 3.0, 7.5], [1.0, 2.0, 9.0]]), mask)
    x = rand(2, 6, 3, 12, 12, seed=1)
    slow = materialised(level, maps, mask, aligned, 12)
    close(level(maps, mask, aligned).apply(x), x * slow.scale + slow.shift)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


def test_both_times_are_never_multiplied_out():
    level, maps = Reweight(8, 8), rand(1, 8, 40, 3, 3).requires_grad_()
    aligned = alignment(torch.arange(0.0, 40, 2)[None], torch.ones(1, 40))
    with Largest() as largest:
        scale, shift = level(maps, torch.ones(1, 40), aligned)
        (scale.sum() + shift.sum()).backward()
    assert largest.elements == maps.numel()


def test_steps_that_do_not_exist_do_not_count():
    level, maps = Reweight(4, 4), rand(1, 4, 8, 3, 3)
    mask = torch.arange(8)[None] < 5
    aligned = alignment(torch.tensor([[0.0, 4.0]]), mask)
    changed = maps.clone()
    changed[:, :, 5:] = 100.0
    for one, other in zip(level(maps, mask, aligned), level(changed, mask, aligned), strict=True):
        assert torch.equal(one, other)
    cut = level(maps[:, :, :5], mask[:, :5], aligned[:, :5])
    torch.testing.assert_close(level(maps, mask, aligned), cut)


def test_a_clip_far_beyond_the_features_gets_finite_values_and_gradients():
    level, maps = Reweight(4, 4), rand(1, 4, 8, 3, 3).requires_grad_()
    centres = torch.tensor([[900.0]], requires_grad=True)
    for mask in (torch.ones(1, 8), torch.zeros(1, 8)):
        scale, shift = level(maps, mask, alignment(centres, mask))
        (scale.sum() + shift.sum()).backward()
        assert scale.isfinite().all() and shift.isfinite().all()
    assert maps.grad.isfinite().all() and centres.grad.isfinite().all()


def fine(widths, depth, steps=6, dtype=torch.float32):
    levels = {f"layer{i}": rand(2, w, steps, 3, 3, seed=i) for i, w in enumerate(widths, 1)}
    levels["conv5"] = rand(2, depth, steps, 3, 3, seed=9)
    levels = {name: maps.to(dtype) for name, maps in levels.items()}
    return FineFeatures(levels, torch.ones(2, steps, dtype=torch.bool), torch.zeros(2))


def test_mixing_shares_levels_and_the_alternative_does_not():
    centres = torch.tensor([[0.0, 4.0]] * 2)
    for mixing in (True, False):
        fusion = Fusion([4, 6], 8, 5, mixing=mixing).eval()
        before = fusion(fine([4, 6], 8), centres)
        features = fine([4, 6], 8)
        features.levels["layer2"].mul_(2)
        after = fusion(features, centres)
        changed = [not torch.equal(a.shift, b.shift) for a, b in zip(before, after, strict=True)]
        assert changed == [mixing, True, False]
        assert [m.shift.shape[1] for m in after] == [4, 6, 5]
        assert all(((m.scale > 0) & (m.scale < 1)).all() for m in after)
        assert before[-1].shift.shape == (2, 5, 2)


def test_mixing_is_a_projection_of_all_levels():
    fusion, features = Fusion([4, 6], 8, 5).eval(), fine([4, 6], 8)
    centres = torch.tensor([[1.0]] * 2)
    aligned = alignment(centres, features.mask_BT)
    levels = [
        getattr(fusion, name)(features.levels[key], features.mask_BT, aligned)
        for name, key in (("rw2", "layer1"), ("rw3", "layer2"))
    ]
    second = fusion(features, centres)[1]
    for conv, part, found in (
        (fusion.mix3.conv_at, "shift", second.shift),
        (fusion.mix3.conv_at2, "scale", second.scale.logit()),
    ):
        both = torch.cat([getattr(level, part) for level in levels], 1)
        by_hand = torch.einsum("oi,bi...->bo...", conv.weight[..., 0], both)
        close(found, by_hand + conv.bias[:, None, None, None], 1e-4)


def test_half_precision_features_are_read_as_they_are():
    fusion, centres = Fusion([4, 6], 8, 5).eval(), torch.tensor([[1.0]] * 2)
    half = fine([4, 6], 8, dtype=torch.float16)
    full = half._replace(levels={name: maps.float() for name, maps in half.levels.items()})
    for one, other in zip(fusion(half, centres), fusion(full, centres), strict=True):
        assert torch.equal(one.shift, other.shift)


def test_missing_levels_are_named():
    features = fine([4], 8)
    with pytest.raises(ValueError, match="layer1, conv5: layer2 missing: take them from"):
        Fusion([4, 6], 8, 5)(features, torch.zeros(2, 1))


def test_exact_padding_is_no_padding():
    centres = torch.tensor([[2.0, 7.0]])
    mask = torch.arange(9)[None] < 5
    cut = alignment(centres, mask[:, :5])
    torch.testing.assert_close(alignment(centres, mask, padding="exact")[:, :5], cut)
    assert not torch.allclose(alignment(centres, mask)[:, :5], cut)
    with pytest.raises(ValueError, match="padding='zero': choose from released, exact"):
        Fusion([4], 8, 5, padding="zero")
