"""The accelerated parts against the plain ones in float64."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssdet.models import accelerate, create
from ssdet.models.layers import cpu_ops as fast_ops


def network(**options):
    options = {
        "widths": ((27, 12), (24, 16)),
        "depths": (3, 2),
        "stem": 12,
        "head_dim": 32,
        "dropout": 0.0,
        "norm_splits": 2,
        **options,
    }
    model = create("x3d", 5, generator=torch.Generator().manual_seed(0), **options)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.add_(0.3 * torch.rand(value.shape, generator=generator))
    return model


def parts(model):
    """Stem, first block (SE, strided shortcut), plain block, SE block, second stage, head."""
    (_, *first), second = model.blocks[1].res_blocks, model.blocks[2].res_blocks[0]
    return [model.blocks[0], model.blocks[1].res_blocks[0], *first, second]


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)).item()


def run(part, x, grad):
    x = x.clone().requires_grad_()
    y = part(x)
    y.backward(grad.to(y))
    return {"output": y.detach(), "input": x.grad} | {k: p.grad for k, p in part.named_parameters()}


def compare(plain, x):
    """Errors against float64 must be what float32 costs the plain part, or next to nothing."""
    exact, fast = copy.deepcopy(plain).double(), accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        shape = copy.deepcopy(plain)(x).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected, found = run(exact, x.double(), grad.double()), run(fast, x, grad)
    noise = {name: distance(value, expected[name]) for name, value in run(plain, x, grad).items()}
    assert expected.keys() == found.keys()
    for name in expected:
        assert distance(found[name], expected[name]) < max(4 * noise[name], 5e-6), name
    for name, buffer in exact.named_buffers():
        assert distance(fast.get_buffer(name), buffer) < 1e-6, name


def inputs(channels, size=(4, 5, 9, 7)):
    n, t, h, w = size
    return torch.randn(n, channels, t, h, w, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("training", [True, False], ids=["batch-statistics", "running-statistics"])
@pytest.mark.parametrize("shortcut_norm", [False, True])
@pytest.mark.parametrize("part", range(5))
def test_each_block_has_float64_gradients(part, shortcut_norm, training):
    plain = parts(network(shortcut_norm=shortcut_norm))[part].train(training)
    compare(plain, inputs(3 if part == 0 else 12))


@pytest.mark.parametrize("size", [(2, 1, 8, 8), (4, 2, 5, 6), (2, 3, 1, 1), (6, 7, 2, 3)])
@pytest.mark.parametrize("part", [1, 2])
def test_any_size(part, size):
    plain = parts(network())[part].train(size[2] > 1)
    compare(plain, inputs(12, size))


@pytest.mark.parametrize("elements", [1, 2000, 10**9])
def test_strided_gradient_in_pieces(monkeypatch, elements):
    monkeypatch.setattr(fast_ops, "_CACHED", elements)
    compare(parts(network())[1], inputs(12))


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_strides(stem_stride):
    model = network(stem_stride=stem_stride, stage_strides=(1, 2))
    compare(parts(model)[0], inputs(3))
    compare(parts(model)[1], inputs(12))


def test_any_memory_layout():
    x = inputs(12)
    block = accelerate(parts(network())[1])
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        torch.testing.assert_close(block(x.to(memory_format=layout)), block(x))


def losses(model, steps):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        clips = torch.randn(4, 3, 6, 24, 24, generator=generator)
        labels = torch.randint(5, (4, 6), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(clips), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_training_and_evaluation_follow_the_plain_network():
    plain = create("x3d_tiny", 5, norm_splits=2, dropout=0.0)
    fast = accelerate(copy.deepcopy(plain))
    assert list(losses(fast, 3)) == pytest.approx(list(losses(plain, 3)), rel=1e-4)
    fast.load_state_dict(plain.state_dict())
    x = inputs(3, (2, 4, 24, 24))
    for mode in (fast, plain):
        mode.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fast.classify(x), plain.classify(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fast.features(x), plain.features(x), rtol=1e-5, atol=1e-6)


def test_first_loss_is_equal_to_six_digits():
    plain = create("x3d_tiny", 5, norm_splits=2, dropout=0.0)
    fast = accelerate(copy.deepcopy(plain))
    assert next(losses(fast, 1)) == pytest.approx(next(losses(plain, 1)), rel=1e-6)


def test_names_and_parameters_stay_and_a_second_call_changes_nothing():
    model = network()
    names, weights = list(model.state_dict()), [id(p) for p in model.parameters()]
    once = [type(m) for m in accelerate(model).modules()]
    assert [type(m) for m in accelerate(model).modules()] == once
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == weights


def test_outputs_of_blocks_keep_their_order_for_hooks():
    plain, seen = network(), {}
    fast = accelerate(copy.deepcopy(plain))
    for model in (plain, fast):
        model.blocks[1].register_forward_hook(lambda m, a, y, model=model: seen.update({model: y}))
        model(inputs(3, (4, 3, 16, 16)))
    torch.testing.assert_close(seen[fast], seen[plain], rtol=1e-4, atol=1e-5)


def test_other_precisions_run_as_before():
    plain = network().double()
    fast = accelerate(copy.deepcopy(plain))
    x = inputs(3, (2, 3, 16, 16)).double()
    assert torch.equal(fast(x), plain(x))


def test_can_be_copied_and_pickled():
    model = accelerate(network()).eval()
    x = inputs(3, (2, 3, 16, 16))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_batch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"3 samples.*2 splits"):
        accelerate(network())(inputs(3, (3, 2, 16, 16)))


def test_second_derivatives_are_refused():
    block = accelerate(nn.Sequential(parts(network())[2]))
    x = inputs(12).requires_grad_()
    (grad,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
