"""Two-stream I3D: the mean of two networks that load their weights one by one."""

import pytest
import torch

from ssdet.evaluation.cost import conv_macs, parameters
from ssdet.models import create, load_weights


@pytest.fixture(scope="module")
def model():
    made = create("i3d_two_stream", 6, generator=torch.Generator().manual_seed(0))
    return made.eval()


@pytest.fixture(scope="module")
def clips():
    return torch.rand(1, 5, 20, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_parameters_are_those_of_both_streams():
    with torch.device("meta"):
        model = create("i3d_two_stream", 157)
    assert parameters(model.rgb) == 12_448_189
    assert parameters(model.flow) == 12_426_237
    assert parameters(model) == 12_448_189 + 12_426_237


def test_cost_is_that_of_both_streams():
    """Flow saves a third of the first convolution: one channel of 7³ to 64 channels."""
    with torch.device("meta"):
        macs = conv_macs(create("i3d_two_stream", 400), (1, 5, 64, 224, 224))
        rgb = conv_macs(create("i3d", 400), (1, 3, 64, 224, 224))
    assert macs == 2 * rgb - 343 * 64 * 32 * 112 * 112


def test_logits_are_the_mean_of_the_streams(model, clips):
    rgb, flow = clips[:, :3], clips[:, 3:]
    with torch.no_grad():
        for method in ("forward", "classify"):
            each = [getattr(model.rgb, method)(rgb), getattr(model.flow, method)(flow)]
            expected = torch.stack(each).mean(0)
            torch.testing.assert_close(getattr(model, method)(clips), expected)
        features, logits = model.features(clips), model(clips)
        assert torch.equal(features[:, :1024], model.rgb.features(rgb))
        assert torch.equal(features[:, 1024:], model.flow.features(flow))
        torch.testing.assert_close(model.score(features), logits, rtol=1e-4, atol=1e-4)
    assert logits.shape == (1, 6, 20) and features.shape == (1, 2048, 20)


def test_each_stream_loads_its_own_weights(model):
    streams = {name: create("i3d", 4, in_channels=n) for name, n in (("rgb", 3), ("flow", 2))}
    fresh = model.flow.logits.conv3d.bias.clone()
    for name, stream in streams.items():
        state = {k: v for k, v in stream.state_dict().items() if ".split_" not in k}
        report = load_weights(getattr(model, name), state)
        assert report.layout == "pytorch_i3d"
        assert set(report.skipped) == {"logits.conv3d.weight", "logits.conv3d.bias"}
        own = getattr(model, name).Conv3d_1a_7x7.conv3d.weight
        assert torch.equal(own, stream.Conv3d_1a_7x7.conv3d.weight)
    assert torch.equal(model.flow.logits.conv3d.bias, fresh)
    with pytest.raises(ValueError, match="Conv3d_1a_7x7"):
        load_weights(model.rgb, streams["flow"].state_dict(), layout="pytorch_i3d")


def test_a_whole_checkpoint_keeps_other_classifiers_fresh(model):
    other = create("i3d_two_stream", 3)
    report = load_weights(other, model.state_dict())
    assert report.skipped == [name for name in model.state_dict() if ".logits." in name]
    assert torch.equal(other.flow.Mixed_3b.b0.bn.weight, model.flow.Mixed_3b.b0.bn.weight)


def test_head_and_backbone_are_all_parameters(model):
    named = {id(p): name for name, p in model.named_parameters()}
    head = [named[id(p)] for p in model.head_parameters()]
    backbone = [named[id(p)] for p in model.backbone_parameters()]
    assert all(name.startswith(model.classifier) for name in head) and len(head) == 4
    assert not any(name.startswith(model.classifier) for name in backbone)
    assert sorted(head + backbone) == sorted(named.values())


def test_both_classifiers_are_replaced_by_the_generator_alone(clips):
    made = []
    for _ in range(2):
        model = create("i3d_two_stream", 6)
        model.reset_classifier(3, torch.Generator().manual_seed(0))
        made.append([p.clone() for p in model.head_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    assert model(clips).shape == (1, 3, 20)


def test_clips_without_flow_are_refused(model):
    with pytest.raises(ValueError, match="3 channels"):
        model(torch.zeros(1, 3, 8, 32, 32))
