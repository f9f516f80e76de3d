"""The 3D ResNet-50 against pytorchvideo's Slow-R50 and the published sizes."""

import pytest
import torch
from pytorchvideo.models.resnet import create_resnet
from torch import nn

from ssdet import augment
from ssdet.evaluation.cost import conv_macs, parameters
from ssdet.models import create, load_weights, set_splits
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d

SMALL = {"widths": (8, 16, 32), "depths": (1, 2, 1), "stage_strides": (1, 2, 1)}


def small(**options):
    options = {**SMALL, **options}
    return create("slow_r50", 5, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(("stem_frames", "expected"), [(3, 31_975_005), (1, 31_956_189)])
def test_parameters_are_the_published_number(stem_frames, expected):
    """The published Slow-R50 has two of three frames less in the first 64 filters of 3 x 7 x 7."""
    with torch.device("meta"):
        assert parameters(create("slow_r50", 157, stem_frames=stem_frames)) == expected
    assert 31_975_005 - 31_956_189 == 2 * 64 * 3 * 7 * 7


def test_cost_is_the_published_number():
    with torch.device("meta"):
        model = create("slow_r50", 157)
    macs = conv_macs(model, (1, 3, 8, 224, 224))
    linear = 8 * 2048 * 157
    assert round((macs + linear) / 1e9, 2) == 43.63


@pytest.fixture(scope="module", params=[1, 3])
def theirs(request):
    stem = (request.param, 7, 7)
    net = create_resnet(
        stem_conv_kernel_size=stem, head_pool_kernel_size=(4, 2, 2), model_num_class=7
    )
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if "running_var" in name else value + 0.01 * noise)
    return net.eval()


def like(theirs, classes=7):
    return create("slow_r50", classes, stem_frames=theirs.blocks[0].conv.kernel_size[0])


@pytest.mark.parametrize("layout", ["pytorchvideo", "auto"])
def test_a_pytorchvideo_checkpoint_loads_and_scores_as_there(theirs, layout):
    ours = like(theirs)
    report = load_weights(ours, {"model_state": theirs.state_dict()}, layout=layout)
    assert set(report.loaded) >= set(theirs.state_dict()) and not report.skipped
    ours.eval()
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.classify(clips), theirs(clips), rtol=1e-4, atol=1e-5)
        head = theirs.blocks[5]
        pool, output_pool = head.pool, head.output_pool
        head.pool, head.output_pool = nn.AvgPool3d((1, 2, 2), stride=1), None
        frames = theirs(clips)[..., 0, 0]
        head.pool, head.output_pool = pool, output_pool
    torch.testing.assert_close(ours(clips), frames, rtol=1e-4, atol=1e-5)


def test_state_dict_is_pytorchvideos_plus_split_statistics(theirs):
    with torch.device("meta"):
        ours = like(theirs).state_dict()
    theirs = theirs.state_dict()
    assert {k for k in ours if ".split_" not in k} == set(theirs)
    assert all(ours[name].shape == value.shape for name, value in theirs.items())


def test_other_classes_keep_a_fresh_classifier(theirs):
    ours = like(theirs, 3)
    report = load_weights(ours, theirs.state_dict())
    assert report.skipped == ["blocks.5.proj.weight", "blocks.5.proj.bias"]
    assert torch.equal(ours.blocks[1].res_blocks[0].branch2.conv_b.weight,
                       theirs.blocks[1].res_blocks[0].branch2.conv_b.weight)  # fmt: skip


def test_three_frames_are_seen_in_the_last_two_stages_alone():
    windows = [
        {block.branch2.conv_a.kernel_size[0] for block in stage.res_blocks}
        for stage in create("slow_r50", 2).layers
    ]
    assert windows == [{1}, {1}, {3}, {3}]


def test_a_frame_depends_on_its_context_alone():
    model = small().eval()
    assert model.temporal_context == 4
    clips = torch.randn(1, 3, 9, 24, 24, generator=torch.Generator().manual_seed(1))
    changed = clips.clone()
    changed[:, :, 0] += 1
    with torch.no_grad():
        differ = (model(clips) != model(changed)).any(1)[0].tolist()
    assert differ == [True] * 5 + [False] * 4


@pytest.mark.parametrize("shape", [(1, 1, 24, 24), (2, 7, 23, 17), (1, 3, 5, 5)])
def test_one_column_per_frame(shape):
    batch, frames, height, width = shape
    model = small().eval()
    clips = torch.randn(batch, 3, frames, height, width)
    with torch.no_grad():
        features, logits = model.features(clips), model(clips)
        assert features.shape == (batch, 128, frames)
        torch.testing.assert_close(model.score(features), logits)
        expected = model.score(features.mean(2, keepdim=True))[..., 0]
        torch.testing.assert_close(model.classify(clips), expected)
    assert logits.shape == (batch, 5, frames)


def test_groups_are_normalised_apart():
    """Two splits of four clips are what each pair of them gives alone."""
    model = small(dropout=0.0).train()
    clips = torch.randn(4, 3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    alone = [model(clips[part::2]) for part in range(2)]
    set_splits(model, 2)
    assert all(m.splits == 2 for m in model.modules() if isinstance(m, SubBatchNorm3d))
    torch.testing.assert_close(model(clips), torch.stack(alone, 1).flatten(0, 1))


def test_head_and_backbone_are_all_parameters():
    model = small()
    head, backbone = list(model.head_parameters()), list(model.backbone_parameters())
    named = {id(p): name for name, p in model.named_parameters()}
    assert {named[id(p)] for p in head} == {k for k in named.values() if "proj" in k}
    assert all(named[id(p)].startswith(model.classifier) for p in head)
    assert len({id(p) for p in head + backbone}) == len(named)
    model.reset_classifier(3, torch.Generator().manual_seed(0))
    assert model(torch.zeros(1, 3, 2, 24, 24)).shape == (1, 3, 2)


def test_clips_are_mixed_at_any_stage():
    model, mixing = small().eval(), augment.create("mixup")
    clips = torch.randn(2, 3, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    targets = torch.eye(5)[:2, :, None].repeat(1, 1, 8)
    for level in range(1 + len(model.layers)):
        logits, soft = augment.manifold(
            mixing, model, clips, targets, torch.Generator().manual_seed(1), level=level
        )
        assert logits.shape == soft.shape == (2, 5, 8)


def test_a_size_is_complete():
    with pytest.raises(ValueError, match="one of each for every stage"):
        create("slow_r50", 2, widths=(8, 16))
