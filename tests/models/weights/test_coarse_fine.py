"""Checkpoints of single streams and published names, into networks of two streams."""

import torch

from ssdet.models import create, load_weights


def tiny(classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return create("coarse_fine", classes, generator=generator, backbone="x3d_tiny", grid=3)


def test_weights_of_both_streams_load_where_they_belong():
    model = tiny()
    coarse, fine = (create("x3d_tiny", 5).state_dict() for _ in range(2))
    report = load_weights(model, coarse)
    assert not report.skipped
    started = {name.split(".")[0] for name in report.reinitialised}
    assert started == {"grid_pool", "fusion", "fine"}
    assert not load_weights(model.fine, fine).skipped
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in coarse.items())
    assert all(torch.equal(state[f"fine.{name}"], value) for name, value in fine.items())


def test_a_state_of_other_classes_keeps_all_but_what_depends_on_them():
    source, model = tiny(seed=1), tiny(classes=7)
    report = load_weights(model, source.state_dict())
    assert report.skipped == report.reinitialised or set(report.skipped) == set(
        report.reinitialised
    )
    assert {name.rsplit(".", 1)[0] for name in report.reinitialised} == {
        "blocks.4.proj", "fusion.rw5.fc2", "fusion.rw5.fc4", "fine.blocks.4.proj",
    }  # fmt: skip


def test_published_names_load(golden):
    """The x3d golden's four stages, and fusion and Grid Pool by the names of MODELS.md 5."""
    data = golden("x3d_tiny")
    state = {k[2:]: torch.from_numpy(data[k]) for k in data.files if k.startswith("w/")}
    planes = ((16, 8), (24, 12), (32, 16), (48, 24))
    toy = {"widths": planes, "depths": (1, 2, 3, 2), "stem": 8}
    model = create("coarse_fine", 6, backbone="x3d", backbone_options=toy)
    own = model.state_dict()
    extra = {}
    for name, value in own.items():
        if name.startswith("fusion."):
            extra[name.removeprefix("fusion.")] = torch.randn_like(value)
        elif name.startswith("grid_pool.") and ".split_" not in name:
            name = name.replace("grid_pool.", "pool_1.")
            name = name.replace(".running_", ".bn.running_").replace(".num_", ".bn.num_")
            extra[name] = torch.rand_like(value) if value.is_floating_point() else value
    report = load_weights(model, {**state, **extra})
    assert report.layout == "x3d_multigrid"
    fresh = [name for name in report.reinitialised if ".split_" not in name]
    assert fresh and all(name.startswith("fine.") for name in fresh)
    assert all(".split_" in name for name in report.skipped)
    state = model.state_dict()
    assert torch.equal(state["fusion.mix4.conv_at2.bias"], extra["mix4.conv_at2.bias"])
    assert torch.equal(state["grid_pool.bn2.running_var"], extra["pool_1.bn2.bn.running_var"])
    assert len(extra) == 5 * 12 + 4 * 4 + 2 * 3 + 2 * 5
