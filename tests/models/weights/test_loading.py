import os
import re

import pytest
import torch

from ssdet.models import accelerate, create, load_weights

TOY = {
    "widths": ((16, 8), (24, 12), (32, 16), (48, 24)),
    "depths": (1, 2, 3, 2),
    "stem": 8,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def reference(golden):
    data = golden("x3d_tiny")
    return {name: torch.from_numpy(data[name]) for name in data.files if data[name].ndim}


@pytest.fixture(scope="module")
def multigrid(reference):
    return {k.removeprefix("w/"): v for k, v in reference.items() if k.startswith("w/")}


def close(ours, theirs, relative=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * theirs.abs().max().item())


def own_name(name):
    """Names of MODELS.md 1.6, written out a second time."""
    stem = {"conv1_s": "blocks.0.conv.conv_t", "conv1_t": "blocks.0.conv.conv_xy"}
    ends = {
        "bn1": "blocks.0.norm",
        "conv5": "blocks.5.pool.pre_conv",
        "bn5": "blocks.5.pool.pre_norm",
        "fc1": "blocks.5.pool.post_conv",
        "fc2": "blocks.5.proj",
    }
    inside = {
        "conv1": "branch2.conv_a",
        "bn1": "branch2.norm_a",
        "conv2": "branch2.conv_b",
        "bn2": "branch2.norm_b.0",
        "conv3": "branch2.conv_c",
        "bn3": "branch2.norm_c",
        "fc1": "branch2.norm_b.1.block.0",
        "fc2": "branch2.norm_b.1.block.2",
        "downsample.0": "branch1_conv",
        "downsample.1": "branch1_norm",
    }
    part, _, leaf = name.rpartition(".")
    if block := re.fullmatch(r"layer(\d)\.(\d)\.(.*)", part):
        stage, index, rest = block.groups()
        return f"blocks.{stage}.res_blocks.{index}.{inside[rest]}.{leaf}"
    return f"{(stem | ends)[part]}.{leaf}"


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("shortcut_norm", [False, True], ids=["folded", "kept"])
def test_released_weights_evaluate_as_published(reference, multigrid, shortcut_norm, splits, fast):
    model = create("x3d", 6, **TOY, shortcut_norm=shortcut_norm, norm_splits=splits)
    report = load_weights(model, multigrid)
    assert report.layout == "x3d_multigrid"
    model = (accelerate(model) if fast else model).eval()
    with torch.no_grad():
        close(model(reference["x"]), reference["logits_eval"])


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_released_weights_train_as_published(reference, multigrid, fast):
    model = create("x3d", 6, **TOY, shortcut_norm=True, norm_splits=2)
    report = load_weights(model, multigrid, layout="x3d_multigrid")
    assert not report.reinitialised
    model = accelerate(model) if fast else model
    logits = model(reference["x"])
    close(logits, reference["logits_train"])
    logits.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, grad in reference.items():
        if name.startswith("g/"):
            close(grads[own_name(name[2:])], grad, 2e-4)

    state = model.state_dict()
    for name, value in reference.items():
        if name.startswith("after/"):
            close(state[own_name(name[6:].replace(".split_bn.running_", ".split_"))], value)
    model.eval()
    state = model.state_dict()
    for name, value in reference.items():
        if name.startswith("agg/"):
            close(state[own_name(name[4:].replace(".bn.running_", ".running_"))], value)
    with torch.no_grad():
        close(model(reference["x"]), reference["logits_eval_after"])


def test_aggregate_takes_statistics_from_the_splits(reference, multigrid):
    model = create("x3d", 6, **TOY, shortcut_norm=True)
    after = {k[6:]: v for k, v in reference.items() if k.startswith("after/")}
    load_weights(model, {**multigrid, **after}, aggregate=True)
    model.eval()
    with torch.no_grad():
        close(model(reference["x"]), reference["logits_eval_after"])


def test_other_classes_keep_a_fresh_classifier(multigrid):
    model = create("x3d", 4, **TOY)
    fresh = model.head.proj.weight.clone()
    report = load_weights(model, multigrid)
    assert {"blocks.5.proj.weight", "blocks.5.proj.bias"} <= set(report.reinitialised)
    assert {"blocks.5.proj.weight", "blocks.5.proj.bias"} <= set(report.skipped)
    assert torch.equal(model.head.proj.weight, fresh)


def test_another_shape_is_refused(multigrid):
    model = create("x3d", 6, **{**TOY, "head_dim": 64})
    with pytest.raises(ValueError, match=r"post_conv.weight has shape \(2048, .*needs \(64, "):
        load_weights(model, multigrid)


def test_missing_tensors_are_refused(multigrid):
    del (partial := dict(multigrid))["layer3.1.conv2.weight"]
    with pytest.raises(ValueError, match=r"1 of .* missing.*blocks.3.res_blocks.1.branch2.conv_b"):
        load_weights(create("x3d", 6, **TOY), partial)


@pytest.mark.parametrize("shortcut_norm", [False, True])
def test_pytorchvideo_checkpoint_file(tmp_path, shortcut_norm):
    source = create("x3d_tiny", 3).eval()
    plain = {f"module.{k}": v for k, v in source.state_dict().items() if ".split_" not in k}
    torch.save({"model_state": plain, "epoch": 3}, tmp_path / "X3D.pyth")
    model = create("x3d_tiny", 3, shortcut_norm=shortcut_norm)
    report = load_weights(model, tmp_path / "X3D.pyth")
    assert report.layout == "pytorchvideo"
    assert not report.skipped
    x = torch.randn(2, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-6)


def test_own_checkpoint_with_another_number_of_splits(tmp_path):
    source = create("x3d_tiny", 3, norm_splits=2)
    source(torch.randn(4, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    source.eval()
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pt")
    model = create("x3d_tiny", 3, norm_splits=4)
    report = load_weights(model, tmp_path / "weights.pt")
    assert report.layout == "ssdet"
    assert all(".split_" in name for name in report.reinitialised)
    norm = model.blocks[0].norm
    assert torch.equal(norm.split_mean.view(4, -1), norm.running_mean.expand(4, -1))
    assert torch.equal(norm.running_mean, source.blocks[0].norm.running_mean)


class Unsafe:
    def __reduce__(self):
        return os.mkdir, ("proof",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("code", "could run code.*torch.save"),
        ("half", "truncated"),
        ("noise", "not a checkpoint"),
        ("nothing", "truncated"),
        ("list", "expected a state dict"),
        ("strange", "fit no layout"),
    ],
)
def test_unfit_files_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pt"
    model = create("x3d_tiny", 3)
    if content == "code":
        torch.save({"model": Unsafe()}, path)
    elif content == "half":
        torch.save(model.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content in ("noise", "nothing"):
        path.write_bytes(b"hello world, no weights" * (content == "noise"))
    else:
        torch.save([1, 2] if content == "list" else {"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "proof").exists()


def test_unknown_layout():
    with pytest.raises(ValueError, match="no layout 'caffe': choose from auto, "):
        load_weights(create("x3d_tiny", 3), {"a": torch.zeros(1)}, layout="caffe")
