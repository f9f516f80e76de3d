"""Stacked-STGCN, graph convolutions over detections: a redesign, see `stgcn`."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.data.features.detections import ACTOR, SEGMENTS, Detections
from ssdet.models.registry import register, seeded

OFFSETS = (-2, -1, 1, 2)
"""Temporal offsets of edges in steps."""
_GEOMETRY = 5


class Graph(NamedTuple):
    """M nodes of every step: their presence, and the relations between pairs of a step."""

    present_BTM: Tensor
    touching_BTMM: Tensor
    """bool: two boxes that overlap."""
    separate_BTMM: Tensor
    """bool: all other pairs."""

    def halved(self) -> "Graph":
        """Merge every two steps: nodes and relations of either."""
        present, touching, separate = (_either(part) for part in self)
        return Graph(present, touching, separate & ~touching)


class Edges(NamedTuple):
    """Edge weights of a graph: rows sum to 1, or to 0 for a node without neighbours."""

    present_BTM1: Tensor
    touching_BTMM: Tensor
    separate_BTMM: Tensor
    weight_BT1M: Tensor
    """Weight of each node in the mean of its step."""

    @classmethod
    def of(cls, graph: Graph) -> "Edges":
        """Row-normalised relations of a graph."""
        present, touching, separate = (part.float() for part in graph)
        return cls(
            present[..., None],
            _normalised(touching),
            _normalised(separate),
            _normalised(present[:, :, None]),
        )


def _either(pairs: Tensor) -> Tensor:
    odd = pairs.shape[1] % 2
    padded = torch.cat([pairs, torch.zeros_like(pairs[:, :odd])], 1)
    return padded[:, ::2] | padded[:, 1::2]


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


class RelationConv(nn.Module):
    """Σ_p Â_p X W_p over itself, boxes that overlap, other nodes of the step, and steps ±1, ±2.

    Along time every node is connected to all nodes of the other step, that is, to their mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Linear(3 * width, width)
        self.temporal = nn.Linear(len(OFFSETS) * width, width, bias=False)

    def forward(self, x_BTMC: Tensor, edges: Edges) -> Tensor:
        around = [x_BTMC, edges.touching_BTMM @ x_BTMC, edges.separate_BTMM @ x_BTMC]
        mean_BTC = (edges.weight_BT1M @ x_BTMC).squeeze(2)
        steps = [_shifted(mean_BTC, offset) for offset in OFFSETS]
        spread_BTC = self.temporal(torch.cat(steps, -1))
        return self.spatial(torch.cat(around, -1)) + spread_BTC.unsqueeze(2)


def _shifted(x_BTC: Tensor, offset: int) -> Tensor:
    """Row t is that of t + offset, 0 beyond the ends."""
    before, after = max(-offset, 0), max(offset, 0)
    return F.pad(x_BTC, (0, 0, before, after))[:, after : after + x_BTC.shape[1]]


class Block(nn.Module):
    """Graph convolution, temporal convolution of kernel 3, normalisation, ReLU, residual."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.relations = RelationConv(width)
        self.temporal = nn.Conv2d(width, width, (3, 1), (stride, 1), (1, 0))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTMC: Tensor, edges: Edges, after: Edges) -> Tensor:
        mixed_BTMC = self.relations(x_BTMC, edges) * edges.present_BTM1
        mixed_BTMC = self.temporal(mixed_BTMC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        fresh_BTMC = F.relu(self.norm(mixed_BTMC))
        return (x_BTMC[:, :: self.stride] + fresh_BTMC) * after.present_BTM1


class Hourglass(nn.Module):
    """Two blocks that halve the steps, and two that double them again, with skips added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Block(width, stride=2) for _ in range(2))
        self.up = nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, x_BTMC: Tensor, full: Edges, half: Edges, quarter: Edges) -> Tensor:
        middle = self.down[0](x_BTMC, full, half)
        low = self.down[1](middle, half, quarter)
        middle = self.up[0](middle + _doubled(low, middle), half, half)
        return self.up[1](x_BTMC + _doubled(middle, x_BTMC), full, full)


def _doubled(x_BTMC: Tensor, like: Tensor) -> Tensor:
    return x_BTMC.repeat_interleave(2, 1)[:, : like.shape[1]]


class Readouts(nn.Module):
    """Layers whose shape depends on K: a classifier per stack, and its feedback to the next."""

    def __init__(self, width: int, num_classes: int, stacks: int) -> None:
        super().__init__()
        self.score = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(stacks))
        self.feedback = nn.ModuleList(nn.Linear(num_classes, width) for _ in range(stacks - 1))


class StackedSTGCN(nn.Module):
    """`Detections` -> logits [B, K, T], one column per step; built by `stgcn`.

    ValueError without the whole-frame vectors that it was built for.
    """

    takes: ClassVar[str] = "detections"
    classifier = "readouts."
    """Prefix of the parameters whose shape depends on the number of classes."""

    def __init__(
        self, num_classes: int, widths: dict[str, int], objects: int, width: int, stacks: int
    ) -> None:
        super().__init__()
        self.width = width
        self.segments = nn.ModuleDict({n: _projection(w, width) for n, w in widths.items()})
        self.objects = _projection(objects + _GEOMETRY, width) if objects else None
        self.stacks = nn.ModuleList(Hourglass(width) for _ in range(stacks))
        self.readouts = Readouts(width, num_classes, stacks)

    def forward(self, detections: Detections) -> Tensor:
        return self.stages(detections)[-1]

    def stages(self, detections: Detections) -> list[Tensor]:
        """Logits [B, K, T] after every stack; all are trained, and `forward` gives the last."""
        x_BTMC, graph = self._nodes(detections)
        levels = graph, graph.halved(), graph.halved().halved()
        edges = [Edges.of(level) for level in levels]
        logits: list[Tensor] = []
        for number, stack in enumerate(self.stacks):
            if logits:
                feedback_BTC = self.readouts.feedback[number - 1](logits[-1].transpose(1, 2))
                x_BTMC = (x_BTMC + feedback_BTC.unsqueeze(2)) * edges[0].present_BTM1
            x_BTMC = stack(x_BTMC, *edges)
            pooled_BTC = (edges[0].weight_BT1M @ x_BTMC).squeeze(2)
            logits.append(self.readouts.score[number](pooled_BTC).transpose(1, 2))
        return logits

    def _nodes(self, detections: Detections) -> tuple[Tensor, Graph]:
        mask_BT = detections.mask_BT
        nodes, present, boxes = [], [], []
        for name, project in self.segments.items():
            nodes.append(project(_segment(detections, name))[:, :, None])
            present.append(mask_BT[..., None])
            boxes.append(torch.zeros_like(detections.boxes_BTN4[:, :, :1]))
        if self.objects is not None:
            present_BTN = detections.present_BTN
            boxes.append(detections.boxes_BTN4.masked_fill(~present_BTN[..., None], 0))
            nodes.append(self.objects(_described(detections, boxes[-1])))
            present.append(present_BTN)
        present_BTM = torch.cat(present, 2)
        x_BTMC = torch.cat(nodes, 2).masked_fill(~present_BTM[..., None], 0)
        return x_BTMC, _related(torch.cat(boxes, 2), present_BTM)

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the layers whose shape depends on the number of classes by fresh ones."""
        device = next(self.readouts.parameters()).device
        with seeded(generator):
            fresh = Readouts(self.width, num_classes, len(self.stacks))
        self.readouts = fresh.to(device)


def _projection(channels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))


def _segment(detections: Detections, name: str) -> Tensor:
    values: Tensor | None = getattr(detections, f"{name}_BTD")
    if values is None:
        raise ValueError(f"no {name} features, the network has nodes for them: build it without")
    return values


def _described(detections: Detections, boxes_BTN4: Tensor) -> Tensor:
    """Features of objects with their boxes (centre and size) and an actor flag."""
    low, high = boxes_BTN4.split(2, -1)
    actor = (detections.kinds_BTN == ACTOR)[..., None].to(boxes_BTN4)
    absent_BTN1 = ~detections.present_BTN[..., None]
    features = detections.features_BTND.masked_fill(absent_BTN1, 0)
    return torch.cat([features, (low + high) / 2, high - low, actor], -1)


def _related(boxes_BTM4: Tensor, present_BTM: Tensor) -> Graph:
    """Relations of each step; nodes without a box touch nothing."""
    low, high = boxes_BTM4.split(2, -1)
    start = torch.maximum(low[:, :, :, None], low[:, :, None])
    stop = torch.minimum(high[:, :, :, None], high[:, :, None])
    others = ~torch.eye(boxes_BTM4.shape[2], dtype=torch.bool, device=boxes_BTM4.device)
    pairs_BTMM = present_BTM[..., None] & present_BTM[:, :, None] & others
    touching_BTMM = pairs_BTMM & (start < stop).all(-1)
    return Graph(present_BTM, touching_BTMM, pairs_BTMM & ~touching_BTMM)


@register
def stgcn(
    num_classes: int,
    *,
    in_features: int = 432,
    rgb: int = 0,
    flow: int = 0,
    scene: int = 0,
    width: int = 256,
    stacks: int = 2,
) -> StackedSTGCN:
    """Stacked-STGCN: a redesign from the paper's description, not a reproduction.

    Ghosh et al., Stacked Spatio-Temporal Graph Convolutional Networks for Action Segmentation (WACV
    2020, arXiv 1811.10575). in_features, rgb, flow, scene: channels of boxes and of whole-frame
    vectors; 0: no such nodes. ValueError without any node.
    """
    widths = {name: n for name, n in zip(SEGMENTS, (rgb, flow, scene), strict=True) if n}
    if not (in_features or widths) or stacks < 1:
        raise ValueError(
            f"in_features {in_features}, {widths}, stacks {stacks}: expected nodes of at least one "
            "type and at least one stack"
        )
    return StackedSTGCN(num_classes, widths, in_features, width, stacks)
