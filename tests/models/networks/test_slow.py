import numpy as np
import pytest
import torch

from ssdet.evaluation.cost import conv_macs, parameters
from ssdet.models import accelerate, available, create, load_weights, set_splits
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.models.networks.x3d import X3D

PUBLISHED = {"backbone_options": {"shortcut_norm": True}}


def tiny(name="slow", classes=5, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return create(name, classes, generator=generator, backbone="x3d_tiny", **options)


def clips(frames=8, batch=2, seed=0):
    return torch.randn(batch, 3, frames, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "more"), [("fast", 0), ("slow", 0), ("coarse", 31_465)])
def test_parameter_counts(name, more):
    with torch.device("meta"):
        assert parameters(create(name, 157, **PUBLISHED)) == 3_296_415 + more


def test_multiply_adds_at_paper_size():
    """MODELS.md 5.5 and 6; 0.015 G are the head's."""
    shape = (1, 3, 64, 224, 224)
    with torch.device("meta"):
        slow, coarse, fast = (create(name, 157) for name in ("slow", "coarse", "fast"))
    stem, pooled = conv_macs(slow, shape, "first_stage"), conv_macs(coarse, shape, "first_stage")
    assert stem == pytest.approx(3.95e9, abs=5e6)
    assert pooled - stem == pytest.approx(0.44e9, abs=5e6)
    assert conv_macs(coarse, shape) - pooled == pytest.approx(3.98e9 + 0.015e9, abs=5e6)
    assert conv_macs(slow, shape) - stem == pytest.approx(3.74e9 + 0.015e9, abs=5e6)
    assert conv_macs(fast, shape) == pytest.approx(18.98e9, abs=5e6)


@pytest.mark.parametrize("frames", [8, 10])
def test_striding_the_input_is_the_backbone_on_every_fourth_frame(frames):
    slow, fast = tiny(stride_at="input").eval(), tiny("fast").eval()
    fast.load_state_dict(slow.state_dict())
    x = clips(frames)
    with torch.no_grad():
        logits, few = slow(x), fast(x[:, :, ::4])
    # Without aligned corners a step lies in the middle of its four frames.
    middles = 4 * np.arange(few.shape[2]) + 1.5
    expected = np.apply_along_axis(lambda row: np.interp(np.arange(frames), middles, row), 2, few)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_steps_are_left_out_after_the_first_stage():
    model, seen = tiny().eval(), {}
    model.blocks[1].register_forward_hook(lambda m, x, y: seen.update(whole=y))
    model.blocks[2].register_forward_hook(lambda m, x, y: seen.update(few=x[0]))
    model(clips(10))
    assert torch.equal(seen["few"], seen["whole"][:, :, [0, 4, 8]])


@pytest.mark.parametrize("name", ["slow", "coarse", "fast"])
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
def test_any_length_gives_a_column_per_frame(name, frames):
    model = tiny(name)
    assert model(clips(frames)).shape == (2, 5, frames)
    assert model.features(clips(frames)).shape == (2, 144, frames)
    assert model.classify(clips(frames)).shape == (2, 5)


@pytest.mark.parametrize("name", ["slow", "coarse"])
def test_a_clip_of_one_picture_scores_the_same_everywhere(name):
    """All temporal windows see the same inside; only the zeros around a clip tell frames apart."""
    model = tiny(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] > 1:
            middle = torch.zeros_like(module.weight)
            centre = module.kernel_size[0] // 2
            middle[:, :, centre] = module.weight.data[:, :, centre]
            module.weight.data = middle
    logits = model(clips(1).expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(logits, logits[..., :1].expand_as(logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.classify(clips(1)), logits[..., 0], rtol=1e-4, atol=1e-4)


def test_classify_scores_mean_features():
    model = tiny().eval()
    with torch.no_grad():
        features = model.features(clips(4))[..., :1]
        expected = model.score(features).squeeze(2)
        torch.testing.assert_close(model.classify(clips(4)), expected)


@pytest.mark.parametrize("name", ["slow", "coarse"])
def test_weights_of_the_backbone_load_and_what_is_fresh_is_reported(name):
    source, model = create("x3d_tiny", 5).eval(), tiny(name)
    report = load_weights(model, source.state_dict())
    assert report.layout == "ssdet" and not report.skipped
    grid_pool = [k for k in model.state_dict() if k.startswith("grid_pool.")]
    assert report.reinitialised == sorted(grid_pool)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


def test_other_layouts_and_other_classes_load_too(tmp_path):
    plain = create("x3d_tiny", 7).state_dict()
    plain = {k: v for k, v in plain.items() if ".split_" not in k}
    torch.save({"model_state": plain}, tmp_path / "X3D.pyth")
    model = tiny("coarse")
    report = load_weights(model, tmp_path / "X3D.pyth")
    assert report.layout == "pytorchvideo"
    fresh = [k for k in report.reinitialised if ".split_" not in k]
    assert all(k.startswith(("grid_pool.", model.classifier)) for k in fresh) and fresh


def test_half_of_a_fresh_part_is_an_error():
    model = tiny("coarse")
    state = model.state_dict()
    del state["grid_pool.conv2.weight"]
    with pytest.raises(ValueError, match=r"missing, such as grid_pool\.conv2\.weight"):
        load_weights(model, state)


def test_normalisation_is_in_sub_batches_everywhere():
    model = tiny("coarse", backbone_options={"norm_splits": 2})
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, SubBatchNorm3d) and norm.splits == 2 for norm in norms)
    set_splits(model, 4)
    assert {norm.splits for norm in norms} == {4}
    assert model(clips(4, batch=4)).shape == (4, 5, 4)


def test_faster_parts_give_the_same_scores_and_gradients():
    results = []
    for change in (lambda m: m, accelerate):
        model = change(tiny("coarse", backbone_options={"dropout": 0.0}))
        logits = model(clips(9))
        logits.square().mean().backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    (one, grads), (other, others) = results
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for mine, its in zip(grads, others, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-3 * mine.abs().max().item() + 1e-6)


def test_contract():
    for name in ("slow", "coarse", "fast"):
        model = tiny(name)
        assert isinstance(model, X3D) and model.takes == "clips"
        model.reset_classifier(9)
        assert model(clips(4)).shape == (2, 9, 4)
        assert model.temporal_context is None
    assert [len(tiny(name).layers) for name in ("fast", "slow", "coarse")] == [3, 1, 1]
    assert tiny(stride_at="input").layers == []
    assert {"slow", "fast", "coarse"} <= set(available())


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="backbone='slow' is no X3D: choose from .*x3d_tiny"):
        create("coarse", 5, backbone="slow")
    with pytest.raises(ValueError, match="stride_at='stem': choose from layer1, input"):
        tiny(stride_at="stem")
