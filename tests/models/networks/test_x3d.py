import math
import pickle

import pytest
import torch
from pytorchvideo.models.x3d import create_x3d
from torch import nn

from ssdet.evaluation.cost import parameters
from ssdet.models import create


def small(**options):
    options = {"widths": (8, 16), "depths": (2, 1), "stem": 8, "head_dim": 32, **options}
    return create("x3d", 5, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("x3d_m", 400, 3_794_322),
        ("x3d_s", 401, 3_796_371),
        ("x3d_m", 157, 3_296_415),
        ("x3d_m", 65, 3_107_907),
        ("x3d_xl", 400, 11_095_904),
    ],
)
def test_parameter_counts(name, classes, published):
    first_shortcut_norm = 2 * (32 if name == "x3d_xl" else 24)
    assert parameters(create(name, classes, shortcut_norm=True)) == published
    assert parameters(create(name, classes)) == published - first_shortcut_norm


def test_squeeze_widths_follow_the_rule():
    def squeezed(name):
        blocks = create(name, 2).blocks[1:-1]
        return [stage.res_blocks[0].branch2.norm_b[1].block[0].out_channels for stage in blocks]

    assert squeezed("x3d_m") == [8, 8, 16, 32]
    assert squeezed("x3d_xl") == [8, 16, 24, 40]


@pytest.fixture(scope="module")
def theirs():
    net = create_x3d(
        input_clip_length=4, input_crop_size=64, model_num_class=7, head_activation=None
    )
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if "running_var" in name else value + 0.05 * noise)
    return net.eval()


def test_whole_clips_score_as_in_pytorchvideo(theirs):
    ours = create("x3d_m", 7)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.eval()
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.classify(clips), theirs(clips), rtol=1e-5, atol=1e-6)
        theirs.blocks[5].output_pool = None
        theirs.blocks[5].pool.pool = nn.AvgPool3d((1, 2, 2), stride=1)
        frames = theirs(clips)[..., 0, 0]
        torch.testing.assert_close(ours(clips), frames, rtol=1e-5, atol=1e-6)


def test_state_dict_is_pytorchvideos_plus_split_statistics(theirs):
    ours = create("x3d_m", 7).state_dict()
    theirs = theirs.state_dict()
    assert {k for k in ours if ".split_" not in k} == set(theirs)
    assert all(ours[name].shape == value.shape for name, value in theirs.items())


def test_features_are_what_the_head_scores():
    model = small(dropout=0.0)
    model.eval()
    clips = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.features(clips)
        assert features.shape == (2, 36, 3)
        fc1 = model.head.pool.post_conv.weight[:, :, 0, 0, 0]
        fc2, bias = model.head.proj.weight, model.head.proj.bias
        by_hand = torch.einsum("bdt,hd->bht", features, fc1).relu()
        by_hand = torch.einsum("bht,kh->bkt", by_hand, fc2) + bias[:, None]
        torch.testing.assert_close(model(clips), by_hand, rtol=1e-5, atol=1e-6)
        clip = ((features.mean(2) @ fc1.T).relu() @ fc2.T) + bias
        torch.testing.assert_close(model.classify(clips), clip, rtol=1e-5, atol=1e-6)


def test_parameter_groups_are_disjoint_and_complete():
    model = small()
    head, backbone = list(model.head_parameters()), list(model.backbone_parameters())
    assert [p.shape for p in head] == [(32, 36, 1, 1, 1), (5, 32), (5,)]
    assert len({id(p) for p in head + backbone}) == len(list(model.parameters()))
    assert len(head) + len(backbone) == len(list(model.parameters()))


def test_reset_classifier():
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(9, torch.Generator().manual_seed(0))
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["blocks.3.proj.weight", "blocks.3.proj.bias"]
    assert model(torch.randn(1, 3, 2, 32, 32)).shape == (1, 9, 2)
    assert model.classifier == "blocks.3.proj."


def test_convolutions_start_kaiming_fan_out():
    model = create("x3d_m", 3, generator=torch.Generator().manual_seed(0))
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv3d)):
        fan_out = conv.out_channels * math.prod(conv.kernel_size)
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() * math.sqrt(fan_out / 2) == pytest.approx(1, abs=tolerance)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_strides():
    shapes = {}
    model = small(stem_stride=1, stage_strides=(1, 2))
    for i, block in enumerate(model.blocks[:-1]):
        block.register_forward_hook(lambda m, a, y, i=i: shapes.update({i: tuple(y.shape[2:])}))
    model(torch.randn(1, 3, 3, 24, 20))
    assert shapes == {0: (3, 24, 20), 1: (3, 24, 20), 2: (3, 12, 10)}


def test_wrong_number_of_stages():
    with pytest.raises(ValueError, match="2 widths, 1 depths"):
        create("x3d", 3, widths=(8, 16), depths=(1,), stem=8)


def test_can_be_pickled():
    assert pickle.loads(pickle.dumps(small())).blocks[1].res_blocks[0] is not None
