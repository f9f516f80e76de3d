"""PDAN against the published networks, and its formula."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssdet.evaluation.cost import parameters
from ssdet.models import create, load_weights
from ssdet.models.networks.pdan import DilatedAttention

SMALL = {"in_features": 24, "width": 16, "layers": 3, "stages": 2}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scored(model, features, lengths):
    with torch.no_grad():
        return model.eval()(features, torch.tensor(lengths))


def seeded(seed=1, **options):
    return create("pdan", 7, generator=torch.Generator().manual_seed(seed), **SMALL, **options)


def close(ours, theirs, relative):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * theirs.abs().max().item())


@pytest.fixture(scope="module")
def reference(golden):
    file = golden("pdan_small")
    return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="module")
def loaded(reference):
    model = seeded()
    state = {k.removeprefix("w/"): v for k, v in reference.items() if k.startswith("w/")}
    report = load_weights(model, state)
    assert report.layout == "pdan" and not report.skipped
    assert sorted(report.loaded) == sorted(model.state_dict())
    return model.eval()


def test_every_stage_is_the_published_one(reference, loaded):
    lengths = reference["mask"][:, 0].sum(1)
    with torch.no_grad():
        found = loaded.stage_logits(reference["x"], lengths)
        assert torch.equal(found[-1], loaded(reference["x"], lengths))
    for ours, theirs in zip(found, reference["logits"], strict=True):
        close(ours, theirs, 1e-5)
    assert not found[-1][1, :, 13:].any()


def test_attention_is_the_published_one(reference, loaded):
    attention = loaded.stage1.layers[1].conv_attention
    assert attention.dilation == 2
    close(attention(reference["dal_x"]), reference["dal_y"], 1e-5)


def test_attention_is_that_of_the_formula():
    torch.manual_seed(0)
    attention, x, d = DilatedAttention(3, dilation=4).double(), drawn(1, 3, 6).double(), 4
    with torch.no_grad():
        q, k, v = (
            conv.weight[:, :, 0] @ x[0]
            for conv in (attention.query_conv, attention.key_conv, attention.value_conv)
        )
        found = attention(x)[0]
    for c in range(3):
        for t in range(6):
            places = [t + (i - 1) * d for i in range(3)]
            seen = [(k[c, p], v[c, p]) if 0 <= p < 6 else (0 * k[c, 0],) * 2 for p in places]
            weights = torch.stack([q[c, t] * key for key, _ in seen]).exp()
            values = [value + attention.rel_t[c, 0, i] for i, (_, value) in enumerate(seen)]
            expected = sum(w * u for w, u in zip(weights / weights.sum(), values, strict=True))
            assert found[c, t].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("classes", "width", "size"),
    [(157, 1024, 5_858_461), (65, 1024, 5_811_265), (157, 432, 5_555_357), (157, 2048, 6_382_749)],
)
def test_size_is_the_published_one(classes, width, size):
    with torch.device("meta"):
        assert parameters(create("pdan", classes, in_features=width)) == size


def test_work_is_the_published_one_less_that_on_padding():
    """The published code pads by the dilation on both sides before the layers of key and value."""
    with torch.device("meta"):
        model = create("pdan", 157, in_features=1024).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 1024, 256), torch.empty(1))
    on_padding = 2 * 512 * 512 * 2 * (1 + 2 + 4 + 8 + 16)
    assert (counter.get_total_flops() / 2 + on_padding) / 1e9 == pytest.approx(1.53, abs=0.005)


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
def test_exact_padding_changes_no_step_that_exists(padding):
    model = seeded(padding="exact")
    alone = scored(model, drawn(1, 24, 7), [7])
    batch = torch.full((2, 24, 12), padding)
    batch[0, :, :7], batch[1] = drawn(1, 24, 7)[0], drawn(24, 12, seed=3)
    together = scored(model, batch, [7, 12])
    torch.testing.assert_close(together[:1, :, :7], alone, rtol=1e-5, atol=1e-5)


def test_released_padding_does_change_a_little():
    model = seeded()
    features = drawn(1, 24, 20)
    padded = torch.nn.functional.pad(features, (0, 6))
    change = (scored(model, padded, [20])[..., :20] - scored(model, features, [20])).abs()
    # The first block of each stage looks one step ahead, later ones two and four: 1 of the first
    # stage is seen through 2 + 4 there and 1 + 2 + 4 in the second.
    assert change[..., :6].max() < 1e-5 < change[..., 6:].max()


def test_an_unknown_word_for_padding_is_refused():
    with pytest.raises(ValueError, match="padding='no': choose from released, exact"):
        create("pdan", 7, padding="no")


def test_names_load_as_the_published_ones():
    source, model = seeded(1), seeded(2)
    report = load_weights(model, {f"module.{k}": v for k, v in source.state_dict().items()})
    assert report.layout == "pdan" and not report.skipped
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
