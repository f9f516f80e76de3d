"""The stacked graph convolutions: what they compute, what they see, and what never matters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssdet.data.features.detections import ABSENT, ACTOR, OBJECT, Detections
from ssdet.models import create
from ssdet.models.networks.stgcn import Edges, Graph, RelationConv

SMALL: dict[str, Any] = {"in_features": 6, "width": 16}


def detections(steps: int = 7, places: int = 5, lengths: tuple[int, ...] = (7, 4), **segments: int):
    """Random boxes of every kind, with vectors of the whole picture of these widths."""
    draws = torch.Generator().manual_seed(steps)
    shape = len(lengths), steps, places
    corner = torch.rand(*shape, 2, generator=draws) * 0.6
    size = 0.1 + 0.3 * torch.rand(*shape, 2, generator=draws)
    return Detections(
        torch.cat([corner, corner + size], -1),
        torch.randint(-1, 2, shape, generator=draws),
        torch.randn(*shape, 6, generator=draws),
        torch.tensor(lengths),
        **{f"{n}_BTD": torch.randn(*shape[:2], w, generator=draws) for n, w in segments.items()},
    )


def built(classes: int = 3, **options: Any) -> nn.Module:
    return create("stgcn", classes, generator=torch.Generator().manual_seed(1), **SMALL | options)


def test_the_convolution_is_the_sum_over_relations() -> None:
    """Σ_p Â_p X W_p with each Â_p written out over all nodes of all steps."""
    draws = torch.Generator().manual_seed(0)
    steps, nodes, width = 6, 4, 5
    present = torch.rand(1, steps, nodes, generator=draws) > 0.3
    pairs = present[..., None] & present[:, :, None] & ~torch.eye(nodes, dtype=torch.bool)
    half = torch.rand(1, steps, nodes, nodes, generator=draws) > 0.5
    touching = pairs & (half | half.transpose(2, 3))
    graph = Graph(present, touching, pairs & ~touching)
    layer = RelationConv(width)
    x = torch.randn(1, steps, nodes, width, generator=draws) * present[..., None]

    def dense(relation: int) -> Tensor:
        matrix = torch.zeros(steps, nodes, steps, nodes)
        for t in range(steps):
            if relation == 0:
                matrix[t, :, t] = torch.eye(nodes)
            elif relation < 3:
                matrix[t, :, t] = (touching, pairs & ~touching)[relation - 1][0, t].float()
            elif 0 <= (other := t + (-2, -1, 1, 2)[relation - 3]) < steps:
                matrix[t, :, other] = present[0, other].float()
        flat = matrix.view(steps * nodes, steps * nodes)
        return flat / flat.sum(1, keepdim=True).clamp(min=1)

    weights = [*layer.spatial.weight.split(width, 1), *layer.temporal.weight.split(width, 1)]
    flat = x.view(steps * nodes, width)
    expected = sum(dense(p) @ flat @ weight.T for p, weight in enumerate(weights))
    found = layer(x, Edges.of(graph)).view(steps * nodes, width) - layer.spatial.bias
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_two_steps_become_one() -> None:
    present = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]]).bool()
    touching = torch.zeros(1, 5, 3, 3, dtype=torch.bool)
    touching[0, 1, 0, 1] = touching[0, 1, 1, 0] = True
    pairs = present[..., None] & present[:, :, None] & ~torch.eye(3, dtype=torch.bool)
    half = Graph(present, touching, pairs & ~touching).halved()
    assert half.present_BTM.tolist() == [[[1, 1, 0], [0, 1, 1], [1, 0, 1]]]
    assert half.touching_BTMM.nonzero().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]
    assert half.separate_BTMM.nonzero().tolist() == [[0, 1, 1, 2], [0, 1, 2, 1],
                                                  [0, 2, 0, 2], [0, 2, 2, 0]]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9])
def test_any_number_of_steps(steps) -> None:
    logits = built()(detections(steps, lengths=(steps, 1)))
    assert logits.shape == (2, 3, steps) and logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_padding_changes_no_valid_step(length, training) -> None:
    model = built(rgb=4).train(training)
    batch = detections(9, 5, (9, length), rgb=4)
    alone = Detections(*(part if part is None else part[1:, :length] for part in batch[:3]),
                       batch.lengths_B[1:], batch.rgb_BTD[1:, :length])  # fmt: skip
    expected = model(alone)[0]
    # Whatever stands where nothing is: further places, steps past the end, absent boxes.
    wide = Detections(
        nn.functional.pad(batch.boxes_BTN4, (0, 0, 0, 2), value=torch.nan),
        nn.functional.pad(batch.kinds_BTN, (0, 2), value=ABSENT),
        nn.functional.pad(batch.features_BTND, (0, 0, 0, 2), value=torch.inf),
        batch.lengths_B,
        batch.rgb_BTD,
    )
    for part in wide[:3]:
        part[1, length:] = OBJECT
    wide.rgb_BTD[1, length:] = torch.nan
    wide.features_BTND[wide.kinds_BTN == ABSENT] = torch.nan
    torch.testing.assert_close(model(wide)[1, :, :length], expected, atol=1e-5, rtol=1e-4)


def test_every_stack_is_scored_and_the_last_is_the_answer() -> None:
    model, batch = built(stacks=3), detections()
    stages = model.stages(batch)
    assert len(stages) == 3 and torch.equal(stages[-1], model(batch))
    assert not torch.allclose(stages[0], stages[1])
    stages[0].sum().backward()
    used = {name.split(".")[1] for name, p in model.named_parameters()
            if name.startswith("stacks") and p.grad is not None}  # fmt: skip
    assert used == {"0"}


TYPES = [{"in_features": 0, "rgb": 4}, {"in_features": 0, "rgb": 4, "flow": 3, "scene": 2},
         {"scene": 2}, {"rgb": 4, "flow": 3, "scene": 2}]  # fmt: skip


@pytest.mark.parametrize("types", TYPES)
def test_any_types_of_nodes(types) -> None:
    model = built(**types)
    batch = detections(rgb=4, flow=3, scene=2)
    logits = model(batch)
    for name in ("rgb", "flow", "scene"):
        other = batch._replace(**{f"{name}_BTD": getattr(batch, f"{name}_BTD") + 1})
        assert torch.equal(model(other), logits) == (name not in types)
    moved = batch._replace(features_BTND=batch.features_BTND + 1)
    assert torch.equal(model(moved), logits) == (types.get("in_features") == 0)


def test_types_that_are_not_given() -> None:
    with pytest.raises(ValueError, match="no flow features, the network has nodes for them"):
        built(rgb=4, flow=3)(detections(rgb=4))
    with pytest.raises(ValueError, match="expected nodes of at least one type"):
        built(in_features=0)


def test_places_are_alike() -> None:
    model, batch = built(), detections()
    order = torch.tensor([3, 0, 4, 1, 2])
    other = Detections(*(part[:, :, order] for part in batch[:3]), batch.lengths_B)
    torch.testing.assert_close(model(other), model(batch), atol=1e-5, rtol=1e-4)


def test_overlap_and_kind_are_seen() -> None:
    """Apart and side by side: the same boxes, places and features, another relation."""

    def of(second: list[float], kind: int = OBJECT) -> Detections:
        boxes = torch.tensor([[[[0.1, 0.1, 0.4, 0.4], second]]])
        kinds = torch.tensor([[[ACTOR, kind]]])
        return Detections(boxes, kinds, torch.ones(1, 1, 2, 6), torch.tensor([1]))

    model = built()
    touching, apart, further = (model(of([x, 0.1, x + 0.31, 0.4])) for x in (0.39, 0.41, 0.43))
    assert (touching - apart).norm() > 3 * (apart - further).norm()
    apart = [0.41, 0.1, 0.72, 0.4]
    assert not torch.allclose(model(of(apart)), model(of(apart, ACTOR)), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype) -> None:
    model, batch = built().eval(), detections()
    with torch.autocast("cpu", dtype=dtype):
        found = model(batch)
    torch.testing.assert_close(found.float(), model(batch), atol=0.1, rtol=0.1)


def test_size_by_hand() -> None:
    width, classes, features = 256, 157, 432
    block = (3 * width**2 + width) + 4 * width**2 + (3 * width**2 + width) + 2 * width
    # RoI features, centre, size and actor or not, then scale and shift of the normalisation.
    project = (features + 5) * width + width + 2 * width
    ends = 2 * (width * classes + classes) + classes * width + width
    with torch.device("meta"):
        model = create("stgcn", classes)
    assert sum(p.numel() for p in model.parameters()) == 2 * 4 * block + project + ends == 5_484_858


def test_another_number_of_classes() -> None:
    model = built(3)
    kept = {n: p for n, p in model.named_parameters() if not n.startswith(model.classifier)}
    model.reset_classifier(5, torch.Generator().manual_seed(2))
    assert model(detections()).shape == (2, 5, 7)
    assert all(p is kept[n] for n, p in model.named_parameters() if n in kept)
    fresh = {n: p.shape for n, p in built(5).named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == fresh
    other = {n: p.shape for n, p in built(3).named_parameters()}
    assert all(n.startswith(model.classifier) for n in fresh if fresh[n] != other[n])
