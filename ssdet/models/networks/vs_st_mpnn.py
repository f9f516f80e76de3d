"""VS-ST-MPNN, message passing between detections and between labels: see `vs_st_mpnn`."""

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.data.features.detections import ACTOR, OBJECT, Detections
from ssdet.models.registry import register, seeded

_EDGE = 6
_HIDDEN = 32


class Neighbours(NamedTuple):
    """M possible senders for each of N receivers of every step."""

    edges_BTNME: Tensor
    """Relative geometry of the pairs, see `geometry`."""
    linked_BTNM: Tensor
    """bool: whether the receiver gets a message of the sender."""


def geometry(to_BTN4: Tensor, from_BTM4: Tensor, ahead_M: Tensor) -> Tensor:
    """Edges [B, T, N, M, 6]: sender's centre minus receiver's (x, y), log ratios of width and of
    height, intersection over union, and temporal offset in steps."""
    to, sender = to_BTN4[:, :, :, None], from_BTM4[:, :, None]
    # Absent boxes are empty: without the clamp their size ratio would be 0 / 0.
    size = (to[..., 2:] - to[..., :2]).clamp(min=1e-3)
    other = (sender[..., 2:] - sender[..., :2]).clamp(min=1e-3)
    centre = (sender[..., 2:] + sender[..., :2] - to[..., 2:] - to[..., :2]) / 2
    start = torch.maximum(to[..., :2], sender[..., :2])
    stop = torch.minimum(to[..., 2:], sender[..., 2:])
    shared = (stop - start).clamp(min=0).prod(-1, keepdim=True)
    iou = shared / (size.prod(-1, keepdim=True) + other.prod(-1, keepdim=True) - shared)
    ahead = ahead_M[:, None].expand(*iou.shape)
    return torch.cat([centre, (other / size).log(), iou, ahead], -1)


class Relation(nn.Module):
    """Messages along edges of one type: m_i = Σ_j attention_ij · W [h_j, e_ij].

    Attention is a softmax over the linked j of a scaled product of i and j plus a small network of
    the edge; 0 for a node without links.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width // 4), nn.Linear(width, width // 4)
        self.edge = nn.Sequential(nn.Linear(_EDGE, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))
        self.message = nn.Linear(width + _EDGE, width, bias=False)

    def forward(self, to_BTNC: Tensor, from_BTMC: Tensor, among: Neighbours) -> Tensor:
        query, key = self.query(to_BTNC), self.key(from_BTMC)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = scores.float() + self.edge(among.edges_BTNME).squeeze(-1).float()
        lowest = torch.finfo(scores.dtype).min
        attention_BTNM = scores.masked_fill(~among.linked_BTNM, lowest).softmax(-1)
        attention_BTNM = attention_BTNM.masked_fill(~among.linked_BTNM, 0)
        # W is linear, so it is applied after the sum over senders.
        mean_BTNE = (attention_BTNM.unsqueeze(-2) @ among.edges_BTNME).squeeze(-2)
        return self.message(torch.cat([attention_BTNM @ from_BTMC, mean_BTNE], -1))


class Visual(nn.Module):
    """Rounds of typed messages between boxes, each followed by the same gated update.

    Within a step from objects to actors and from actors to objects; between neighbouring steps
    among actors and among objects, for any order of the boxes.
    """

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        names = ("to_actor", "to_object", "actors", "objects")
        self.relations = nn.ModuleDict({name: Relation(width) for name in names})
        self.update = nn.GRUCell(width, width)

    def forward(self, h_BTNC: Tensor, detections: Detections) -> Tensor:
        within, across = _links(detections)
        for _ in range(self.rounds):
            near_BTMC = torch.cat([_step(h_BTNC, -1), _step(h_BTNC, 1)], 2)
            messages = [self.relations[name](h_BTNC, h_BTNC, within[name]) for name in within]
            messages += [self.relations[name](h_BTNC, near_BTMC, across[name]) for name in across]
            sum_BTNC = torch.stack(messages).sum(0)
            h_BTNC = self.update(sum_BTNC.flatten(0, 2), h_BTNC.flatten(0, 2)).view_as(h_BTNC)
        return h_BTNC


def _links(detections: Detections) -> tuple[dict[str, Neighbours], dict[str, Neighbours]]:
    there = detections.present_BTN
    boxes = detections.boxes_BTN4.masked_fill(~there[..., None], 0)
    actors, objects = (there & (detections.kinds_BTN == kind) for kind in (ACTOR, OBJECT))
    ahead = boxes.new_tensor([0.0, -1.0, 1.0]).repeat_interleave(boxes.shape[2])
    now, near = ahead.split([boxes.shape[2], 2 * boxes.shape[2]])
    edges = geometry(boxes, boxes, now)
    around = geometry(boxes, torch.cat([_step(boxes, -1), _step(boxes, 1)], 2), near)

    def pairs(to: Tensor, sender: Tensor) -> Tensor:
        return to[..., None] & sender[:, :, None]

    def next_to(kind: Tensor) -> Tensor:
        return pairs(kind, torch.cat([_step(kind, -1), _step(kind, 1)], 2))

    within = {"to_actor": pairs(actors, objects), "to_object": pairs(objects, actors)}
    across = {"actors": next_to(actors), "objects": next_to(objects)}
    return (
        {name: Neighbours(edges, linked) for name, linked in within.items()},
        {name: Neighbours(around, linked) for name, linked in across.items()},
    )


def _step(x_BT: Tensor, offset: int) -> Tensor:
    """Row t is that of t ± 1, zeros beyond the ends."""
    empty = torch.zeros_like(x_BT[:, :1])
    return torch.cat([empty, x_BT[:, :-1]] if offset < 0 else [x_BT[:, 1:], empty], 1)


class Labels(nn.Module):
    """Parameters whose shape depends on K: label embedding and co-occurrence, classifier."""

    cooccurrence_KK: Tensor

    def __init__(self, num_classes: int, width: int, symbols: int) -> None:
        super().__init__()
        self.embedding_KS = nn.Parameter(torch.randn(num_classes, symbols) * symbols**-0.5)
        self.score = nn.Linear(width, num_classes)
        self.register_buffer("cooccurrence_KK", torch.eye(num_classes))


class Symbolic(nn.Module):
    """Soft assignment of nodes to labels, graph convolution over labels, and readout to nodes.

    A_ik = softmax_k(h_i W s_k); z_k = mean_i A_ik V h_i + s_k; Z = ReLU(Ĉ z G); h_i + A_i Z U.
    """

    def __init__(self, width: int, symbols: int) -> None:
        super().__init__()
        self.assign = nn.Linear(width, symbols, bias=False)
        self.gather = nn.Linear(width, symbols)
        self.reason = nn.Linear(symbols, symbols)
        self.answer = nn.Linear(symbols, width)

    def forward(self, h_BTNC: Tensor, present_BTN: Tensor, labels: Labels) -> Tensor:
        assigned_BTNK = (self.assign(h_BTNC) @ labels.embedding_KS.T).softmax(-1)
        share_BTN1 = _shares(present_BTN)[..., None]
        z_BTKS = (assigned_BTNK * share_BTN1).transpose(-1, -2) @ self.gather(h_BTNC)
        z_BTKS = F.relu(self.reason(labels.cooccurrence_KK @ (z_BTKS + labels.embedding_KS)))
        return h_BTNC + self.answer(assigned_BTNK @ z_BTKS)


def _shares(present_BTN: Tensor) -> Tensor:
    """Weight of each node in the mean of the present ones."""
    present = present_BTN.float()
    return present / present.sum(-1, keepdim=True).clamp(min=1)


class VisualSymbolicMPNN(nn.Module):
    """`Detections` -> logits [B, K, T], one column per step; built by `vs_st_mpnn`."""

    takes: ClassVar[str] = "detections"
    classifier = "labels."
    """Prefix of the parameters whose shape depends on the number of classes."""

    def __init__(
        self, num_classes: int, in_features: int, width: int, symbols: int, rounds: int
    ) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(in_features, width), nn.LayerNorm(width))
        self.kinds = nn.Embedding(2, width)
        self.visual = Visual(width, rounds)
        self.symbolic = Symbolic(width, symbols)
        self.labels = Labels(num_classes, width, symbols)

    def forward(self, detections: Detections) -> Tensor:
        there = detections.present_BTN
        features = detections.features_BTND.masked_fill(~there[..., None], 0)
        kinds_BTN = detections.kinds_BTN.masked_fill(~there, ACTOR)
        h_BTNC = self.project(features) + self.kinds(kinds_BTN)
        h_BTNC = self.visual(h_BTNC, detections)
        h_BTNC = self.symbolic(h_BTNC, there, self.labels)
        actors_BTN = there & (detections.kinds_BTN == ACTOR)
        pooled_BTC = (_shares(actors_BTN)[:, :, None] @ h_BTNC).squeeze(2)
        return self.labels.score(pooled_BTC).transpose(1, 2)

    def set_cooccurrence(self, targets: Iterable[Any]) -> None:
        """Set the edges between labels from 0/1 targets [K, T] of training videos: row-normalised
        co-occurrence at the same step; a label without a positive is connected to itself alone, as
        is every label initially. ValueError for another K.
        """
        old_KK = self.labels.cooccurrence_KK
        counts_KK = torch.zeros(old_KK.shape, dtype=torch.float64)
        for target in targets:
            target_KT = torch.as_tensor(target, dtype=torch.float64)
            if target_KT.ndim != 2 or len(target_KT) != len(counts_KK):
                raise ValueError(
                    f"targets {tuple(target_KT.shape)}, expected [{len(counts_KK)} classes, steps]"
                )
            counts_KK += target_KT @ target_KT.T
        never_K = (counts_KK.diagonal() == 0).double()
        counts_KK += never_K.diag()
        old_KK.copy_(counts_KK / counts_KK.sum(1, keepdim=True))

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the parameters whose shape depends on the number of classes by fresh ones."""
        symbols, score = self.labels.embedding_KS.shape[1], self.labels.score
        with seeded(generator):
            fresh = Labels(num_classes, score.in_features, symbols)
        self.labels = fresh.to(score.weight)


@register
def vs_st_mpnn(
    num_classes: int,
    *,
    in_features: int = 432,
    width: int = 512,
    symbols: int = 256,
    rounds: int = 3,
) -> VisualSymbolicMPNN:
    """VS-ST-MPNN: a redesign from the paper's description, not a reproduction.

    Mavroudi et al., Representation Learning on Visual-Symbolic Graphs for Video Understanding (ECCV
    2020, arXiv 1905.07385). in_features: channels of the boxes' features; symbols: width of the
    label graph, whose edges `set_cooccurrence` sets.
    """
    return VisualSymbolicMPNN(num_classes, in_features, width, symbols, rounds)
