"""PDAN: attention to the same channel one stride before and after, at growing strides.

Dai et al., "PDAN: Pyramid Dilated Attention Network for Action Detection", WACV 2021; MODELS.md 9.
Names of parameters are those of the published code.
"""

from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.networks.super_events import Padding, one_of, silenced
from ssdet.models.registry import register

KERNEL = 3


class DilatedAttention(nn.Module):
    """[B, C, T] -> [B, C, T]: each channel and step weighs three steps, `dilation` apart.

    Steps beyond the ends take part with key and value 0, as published.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.rel_t = nn.Parameter(torch.randn(width, 1, KERNEL))
        self.key_conv, self.query_conv, self.value_conv = (
            nn.Conv1d(width, width, 1, bias=False) for _ in range(3)
        )
        for conv in (self.key_conv, self.query_conv, self.value_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")

    def forward(self, x_BCT: Tensor) -> Tensor:
        query_BCT = self.query_conv(x_BCT)
        keys = self._around(self.key_conv(x_BCT))
        weights = torch.stack([query_BCT * key_BCT for key_BCT in keys]).softmax(0)
        values = self._around(self.value_conv(x_BCT))
        parts = zip(weights, values, self.rel_t.unbind(2), strict=True)
        # Two products rather than w * (v + r), whose sum would be kept for the gradient.
        return reduce(torch.add, (w_BCT * v_BCT + w_BCT * r_C1 for w_BCT, v_BCT, r_C1 in parts))

    def _around(self, x_BCT: Tensor) -> list[Tensor]:
        """Views of the sequence a dilation before each step, at it, and one after it."""
        padded_BCT = F.pad(x_BCT, (self.dilation, self.dilation))
        starts = (place * self.dilation for place in range(KERNEL))
        return [padded_BCT.narrow(2, start, x_BCT.shape[2]) for start in starts]


class Block(nn.Module):
    """Attention, ReLU and a layer for each step, on top of what came in."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv_attention = DilatedAttention(width, dilation)
        self.conv_1x1 = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + self.dropout(self.conv_1x1(F.relu(self.conv_attention(x_BCT))))


class Stage(nn.Module):
    """[B, D, T] -> logits [B, K, T]: blocks whose dilation doubles."""

    def __init__(
        self, in_features: int, width: int, num_classes: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv_1x1 = nn.Conv1d(in_features, width, 1)
        self.layers = nn.ModuleList(Block(width, 2**n, dropout) for n in range(layers))
        self.conv_out = nn.Conv1d(width, num_classes, 1)

    def forward(self, x_BCT: Tensor, steps_BT: Tensor, exact: bool) -> Tensor:
        if exact:  # the bias fills the padding
            x_BCT = silenced(self.conv_1x1(silenced(x_BCT, steps_BT)), steps_BT)
        else:
            x_BCT = self.conv_1x1(x_BCT)
        for layer in self.layers:
            x_BCT = silenced(layer(x_BCT), steps_BT)
        return silenced(self.conv_out(x_BCT), steps_BT)


class PDAN(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T], which are 0 in the padding.

    padding="released": the first block of a stage sees what a bias has put into the padding, as
    published. "exact": padding does not change a step that exists.
    """

    takes: ClassVar[str] = "features"

    def __init__(self, stages: list[Stage], padding: Padding) -> None:
        super().__init__()
        self.padding: Padding = one_of("padding", padding, Padding)
        self.stage1, self.stages = stages[0], nn.ModuleList(stages[1:])

    def forward(self, features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits of the last stage."""
        return self.stage_logits(features_BDT, lengths_B)[-1]

    def stage_logits(self, features_BDT: Tensor, lengths_B: Tensor) -> list[Tensor]:
        """Logits [B, K, T] of every stage; each stage but the first reads those before it."""
        steps_BT = torch.arange(features_BDT.shape[2], device=features_BDT.device)
        steps_BT = steps_BT < lengths_B[:, None]
        x_BCT, found = features_BDT, []
        for stage in (self.stage1, *self.stages):
            x_BCT = stage(x_BCT, steps_BT, self.padding == "exact")
            found.append(x_BCT)
        return found


@register
def pdan(
    num_classes: int,
    *,
    in_features: int = 432,
    width: int = 512,
    layers: int = 5,
    stages: int = 1,
    dropout: float = 0.5,
    padding: Padding = "released",
) -> PDAN:
    """PDAN, at the published size by default. Raises ValueError for another `padding`."""
    inputs = [in_features, *[num_classes] * (stages - 1)]
    stack = [Stage(inside, width, num_classes, layers, dropout) for inside in inputs]
    return PDAN(stack, padding)
