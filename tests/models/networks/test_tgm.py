"""TGM against the published layers and whole models, and its formula."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssdet.evaluation.cost import parameters
from ssdet.models import create, load_weights
from ssdet.models.networks.tgm import TGMLayer

MODELS = ("tgm", "tgm_super_events")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scored(model, features, lengths):
    with torch.no_grad():
        return model.eval()(features, torch.tensor(lengths))


def seeded(name, classes=5, seed=1, **options):
    options = {"in_features": 6, "hidden": 16, **options}
    return create(name, classes, generator=torch.Generator().manual_seed(seed), **options)


def close(ours, theirs, relative):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * theirs.abs().max().item())


def group(file, prefix):
    return {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file if k.startswith(prefix)}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("length", [4, 5, 9])
@pytest.mark.parametrize(
    ("kind", "c_in", "c_out", "combine"),
    [("c1", 1, 4, "conv"), ("c4", 4, 4, "conv"), ("c4soft", 4, 3, "soft_released")],
)
def test_layers_are_the_published_ones(golden, kind, c_in, c_out, combine, length):
    data = group(golden("tgm_layers"), f"{kind}L{length}/")
    layer = TGMLayer(16, length, c_in, c_out, "cauchy", combine)
    weights = {k.removeprefix("w/"): v for k, v in data.items() if k.startswith("w/")}
    layer.load_state_dict(weights)
    x = data["x"] if c_in > 1 else data["x"][:, None]
    close(layer(x), data["y"], 1e-5)


def test_soft_attention_adds_up_input_channels():
    layer = TGMLayer(3, 5, 4, 2, combine="soft")
    x, kernels = drawn(1, 4, 2, 7), layer.kernels()
    attention = layer.cls_attn.detach()[0, :, :, 0, 0].exp()
    attention = attention / attention.sum(1, keepdim=True)
    expected = torch.zeros(1, 2, 2, 7)
    for out in range(2):
        for c in range(4):
            seen = F.conv1d(
                x[:, c].flatten()[None].view(2, 1, 7), kernels[out, c].view(1, 1, 5), padding=2
            )
            expected[0, out] += attention[out, c] * seen[:, 0].detach()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_gaussian_kernels_are_those_of_the_paper():
    layer = TGMLayer(mixtures=2, length=5, c_out=1)
    with torch.no_grad():
        layer.center.copy_(torch.tensor([0.0, 0.8]))
        layer.gamma.copy_(torch.tensor([0.3, -0.6]))
        layer.soft_attn.copy_(torch.tensor([[math.log(3.0), 0.0]]))
    rows = []
    for center, gamma in ((0.0, 0.3), (0.8, -0.6)):
        middle, variance = 4 * (math.tanh(center) + 1) / 2, math.exp(-2 * abs(gamma))
        row = [math.exp(-((t - middle) ** 2) / (2 * variance)) for t in range(5)]
        rows.append([value / sum(row) for value in row])
    expected = [0.75 * a + 0.25 * b for a, b in zip(*rows, strict=True)]
    torch.testing.assert_close(layer.kernels()[0, 0], torch.tensor(expected))


def test_very_narrow_gaussians_stay_finite():
    layer = TGMLayer(mixtures=2, length=4, c_out=1)
    with torch.no_grad():
        layer.gamma.fill_(9.0)
    layer.kernels().square().sum().backward()
    assert layer.kernels().isfinite().all() and layer.gamma.grad.isfinite().all()


def test_whole_model_is_the_published_one(golden):
    file = golden("tgm_stack_small")
    model = create("tgm", 10, in_features=32, kernel="cauchy")
    report = load_weights(model, group(file, "w/"))
    assert report.layout == "tgm" and not report.skipped
    assert sorted(report.loaded) == sorted(model.state_dict())
    close(
        scored(model, torch.from_numpy(file["x"]), [20] * 3), torch.from_numpy(file["logits"]), 1e-5
    )


def test_super_events_join_the_published_way():
    """The published forward pass, written out with the parts that other tests have pinned."""
    model = seeded("tgm_super_events", kernel="cauchy").eval()
    features, lengths = drawn(2, 6, 9), torch.tensor([9, 6])
    course = features[:, None]
    for layer in model.layers:
        course = layer(course)
    scores = model.events(features, lengths)[:, :, None].expand(2, 5, 9)
    seen = torch.cat([features, course.amax(1), scores], 1).relu()
    hidden = torch.einsum("ocz,bct->bot", model.h.weight, seen) + model.h.bias[:, None]
    expected = torch.einsum("ocz,bct->bot", model.classify.weight, hidden.relu())
    expected = expected + model.classify.bias[:, None]
    torch.testing.assert_close(model(features, lengths), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "classes", "size"),
    [
        ("tgm_super_events", 157, 1_373_420),
        ("tgm_super_events", 65, 1_184_820),
        ("tgm", 157, 1_132_093),
        ("tgm", 65, 1_084_897),
    ],
)
def test_size_is_the_published_one(name, classes, size):
    with torch.device("meta"):
        assert parameters(create(name, classes, in_features=1024)) == size


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("name", MODELS)
def test_exact_padding_changes_no_step_that_exists(name, padding):
    model = seeded(name, padding="exact")
    alone = scored(model, drawn(1, 6, 7), [7])
    batch = torch.full((2, 6, 12), padding)
    batch[0, :, :7], batch[1] = drawn(1, 6, 7)[0], drawn(6, 12, seed=3)
    together = scored(model, batch, [7, 12])
    torch.testing.assert_close(together[:1, :, :7], alone, rtol=1e-5, atol=1e-6)


def test_released_padding_reaches_the_last_steps_only():
    model = seeded("tgm")
    features = drawn(1, 6, 20)
    change = scored(model, F.pad(features, (0, 8)), [20])[..., :20] - scored(model, features, [20])
    assert change.abs()[..., :16].max() < 1e-6 < change.abs()[..., 16:].max()


@pytest.mark.parametrize("option", ["kernel", "combine", "padding"])
def test_unknown_words_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}='no': choose from"):
        create("tgm", 5, **{option: "no"})


@pytest.mark.parametrize("name", MODELS)
def test_published_and_own_names_load(name):
    source, model = (seeded(name, seed=seed) for seed in (1, 2))
    own = source.state_dict()
    state = {k.removeprefix("events."): v for k, v in own.items()}
    for number in range(3):
        layer = f"layers.{number}."
        state = {k.replace(layer, f"sub_event{number + 1}."): v for k, v in state.items()}
    for module, other in (("super_event.", "sup."), ("super_event2.", "sup2.")):
        state |= {k.replace(module, other): v for k, v in state.items() if k.startswith(module)}
    report = load_weights(model, {f"module.{k}": v for k, v in state.items()})
    assert report.layout == "tgm" and not report.skipped and sorted(report.loaded) == sorted(own)
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert load_weights(seeded(name, seed=3), own).layout == "ssdet"
