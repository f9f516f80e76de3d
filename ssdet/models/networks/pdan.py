"""PDAN: attention over three steps of each channel, at doubling dilations.

Dai et al., "PDAN: Pyramid Dilated Attention Network for Action Detection", WACV 2021. Parameters
have the published names.
"""

from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.masking import Padding, masked, step_mask
from ssdet.models.registry import one_of, register

KERNEL = 3


class DilatedAttention(nn.Module):
    """[B, C, T] -> [B, C, T]: per channel, attention over three steps, `dilation` apart.

    Steps beyond the ends have key and value 0, as published.
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
        # Two products instead of w * (v + r): autograd would store the sum.
        return reduce(torch.add, (w_BCT * v_BCT + w_BCT * r_C1 for w_BCT, v_BCT, r_C1 in parts))

    def _around(self, x_BCT: Tensor) -> list[Tensor]:
        """Views of the sequence one dilation before each step, at it, and one after it."""
        padded_BCT = F.pad(x_BCT, (self.dilation, self.dilation))
        starts = (tap * self.dilation for tap in range(KERNEL))
        return [padded_BCT.narrow(2, start, x_BCT.shape[2]) for start in starts]


class Block(nn.Module):
    """Residual block of attention, ReLU and a pointwise layer."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv_attention = DilatedAttention(width, dilation)
        self.conv_1x1 = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + self.dropout(self.conv_1x1(F.relu(self.conv_attention(x_BCT))))


class Stage(nn.Module):
    """[B, D, T] -> logits [B, K, T]: blocks of doubling dilation."""

    def __init__(
        self, in_features: int, width: int, num_classes: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv_1x1 = nn.Conv1d(in_features, width, 1)
        self.layers = nn.ModuleList(Block(width, 2**n, dropout) for n in range(layers))
        self.conv_out = nn.Conv1d(width, num_classes, 1)

    def forward(self, x_BCT: Tensor, mask_BT: Tensor, exact: bool) -> Tensor:
        if exact:  # the convolution's bias fills the padding
            x_BCT = masked(self.conv_1x1(masked(x_BCT, mask_BT)), mask_BT)
        else:
            x_BCT = self.conv_1x1(x_BCT)
        for layer in self.layers:
            x_BCT = masked(layer(x_BCT), mask_BT)
        return masked(self.conv_out(x_BCT), mask_BT)


class PDAN(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T], which are 0 in the padding.

    padding="released": the first block of a stage reads the padding, which a bias has filled, as
    published. "exact": padding does not change existing steps.
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
        mask_BT = step_mask(features_BDT, lengths_B)
        x_BCT, logits = features_BDT, []
        for stage in (self.stage1, *self.stages):
            x_BCT = stage(x_BCT, mask_BT, self.padding == "exact")
            logits.append(x_BCT)
        return logits


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
    """PDAN, at the published size by default. ValueError for another `padding`."""
    inputs = [in_features, *[num_classes] * (stages - 1)]
    stack = [Stage(inside, width, num_classes, layers, dropout) for inside in inputs]
    return PDAN(stack, padding)
