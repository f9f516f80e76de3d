"""I3D against the published one: its numbers, an independent implementation, its layouts.

`golden("i3d_flax")` holds outputs of i3d-jax 0.0.1 (Flax) for weights made by `made_weights`:
`mixed_5c_CS` (means over space of its last module) for 13 frames of 90 x 117, `logits_K` for 24 of
224 x 224; and `kinetics_logits_K` with its own weights, which test_published.py reads.
"""

import pickle
import zlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssdet import augment
from ssdet.evaluation.cost import conv_macs, parameters
from ssdet.models import create, load_weights
from ssdet.models.networks.i3d import same_padding

UNITS = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def flax_name(unit: str) -> str:
    module, _, branch = unit.partition(".")
    if module == "logits":
        return "Logits/Conv3d_0c_1x1"
    return f"{module}/{UNITS[branch]}" if branch else module


def made_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    n, leaf = noise.astype(np.float32), name.rpartition("/")[2]
    if leaf == "kernel":
        return n * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return 1 + np.float32(0.1) * abs(n) if leaf == "var" else np.float32(0.05) * n


def made_weights(classes: int = 400) -> dict:
    """A nested dictionary of arrays in the layout of i3d-jax, drawn by name."""
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, value in create("i3d", classes).state_dict().items():
        unit, kind, leaf = name.rsplit(".", 2)
        collection = "batch_stats" if leaf.startswith("running_") else "params"
        part = {"conv3d": "Conv_0", "bn": "BatchNorm_0"}[kind]
        own = {"running_mean": "mean", "running_var": "var", "bias": "bias"}.get(leaf)
        shape = tuple(value.shape)
        if kind == "conv3d" and leaf == "weight":
            own, shape = "kernel", (*shape[2:], shape[1], shape[0])
        if own:
            path = f"{flax_name(unit)}"
            place = tree[collection]
            for step in _steps(path):
                place = place.setdefault(step, {})
            full = f"{collection}/{path}/{part}/{own}"
            place.setdefault(part, {})[own] = made_value(full, shape)
    return tree


def _steps(path: str) -> list[str]:
    """Flax nests a module in its parent; a slash inside a module's own name stays."""
    return path.split("/", 1) if path.startswith("Mixed") else [path]


@pytest.fixture(scope="module")
def made_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "made.ckpt"
    path.write_bytes(pickle.dumps(made_weights(), protocol=4))
    return path


@pytest.fixture(scope="module")
def made(made_file):
    model = create("i3d", 400).eval()
    report = load_weights(model, made_file)
    assert report.layout == "i3d_jax"
    assert not report.skipped
    return model


def port_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights by their name in the PyTorch port."""
    n = torch.from_numpy(
        np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    )
    if name.endswith("running_var"):
        return 1 + 0.1 * n.abs()
    if len(shape) == 1:
        scale = name.endswith("weight")
        return 1 + 0.1 * n if scale else 0.05 * n
    return n * float(np.sqrt(2 / np.prod(shape[1:])))


@pytest.fixture(scope="module", params=[3, 2], ids=["rgb", "flow"])
def port(request):
    """A state dict as the port writes it, of 157 classes."""
    with torch.device("meta"):
        own = create("i3d", 157, in_channels=request.param).state_dict()
    return {
        name: torch.tensor(0) if name.endswith("tracked") else port_value(name, tuple(value.shape))
        for name, value in own.items()
        if ".split_" not in name
    }


def by_hand(state, clips):
    """Features and logits at the network's own rate, written out from the specification."""

    def around(x, window, stride, value):
        for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=2):
            total = max(size - (x.shape[axis] % step or step), 0)
            for length, order in ((total // 2, -1), (total - total // 2, 1)):
                fill = torch.full_like(x.narrow(axis, 0, 1), value)
                x = torch.cat([x, *[fill] * length][::order], axis)
        return x

    def unit(name, x, stride=1):
        kernel, strides = state[f"{name}.conv3d.weight"], (stride,) * 3
        x = F.conv3d(around(x, kernel.shape[2:], strides, 0.0), kernel, stride=strides)
        parts = (state[f"{name}.bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        mean, var, weight, bias = (part.view(-1, 1, 1, 1) for part in parts)
        return ((x - mean) / (var + 1e-3).sqrt() * weight + bias).clamp(min=0)

    def largest(x, window, stride):
        return F.max_pool3d(around(x, window, stride, -torch.inf), window, stride)

    x = largest(unit("Conv3d_1a_7x7", clips, 2), (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
    x = largest(x, (1, 3, 3), (1, 2, 2))
    for module in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        x = largest(x, (3, 3, 3), (2, 2, 2)) if module == "4b" else x
        x = largest(x, (2, 2, 2), (2, 2, 2)) if module == "5b" else x
        m = f"Mixed_{module}"
        twice = (unit(f"{m}.{b}b", unit(f"{m}.{b}a", x)) for b in ("b1", "b2"))
        last = unit(f"{m}.b3b", largest(x, (3, 3, 3), (1, 1, 1)))
        x = torch.cat([unit(f"{m}.b0", x), *twice, last], 1)
    features = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
    logits = F.conv3d(features, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
    return features, logits[..., 0, 0]


@pytest.mark.parametrize("shape", [(32, 64, 64), (25, 37, 50)])
def test_port_weights_score_as_written_out_by_hand(port, shape):
    channels = port["Conv3d_1a_7x7.conv3d.weight"].shape[1]
    model = create("i3d", 157, in_channels=channels)
    report = load_weights(model, port)
    assert report.layout == "pytorch_i3d" and not report.skipped
    assert set(port) <= set(report.loaded)
    model.eval()
    clips = torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = by_hand(port, clips)
        assert features.shape == (1, 1024, 3, 1, 1) and logits.shape == (1, 157, 3)
        found = model.steps(clips)[..., None, None], model.coarse_logits(clips)
        for value, expected in zip(found, (features, logits), strict=True):
            limit = 1e-5 * expected.abs().max().item()
            torch.testing.assert_close(value, expected, rtol=0, atol=limit)


def test_flow_weights_do_not_fit_pictures(port):
    channels = port["Conv3d_1a_7x7.conv3d.weight"].shape[1]
    with pytest.raises(ValueError, match="options of these weights"):
        load_weights(create("i3d", 157, in_channels=5 - channels), port)
    model = create("i3d", 9, in_channels=channels)
    assert set(load_weights(model, port).skipped) == {
        "logits.conv3d.weight", "logits.conv3d.bias"
    }  # fmt: skip


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_short_clips_are_a_single_step(made, frames):
    """Taken alone, which is what a mean with its own copy would be."""
    clip = torch.randn(1, 3, frames, 32, 32, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        logits = made(clip)
        assert logits.shape == (1, 400, frames)
        torch.testing.assert_close(logits, made.classify(clip)[..., None].expand_as(logits))


@pytest.mark.parametrize(
    ("classes", "channels", "expected"),
    [(400, 3, 12_697_264), (157, 3, 12_448_189), (65, 3, 12_353_889), (157, 2, 12_426_237)],
)
def test_parameters_are_the_published_number(classes, channels, expected):
    with torch.device("meta"):
        assert parameters(create("i3d", classes, in_channels=channels)) == expected


def test_cost_is_the_published_number():
    with torch.device("meta"):
        model = create("i3d", 400)
    macs = conv_macs(model, (1, 3, 64, 224, 224))
    assert round(macs / 1e9, 2) == 111.15


def test_arrays_are_as_many_as_published():
    """230 arrays; a scale for each of the normalisations comes on top in this network."""
    tree = made_weights()
    arrays = [
        leaf
        for collection in tree.values()
        for leaf in _leaves(collection)
    ]  # fmt: skip
    assert len(arrays) == 230
    scales = sum(leaf.size for leaf in _leaves(tree["batch_stats"])) // 2
    assert sum(leaf.size for leaf in _leaves(tree["params"])) == 12_697_264 - scales


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_odd_sizes_are_those_of_another_implementation(made, golden):
    clip = np.random.RandomState(5).standard_normal((1, 13, 90, 117, 3)).astype(np.float32)
    expected = torch.from_numpy(golden("i3d_flax")["mixed_5c_CS"]).mean(1, keepdim=True)
    with torch.no_grad():
        steps = made.steps(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))[0]
    torch.testing.assert_close(steps, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_logits_are_those_of_another_implementation(made, golden):
    clip = np.random.RandomState(6).standard_normal((1, 24, 224, 224, 3)).astype(np.float32)
    expected = torch.from_numpy(golden("i3d_flax")["logits_K"])
    with torch.no_grad():
        logits = made.classify(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("frames", [1, 4, 8, 9, 16, 33])
def test_one_column_per_frame(made, frames):
    clip = torch.randn(1, 3, frames, 32, 40, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        steps, features = made.steps(clip), made.features(clip)
        logits = made(clip)
    assert steps.shape == (1, 1024, max(1, -(-frames // 8) - 1))
    assert features.shape == (1, 1024, frames)
    per_step = made.logits.conv3d(steps[..., None, None])[..., 0, 0]
    expected = F.interpolate(per_step, size=frames, mode="linear", align_corners=False)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(made.score(features), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.classify(clip), per_step.mean(2))


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize(("window", "stride"), [(7, 2), (3, 2), (3, 1), (2, 2), (1, 1)])
def test_same_padding_is_that_of_the_specification(size, window, stride):
    """As the PyTorch port states it: by the remainder, the larger part at the end."""
    rest = size % stride
    total = max(window - (rest or stride), 0)
    found = same_padding((size, 1, 1), (window, 1, 1), (stride, 1, 1))[0]
    assert found == (total // 2, total - total // 2)
    assert (size + total - window) // stride + 1 == -(-size // stride)


def test_a_port_checkpoint_loads_by_name(made, tmp_path):
    state = {k: v for k, v in made.state_dict().items() if ".split_" not in k}
    torch.save(state, tmp_path / "rgb.pt")
    model = create("i3d", 400)
    report = load_weights(model, tmp_path / "rgb.pt")
    assert report.layout == "pytorch_i3d"
    assert torch.equal(model.Mixed_4c.b2b.conv3d.weight, made.Mixed_4c.b2b.conv3d.weight)


def test_other_classes_keep_a_fresh_classifier(made_file):
    model = create("i3d", 7).eval()
    fresh = model.logits.conv3d.weight.clone()
    report = load_weights(model, made_file, layout="i3d_jax")
    assert set(report.skipped) == {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert torch.equal(model.logits.conv3d.weight, fresh)
    model.reset_classifier(3, torch.Generator().manual_seed(0))
    assert model(torch.zeros(1, 3, 8, 32, 32)).shape == (1, 3, 8)


def test_head_and_backbone_are_all_parameters():
    model = create("i3d", 4)
    head, backbone = list(model.head_parameters()), list(model.backbone_parameters())
    assert sum(p.numel() for p in head) == 4 * 1024 + 4
    assert len(head) + len(backbone) == len(list(model.parameters()))
    assert all(name.startswith(model.classifier) for name, p in model.named_parameters()
               if any(p is h for h in head))  # fmt: skip


def test_clips_are_mixed_at_the_input(made):
    """Inside there are no frames to mix; `manifold` says so by never leaving level 0."""
    mixing = augment.create("mixup")
    clips = torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.eye(400)[:2, :, None].repeat(1, 1, 16)
    logits, soft = augment.manifold(
        mixing, made, clips, targets, torch.Generator().manual_seed(1), level=0
    )
    mixed, expected = mixing(clips, targets, torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits, made(mixed))
    assert torch.equal(soft, expected)
    with pytest.raises(ValueError, match="level=1"):
        augment.manifold(mixing, made, clips, targets, torch.Generator(), level=1)


def test_running_statistics_follow_as_fast_as_is_asked():
    model = create("i3d", 2, norm_momentum=0.25)
    norm = model.Conv3d_1a_7x7.bn
    seen = []
    model.Conv3d_1a_7x7.conv3d.register_forward_hook(lambda _, inputs, out: seen.append(out))
    model(torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0)))
    model.eval()
    torch.testing.assert_close(norm.running_mean, 0.25 * seen[0].mean((0, 2, 3, 4)))
