import pytest
import torch
from torch.nn import functional as F

from ssdet.evaluation.cost import conv_macs, parameters
from ssdet.models import accelerate, create, load_weights, set_splits
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.pyramid import FineFeatures, pyramid
from ssdet.models.networks.slowfast import Lateral

TINY = {"backbone": "x3d_tiny", "grid": 3}
KINDS = {
    "lateral": {},
    "concat": {"head": "concat"},
    "input": {"stride_at": "input"},
    "pooled": {"pooled": True},
    "coarse_fine": {"fusion": "coarse_fine"},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def tiny(kind="lateral", classes=5, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return create(
        "slowfast_det", classes, generator=generator, **{**TINY, **KINDS[kind], **options}
    )


def clips(frames=8, batch=2, seed=0):
    return torch.randn(batch, 3, frames, 24, 24, generator=torch.Generator().manual_seed(seed))


def shaken(model, seed=5):
    """With laterals that are no longer those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for lateral in model.lateral:
        weight = lateral.project.weight.data
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def stored(model, frames=8, start=(0.0, 0.0), seed=0):
    with torch.no_grad():
        levels = pyramid(model.fine, clips(frames, seed=seed), 3)
    return FineFeatures(levels, torch.ones(2, frames, dtype=torch.bool), torch.tensor(start))


def test_size_at_paper_size():
    """MODELS.md 6: the streams' and the laterals', and their projections, which it does not count
    (3C x C for every position of the slow maps)."""
    shape, sides = (1, 3, 64, 224, 224), ((24, 56), (48, 28), (96, 14), (192, 7))
    with torch.device("meta"):
        model = create("slowfast_det", 157)
        fast, slow = create("fast", 157), create("slow", 157)
        projections = sum(3 * c * c * 16 * side**2 for c, side in sides)
        laterals = sum(5 * c * 2 * c * 16 * side**2 for c, side in sides)
        assert laterals == pytest.approx(4 * 0.29e9, rel=0.01)
        streams = conv_macs(fast, shape) + conv_macs(slow, shape)
        assert streams == pytest.approx(18.98e9 + 3.95e9 + 3.74e9 + 0.015e9, abs=2e7)
        assert conv_macs(model, shape) == streams + laterals + projections
        between = sum(5 * c * 2 * c + 4 * c + 3 * c * c for c, _ in sides)
        assert parameters(model) == 2 * parameters(fast) + between


@pytest.mark.parametrize("kind", ["lateral", "input", "pooled"])
def test_a_fresh_network_adds_up_its_streams(kind):
    model = tiny(kind).eval()
    slow = create("slow", 5, backbone="x3d_tiny", stride_at=model.stride_at).eval()
    fast = create("x3d_tiny", 5).eval()
    load_weights(model, slow.state_dict())
    load_weights(model.fine, fast.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(clips(9)), slow(clips(9)) + fast(clips(9)))
        both = slow.classify(clips(9)) + fast.classify(clips(9))
        torch.testing.assert_close(model.classify(clips(9)), both)
        both = torch.cat([slow.features(clips(9)), fast.features(clips(9))], 1)
        torch.testing.assert_close(model.features(clips(9)), both)


def test_lateral_is_a_strided_convolution_beside_the_slow_maps():
    lateral = Lateral(3, 1).eval()
    generator = torch.Generator().manual_seed(0)
    lateral.project.weight.data.normal_(generator=generator)
    slow, fast = (torch.randn(2, 3, t, 6, 6, generator=generator) for t in (3, 9))
    padded = F.pad(fast, (0, 0, 0, 0, 2, 2))
    weight = lateral.conv.weight[..., 0, 0]
    side = torch.stack(
        [
            torch.einsum("oit,bithw->bohw", weight, padded[:, :, 4 * s : 4 * s + 5])
            for s in range(3)
        ],
        2,
    )
    side = (side / (1 + 1e-5) ** 0.5).relu()
    expected = torch.einsum(
        "oi,bithw->bothw", lateral.project.weight[..., 0, 0, 0], torch.cat([slow, side], 1)
    )
    torch.testing.assert_close(lateral(slow, fast), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_small_maps_are_as_good_as_their_replicas(train):
    lateral, generator = Lateral(4, 1).train(train), torch.Generator().manual_seed(1)
    lateral.project.weight.data.normal_(generator=generator)
    slow = torch.randn(2, 4, 2, 6, 6, generator=generator)
    fast = torch.randn(2, 4, 8, 3, 3, generator=generator)
    large = fast.repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(lateral(slow, fast), lateral(slow, large), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["pooled", "coarse_fine", "concat"])
def test_both_ways_of_training_are_one_network(kind):
    whole = shaken(tiny(kind, pooled=True))
    second = tiny(kind, own_fine=False, seed=1).eval()
    state = second.state_dict()
    state = {name: value for name, value in whole.state_dict().items() if name in state}
    second.load_state_dict(state)
    with torch.no_grad():
        for call in ("forward", "classify", "features"):
            own = getattr(whole, call)(clips())
            torch.testing.assert_close(getattr(second, call)(clips(), stored(whole)), own)


def test_full_maps_matter():
    model, other = shaken(tiny()), shaken(tiny("pooled"))
    with torch.no_grad():
        assert not torch.allclose(model(clips()), other(clips()), rtol=1e-4)


@EVERY
def test_without_fine_stream_and_features_there_is_an_error(kind):
    with pytest.raises(ValueError, match=r"no fine stream.*model\(clips, fine\).*own_fine=True"):
        tiny(kind, own_fine=False)(clips())


def test_features_of_the_clips_own_frames_are_read():
    model = shaken(tiny(own_fine=False))
    whole = stored(tiny(), 20, (3.0, 10.4))
    rows = [slice(3, 11), slice(10, 18)]
    levels = {
        name: torch.stack([maps[i, :, row] for i, row in enumerate(rows)])
        for name, maps in whole.levels.items()
    }
    alone = FineFeatures(levels, torch.ones(2, 8, dtype=torch.bool), torch.zeros(2))
    with torch.no_grad():
        torch.testing.assert_close(model(clips(), whole), model(clips(), alone))


def test_frames_without_features_count_as_zeros():
    model = shaken(tiny(own_fine=False))
    short = stored(tiny(), 9, (4.0, 0.0))
    short = short._replace(mask_BT=torch.arange(9) < torch.tensor([[9], [3]]))
    levels = {
        name: maps.new_zeros(2, maps.shape[1], 8, 3, 3) for name, maps in short.levels.items()
    }
    for name, maps in short.levels.items():
        levels[name][0, :, :5] = maps[0, :, 4:]
        levels[name][1, :, :3] = maps[1, :, :3]
    padded = FineFeatures(levels, torch.ones(2, 8, dtype=torch.bool), torch.zeros(2))
    with torch.no_grad():
        torch.testing.assert_close(model(clips(), short), model(clips(), padded))


def test_modulation_is_centred_at_every_fourth_frame():
    model, seen = tiny("coarse_fine").eval(), []
    model.fusion.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model(clips(10), stored(model, 20, (3.0, 5.5)))
    expected = torch.tensor([[0.0, 4.0, 8.0]]) + torch.tensor([[3.0], [5.5]])
    assert torch.equal(seen[0], expected)


@EVERY
@pytest.mark.parametrize("frames", [1, 3, 5, 8])
def test_any_length_trains(kind, frames):
    model = tiny(kind)
    logits = model(clips(frames))
    assert logits.shape == (2, 5, frames)
    logits.square().mean().backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) == (3 if kind == "concat" else 0)
    assert model.classify(clips(frames)).shape == (2, 5)
    assert model.features(clips(frames)).shape == (2, 288, frames)


@EVERY
def test_weights_of_both_streams_load_where_they_belong(kind):
    for own_fine in (True, False):
        model = tiny(kind, own_fine=own_fine)
        slow, fast = (create("x3d_tiny", 5).state_dict() for _ in range(2))
        report = load_weights(model, slow)
        wider = ["blocks.4.pool.post_conv.weight"] if kind == "concat" else []
        assert report.skipped == wider
        between = ("lateral.", "fusion.", "fine.", *wider)
        assert all(name.startswith(between) for name in report.reinitialised)
        if own_fine or kind != "concat":
            report = load_weights(model.fine, fast)
            assert not report.reinitialised and bool(report.skipped) != own_fine
            state = model.fine.state_dict()
            assert all(torch.equal(value, fast[name]) for name, value in state.items())


@EVERY
def test_contract(kind):
    model = tiny(kind, backbone_options={"norm_splits": 2})
    assert model.takes == "clips" and model.temporal_context is None
    between = [k for k, _ in model.named_parameters() if k.startswith(("lateral.", "fusion."))]
    assert between
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, SubBatchNorm3d) and norm.splits == 2 for norm in norms)
    set_splits(model, 1)
    assert {norm.splits for norm in norms} == {1}
    model.reset_classifier(9, torch.Generator().manual_seed(0))
    assert model(clips(4)).shape == (2, 9, 4) and model.classify(clips(4)).shape == (2, 9)


def test_faster_parts_and_half_precision_give_the_same_scores():
    model = shaken(tiny("pooled"))
    with torch.no_grad():
        expected = model(clips())
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                found = model(clips()).float()
            torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * expected.abs().max())
        torch.testing.assert_close(accelerate(model)(clips()), expected, rtol=1e-3, atol=1e-3)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="head='mean': choose from sum, concat"):
        tiny(head="mean")
    with pytest.raises(ValueError, match="fusion='late': choose from lateral, coarse_fine"):
        tiny(fusion="late")
    with pytest.raises(ValueError, match='head="concat" has none: use head="sum"'):
        tiny("coarse_fine", head="concat")
