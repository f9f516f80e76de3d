import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from ssdet.evaluation.cost import conv_macs, parameters, pretraining_pflops
from ssdet.models import accelerate, create

CLIP = (1, 3, 16, 224, 224)


@pytest.fixture(scope="module")
def x3d_m():
    return create("x3d_m", 400)


def test_published_macs(x3d_m):
    assert conv_macs(x3d_m, CLIP) / 1e9 == pytest.approx(4.7449, abs=5e-5)
    assert conv_macs(x3d_m, CLIP, "classify") / 1e9 == pytest.approx(4.7316, abs=6e-5)
    assert conv_macs(create("x3d_m", 157), CLIP) / 1e9 == pytest.approx(4.745, abs=5e-4)


def test_pretraining_cost_of_the_paper(x3d_m):
    macs = conv_macs(x3d_m, CLIP)
    assert pretraining_pflops(macs, 64, 100_000) == pytest.approx(30.367, abs=5e-4)
    assert pretraining_pflops(macs, 64, 100_000) == pytest.approx(30.36, abs=0.01)
    assert pretraining_pflops(macs, 64, 300_000) == pytest.approx(91.10, abs=5e-3)


def test_grows_with_frames(x3d_m):
    excitation = conv_macs(x3d_m, (1, 3, 2, 64, 64)) * 2 - conv_macs(x3d_m, (1, 3, 4, 64, 64))
    by_hand = sum(
        2 * n * w
        for depth, n, w in ((2, 54, 8), (3, 108, 8), (6, 216, 16), (4, 432, 32))
        for _ in range(depth)
    )
    assert excitation == by_hand


@pytest.mark.parametrize("fast", [False, True])
def test_agrees_with_fvcore(fast):
    model = create("x3d_tiny", 5).eval()
    clips = torch.zeros(2, 3, 4, 24, 24)
    counts = FlopCountAnalysis(model, clips)
    counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    if fast:
        accelerate(model)
    assert conv_macs(model, clips.shape) == counts.by_operator()["conv"]


def test_leaves_the_model_as_it_was():
    model = create("x3d_tiny", 5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    conv_macs(model, (1, 3, 2, 24, 24))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_parameters():
    assert parameters(nn.Linear(3, 2)) == 8
