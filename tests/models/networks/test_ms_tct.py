"""MS-TCT: the published numbers, sizes and names, and what padding may and may not change."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssdet.evaluation.cost import parameters
from ssdet.models import create, load_weights

small = partial(
    create, "ms_tct", in_features=20, dims=(16, 24, 32, 48), blocks=2, heads=4, mlp_ratio=2,
    final=12,
)  # fmt: skip


def state(arrays) -> dict[str, Tensor]:
    return {k[2:]: torch.from_numpy(arrays[k]) for k in arrays if k.startswith("w/")}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.fixture
def published(golden) -> nn.Module:
    model = small(7).eval()
    report = load_weights(model, state(golden("mstct_small")))
    assert report.layout == "ms_tct" and not report.skipped and not report.reinitialised
    assert len(report.loaded) == len(model.state_dict())
    return model


def scores(model: nn.Module, features: Tensor, *lengths: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.with_heat_map(features, torch.tensor(lengths))


@pytest.mark.parametrize("odd", ["", "_odd"])
@pytest.mark.parametrize("padding", ["released", "exact"])
def test_scores_are_those_of_the_published_code(published, golden, odd, padding) -> None:
    expected = {name: torch.from_numpy(golden("mstct_small")[name + odd])
                for name in ("x", "logits", "heatmap")}  # fmt: skip
    model = small(7, padding=padding).eval()
    model.load_state_dict(published.state_dict())
    count, _, steps = expected["x"].shape
    logits, heat = scores(model, expected["x"], *[steps] * count)
    assert close(logits, expected["logits"].transpose(1, 2)) and close(heat, expected["heatmap"])
    with torch.no_grad():
        assert torch.equal(model(expected["x"], torch.tensor([steps] * count)), logits)


def test_each_part_gives_what_the_published_one_does(published, golden) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in golden("mstct_small").items()}
    x, levels = arrays["x"], []
    with torch.no_grad():
        for stage in published.stages:
            x = stage(x, None)
            levels.append(x)
        found = published.mixer(levels)
    assert [level.shape[2] for level in levels] == [32, 16, 8, 4]
    assert all(close(level, arrays[f"f{i}"]) for i, level in enumerate(levels, 1))
    assert close(found[0], arrays["concat"]) and close(found[1], arrays["concat_hm"])


@pytest.mark.parametrize(("classes", "size"), [(157, 87_503_930), (65, 87_409_538)])
def test_sizes_are_the_specified_ones(classes: int, size: int) -> None:
    with torch.device("meta"):
        model = create("ms_tct", classes, in_features=1024)
    assert parameters(model) == size
    if classes == 157:
        assert parameters(model.stages) == 81_029_888 and parameters(model.mixer) == 2_117_632
        rest = parameters(model.fuse) + parameters(model.spread) + parameters(model.classes)
        assert rest == 4_356_410


def test_work_is_the_specified_one() -> None:
    """6.76 G at 256 steps: heat map, attention and, as fvcore counts, 5 for each normalised value
    are part of it."""
    normalised = 0

    def count(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        nonlocal normalised
        normalised += out.numel()

    with torch.device("meta"), torch.no_grad():
        model = create("ms_tct", 157, in_features=1024).eval()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(count)
        with FlopCounterMode(display=False) as counter:
            model.with_heat_map(torch.empty(1, 1024, 256), torch.tensor([256]))
    macs = counter.get_total_flops() / 2
    assert round(macs / 1e9, 2) == 6.75
    assert round((macs + 5 * normalised) / 1e9, 2) == 6.76


LENGTHS = (29, 1, 2, 13, 16, 27)


def test_exact_padding_changes_no_step() -> None:
    model = small(5, padding="exact", generator=torch.Generator().manual_seed(0)).eval()
    alone = small(5).eval()
    alone.load_state_dict(model.state_dict())
    x = torch.randn(len(LENGTHS), 20, 40, generator=torch.Generator().manual_seed(1)) * 3
    found = scores(model, x, *LENGTHS)
    for place, length in enumerate(LENGTHS):
        expected = scores(alone, x[place : place + 1, :, :length], length)
        for mine, other in zip(found, expected, strict=True):
            assert close(mine[place, :, :length], other[0], 1e-4)


def test_exact_padding_is_not_looked_at() -> None:
    model = small(5, padding="exact").eval()
    x = torch.randn(2, 20, 24, requires_grad=True)
    logits, heat = model.with_heat_map(x, torch.tensor([24, 11]))
    (logits[1, :, :11].square().sum() + heat[1, :, :11].square().sum()).backward()
    assert x.grad[1, :, :11].abs().sum(0).min() > 0
    assert not x.grad[1, :, 11:].any() and not x.grad[0].any()


def test_released_padding_is_taken_for_features() -> None:
    model = small(5, generator=torch.Generator().manual_seed(0)).eval()
    x = torch.randn(1, 20, 24, generator=torch.Generator().manual_seed(1))
    x[:, :, 16:] = 0
    whole = scores(model, x, 24)
    assert all(torch.equal(a, b) for a, b in zip(whole, scores(model, x, 16), strict=True))
    assert not close(whole[0][:, :, :16], scores(model, x[:, :, :16], 16)[0], 1e-3)


@pytest.mark.parametrize("padding", ["released", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_trains_at_any_length_and_precision(padding, dtype, steps) -> None:
    model = small(3, padding=padding)
    x = torch.randn(2, 20, steps)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        logits, heat = model.with_heat_map(x, torch.tensor([steps, max(1, steps - 3)]))
    assert logits.shape == heat.shape == (2, 3, steps)
    (logits.float().square().sum() + heat.float().square().sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    idle = {name for name, gradient in gradients.items() if gradient is None}
    assert idle == {"mixer.cross.3.weight", "mixer.cross.3.bias"}
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


def test_dropout_is_all_that_is_drawn() -> None:
    model = small(3, dropout=0.0)
    x, lengths = torch.randn(2, 20, 9), torch.tensor([9, 9])
    assert torch.equal(model(x, lengths), model.eval()(x, lengths))
    model = small(3)
    assert not torch.equal(model(x, lengths), model(x, lengths))


def test_fresh_weights_are_spread_as_specified() -> None:
    model = create("ms_tct", 5, in_features=32, dims=(64, 64, 128, 128), blocks=1, final=64,
                   generator=torch.Generator().manual_seed(0))  # fmt: skip
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Linear | nn.Conv1d):
            linear = isinstance(module, nn.Linear)
            # A depthwise convolution of 3 feeds 3 values with each; others 3 in every channel.
            fed = 1 if linear else module.kernel_size[0] * module.out_channels / module.groups
            expected = 0.02 if linear else (2 / fed) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name
            assert not module.bias.any()


def test_another_number_of_classes_leaves_the_classifier_fresh(golden) -> None:
    weights = state(golden("mstct_small"))
    model = small(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, {f"module.{k}": v for k, v in weights.items()}, layout="ms_tct")
    differing = {name for name in before if name.startswith(model.classifier)}
    assert set(report.reinitialised) == differing and len(differing) == 4
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert not changed & differing
    unused = weights["Temporal_Mixer.linear4.weight"]
    assert torch.equal(model.mixer.cross[3].weight, unused)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(16, 24, 32\): expected 4 multiples of heads=4"):
        small(3, dims=(16, 24, 32))
    with pytest.raises(ValueError, match="expected 4 multiples of heads=4"):
        small(3, dims=(16, 24, 32, 50))
    with pytest.raises(ValueError, match="padding='masked'"):
        small(3, padding="masked")
