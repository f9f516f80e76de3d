import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssdet.models.layers.grid_pool import GridPool, interpolate_1d, sample, unpool


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def reference(golden):
    data = golden("cf_gridpool")
    return {name: torch.from_numpy(data[name]) for name in data.files}


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_pool_equals_the_reference(reference):
    pool = GridPool(6)
    names = {k[2:].replace(".bn.", "."): k for k in reference if k.startswith("w/")}
    state = {name: reference[k] for name, k in names.items() if "split_bn" not in name}
    assert not pool.load_state_dict(state, strict=False).unexpected_keys
    samples, grid = pool.eval()(reference["x"])
    close(grid, reference["gx"])
    close(samples, reference["y"])


def test_unpool_equals_the_reference(reference):
    logits, grid = reference["logits"], reference["gx"]
    close(unpool(logits, grid, 5), reference["unpooled"])
    close(unpool(logits, grid, 16), reference["final"])


def test_interpolation_equals_the_reference_and_numpy(golden):
    data = golden("cf_interp1d")
    x, y, expected = (torch.from_numpy(data[name]) for name in ("x", "y", "ynew"))
    close(interpolate_1d(x, y, y), expected)
    at = rand(3, 20)
    by_numpy = np.stack([np.interp(*rows) for rows in zip(at, x, y, strict=True)])
    close(interpolate_1d(x, y, at), torch.from_numpy(by_numpy).float())


def test_samples_and_gradients_are_those_of_grid_sample():
    x, places = rand(2, 3, 7, 4, 5).requires_grad_(), rand(2, 4, seed=1).requires_grad_()
    weight = rand(2, 3, 4, 4, 5, seed=2)
    ours = sample(x, places)
    grads = torch.autograd.grad((ours * weight).sum(), (x, places))

    height, width = torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 5)
    mesh = [
        torch.stack(torch.meshgrid(row, height, width, indexing="ij")) for row in 2 * places - 1
    ]
    theirs = F.grid_sample(x, torch.stack(mesh).permute(0, 2, 3, 4, 1).flip(4), align_corners=True)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        grads, torch.autograd.grad((theirs * weight).sum(), (x, places)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 16, 17])
def test_any_length_is_covered_from_end_to_end(frames):
    pool = GridPool(4)
    x = rand(2, 4, frames, 6, 6)
    samples, grid = pool(x)
    assert samples.shape == (2, 4, -(-frames // 4) + 1, 6, 6)
    assert grid.dtype == torch.float32 and (grid.diff() > 0).all()
    torch.testing.assert_close(grid[:, [0, -1]], torch.tensor([[0.0, 1.0]] * 2))
    torch.testing.assert_close(samples[:, :, [0, -1]], x[:, :, [0, -1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5, 16, 19])
def test_unpool_undoes_the_pooling_of_what_is_linear_in_time(frames):
    """Whatever the grid is: sampled where it lies, the time itself comes back."""
    grid = F.pad((share := rand(3, 6) + 0.1) / share.sum(1, keepdim=True), (1, 0)).cumsum(1)
    time = torch.linspace(0, 1, frames).expand(3, 1, frames)
    torch.testing.assert_close(unpool(grid[:, None], grid, frames), time, rtol=0, atol=1e-5)


def test_intervals_are_short_where_confidence_is_high():
    pool = GridPool(2).eval()
    for parameter in pool.parameters():
        parameter.data.fill_(0.2)
    x = torch.zeros(1, 2, 32, 8, 8)
    x[:, :, 16:] = 5.0
    intervals = pool.grid(x)[0].diff()
    assert intervals[-3:].max() < intervals[:3].min()


def test_gradients_reach_the_confidences_through_samples_and_unpooling():
    pool = GridPool(3).eval()
    samples, grid = pool(rand(2, 3, 8, 6, 6))
    for value in (samples, unpool(rand(2, 4, 3, seed=1), grid, 8)):
        weight = rand(*value.shape, seed=2)
        (grad,) = torch.autograd.grad((value * weight).sum(), pool.conv3.weight, retain_graph=True)
        assert grad.isfinite().all() and grad.abs().max() > 0
