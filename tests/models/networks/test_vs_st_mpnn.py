"""Messages between boxes and labels: what they compute, what they see, and what never matters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ssdet.data.features.detections import ABSENT, ACTOR, OBJECT, Detections
from ssdet.models import create
from ssdet.models.networks.vs_st_mpnn import Labels, Neighbours, Relation, Symbolic, geometry

SMALL: dict[str, Any] = {"in_features": 6, "width": 16, "symbols": 8}


def detections(steps: int = 6, places: int = 5, lengths: tuple[int, ...] = (6, 3)) -> Detections:
    """Random boxes of every kind."""
    draws = torch.Generator().manual_seed(steps)
    shape = len(lengths), steps, places
    corner = torch.rand(*shape, 2, generator=draws) * 0.6
    size = 0.1 + 0.3 * torch.rand(*shape, 2, generator=draws)
    kinds = torch.randint(-1, 2, shape, generator=draws)
    features = torch.randn(*shape, 6, generator=draws)
    return Detections(
        torch.cat([corner, corner + size], -1), kinds, features, torch.tensor(lengths)
    )


def built(classes: int = 3, **options: Any) -> nn.Module:
    draws = torch.Generator().manual_seed(1)
    return create("vs_st_mpnn", classes, generator=draws, **SMALL | options)


def test_geometry_of_edges() -> None:
    boxes = detections(1, 6, (1,)).boxes_BTN4
    to, sender = boxes[:, :, :2], boxes[:, :, 2:]
    edges = geometry(to, sender, torch.tensor([0.0, 0.0, -1.0, 1.0]))
    assert edges.shape == (1, 1, 2, 4, 6)
    torch.testing.assert_close(edges[0, 0, ..., 4], box_iou(to[0, 0], sender[0, 0]))
    for i, a in enumerate(to[0, 0].tolist()):
        for j, b in enumerate(sender[0, 0].tolist()):
            size_a, size_b = ((box[2] - box[0], box[3] - box[1]) for box in (a, b))
            expected = torch.tensor([
                (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2, (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2,
                size_b[0] / size_a[0], size_b[1] / size_a[1],
            ])  # fmt: skip
            expected[2:] = expected[2:].log()
            torch.testing.assert_close(edges[0, 0, i, j, :4], expected)
    assert edges[0, 0, :, :, 5].tolist() == [[0, 0, -1, 1]] * 2


def test_a_message_is_the_sum_over_linked_senders() -> None:
    draws = torch.Generator().manual_seed(0)
    layer = Relation(8)
    to, sender = torch.randn(1, 1, 3, 8, generator=draws), torch.randn(1, 1, 4, 8, generator=draws)
    edges = torch.randn(1, 1, 3, 4, 6, generator=draws)
    linked = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
    found = layer(to, sender, Neighbours(edges, linked[None, None]))[0, 0]
    assert not found[1].any()  # linked to nobody
    for i in (0, 2):
        scores, values = [], []
        for j in linked[i].nonzero().flatten().tolist():
            product = layer.query(to[0, 0, i]) @ layer.key(sender[0, 0, j]) / 2**0.5
            scores.append(product + layer.edge(edges[0, 0, i, j])[0])
            values.append(layer.message.weight @ torch.cat([sender[0, 0, j], edges[0, 0, i, j]]))
        attention = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        expected = sum(weight * value for weight, value in zip(attention, values, strict=True))
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4)


def test_labels_reason_as_the_formula_says() -> None:
    """h_i + U A_i ReLU(G Ĉ (mean_i A_ik V h_i + s_k)), node by node."""
    draws = torch.Generator().manual_seed(0)
    layer, labels = Symbolic(6, 4), Labels(3, 6, 4)
    labels.cooccurrence_KK = torch.rand(3, 3, generator=draws)
    h = torch.randn(1, 1, 4, 6, generator=draws)
    there = torch.tensor([True, False, True, True])
    assigned = [torch.softmax(labels.embedding_KS @ layer.assign(h[0, 0, i]), 0) for i in range(4)]
    evidence = []
    for k in range(3):
        heard = [assigned[i][k] * layer.gather(h[0, 0, i]) for i in (0, 2, 3)]
        evidence.append(sum(heard) / 3 + labels.embedding_KS[k])
    joined = [sum(labels.cooccurrence_KK[k, j] * evidence[j] for j in range(3)) for k in range(3)]
    symbols = [torch.relu(layer.reason(row)) for row in joined]
    found = layer(h, there[None, None], labels)
    for i in range(4):
        answer = layer.answer(sum(assigned[i][k] * symbols[k] for k in range(3)))
        torch.testing.assert_close(found[0, 0, i], h[0, 0, i] + answer, atol=1e-5, rtol=1e-4)


def test_cooccurrence_by_hand() -> None:
    model = built(4)
    assert torch.equal(model.labels.cooccurrence_KK, torch.eye(4))
    logits = model(detections())
    first = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    second = [[1], [0], [1], [0]]
    model.set_cooccurrence(torch.tensor(part).numpy() for part in (first, second))
    expected = [[3 / 5, 1 / 5, 1 / 5, 0], [1 / 3, 2 / 3, 0, 0], [1 / 2, 0, 1 / 2, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(model.labels.cooccurrence_KK, torch.tensor(expected))
    assert not torch.allclose(model(detections()), logits)
    assert "labels.cooccurrence_KK" in model.state_dict()
    with pytest.raises(ValueError, match=r"targets \(3, 2\), expected \[4 classes, steps\]"):
        model.set_cooccurrence([torch.zeros(3, 2)])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_number_of_steps(steps) -> None:
    logits = built()(detections(steps, lengths=(steps, 1)))
    assert logits.shape == (2, 3, steps) and logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [1, 4])
def test_padding_changes_no_valid_step(length, training) -> None:
    model = built().train(training)
    batch = detections(7, 5, (7, length))
    alone = Detections(*(part[1:, :length] for part in batch[:3]), batch.lengths_B[1:])
    expected = model(alone)[0]
    # Whatever stands where nothing is: further places, steps past the end, absent boxes.
    wide = Detections(
        nn.functional.pad(batch.boxes_BTN4, (0, 0, 0, 2), value=torch.nan),
        nn.functional.pad(batch.kinds_BTN, (0, 2), value=ABSENT),
        nn.functional.pad(batch.features_BTND, (0, 0, 0, 2), value=torch.inf),
        batch.lengths_B,
    )
    for part in wide[:3]:
        part[1, length:] = OBJECT
    wide.features_BTND[wide.kinds_BTN == ABSENT] = torch.nan
    found = model(wide)
    torch.testing.assert_close(found[1, :, :length], expected, atol=1e-5, rtol=1e-4)
    found[1, :, :length].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_boxes_need_no_tracks_and_no_fixed_camera() -> None:
    """Places in another order at every step, and all boxes moved: the same scores."""
    model, batch = built(), detections()
    draws = torch.Generator().manual_seed(0)
    order = torch.rand(2, 6, 5, generator=draws).argsort(2)
    shuffled: list[Tensor] = []
    for part in batch[:3]:
        index = order if part.ndim == 3 else order[..., None].expand(part.shape)
        shuffled.append(part.gather(2, index))
    expected = model(batch)
    found = model(Detections(*shuffled, batch.lengths_B))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    moved = model(batch._replace(boxes_BTN4=batch.boxes_BTN4 + 0.1))
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-3)
    back = model(Detections(*(part.flip(1) for part in batch[:3]), torch.tensor([6, 6])))
    there = model(batch._replace(lengths_B=torch.tensor([6, 6])))
    assert not torch.allclose(back.flip(2), there, atol=1e-4)  # time has a direction


def test_a_step_without_actors_has_the_bias_alone() -> None:
    model, batch = built(), detections()
    batch.kinds_BTN[0, 2] = batch.kinds_BTN[0, 2].masked_fill(
        batch.kinds_BTN[0, 2] == ACTOR, OBJECT
    )
    torch.testing.assert_close(model(batch)[0, :, 2], model.labels.score.bias)


@pytest.mark.parametrize("rounds", [1, 2])
def test_each_round_reaches_a_step_further(rounds) -> None:
    model, batch = built(rounds=rounds), detections(7, 3, (7,))
    batch.kinds_BTN[:] = torch.tensor([ACTOR, OBJECT, OBJECT])
    features = batch.features_BTND.clone()
    features[:, 3] += 1
    changed = (model(batch) != model(batch._replace(features_BTND=features)))[0].any(0)
    assert changed.tolist() == [abs(t - 3) <= rounds for t in range(7)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype) -> None:
    model, batch = built().eval(), detections()
    with torch.autocast("cpu", dtype=dtype):
        found = model(batch)
    torch.testing.assert_close(found.float(), model(batch), atol=0.1, rtol=0.1)


def test_size_by_hand() -> None:
    width, symbols, classes, features = 512, 256, 157, 432
    project = features * width + width + 2 * width + 2 * width
    relation = 2 * (width * width // 4 + width // 4) + (6 * 32 + 32 + 32 + 1) + (width + 6) * width
    update = 2 * (3 * width * width + 3 * width)
    symbolic = 3 * width * symbols + symbols + width + symbols**2 + symbols
    labels = classes * (symbols + width + 1)
    with torch.device("meta"):
        model = create("vs_st_mpnn", classes)
    expected = project + 4 * relation + update + symbolic + labels
    assert sum(p.numel() for p in model.parameters()) == expected == 3_967_393


def test_another_number_of_classes() -> None:
    model = built(3)
    model.reset_classifier(5, torch.Generator().manual_seed(2))
    assert model(detections()).shape == (2, 5, 6)
    fresh = {n: p.shape for n, p in built(5).state_dict().items()}
    assert {n: p.shape for n, p in model.state_dict().items()} == fresh
    other = {n: p.shape for n, p in built(3).state_dict().items()}
    assert all(n.startswith(model.classifier) for n in fresh if fresh[n] != other[n])
