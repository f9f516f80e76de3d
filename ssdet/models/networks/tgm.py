"""TGM: temporal convolutions whose kernels are mixtures of a few Gaussians.

Piergiovanni & Ryoo, "Temporal Gaussian Mixture Layer for Videos", ICML 2019. Parameters have the
published names.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.masking import Padding, masked, step_mask
from ssdet.models.networks.super_events import EventScores, Windows
from ssdet.models.registry import one_of, register, variant_of

Kernel = Literal["gaussian", "cauchy"]
Combine = Literal["conv", "soft", "soft_released"]


class TGMLayer(Windows):
    """[B, c_in, D, T] -> [B, c_out, D, T]: each output channel is a sum of all input channels, each
    filtered by its own kernel, a mixture of the same `mixtures` bell curves.

    kernel: "gaussian" as in the paper, "cauchy" as in its code.
    combine: how several input channels are summed: "conv" with learned weights and a bias, before
    ReLU; "soft" with attention over them. "soft_released" sums over the output channels instead and
    has c_in outputs, a mistake of the published code.
    """

    def __init__(
        self,
        mixtures: int = 16,
        length: int = 5,
        c_in: int = 1,
        c_out: int = 8,
        kernel: Kernel = "gaussian",
        combine: Combine = "conv",
    ) -> None:
        super().__init__(mixtures)
        self.length, self.c_in, self.c_out = length, c_in, c_out
        self.kernel = one_of("kernel", kernel, Kernel)
        self.combine = one_of("combine", combine, Combine)
        # The published code does not initialise attention.
        self.soft_attn = nn.Parameter(torch.randn(c_out * c_in, mixtures) * 0.01)
        if c_in > 1 and combine == "conv":
            self.convs = nn.ModuleList(nn.Conv2d(c_in, 1, 1) for _ in range(c_out))
        elif c_in > 1:
            self.cls_attn = nn.Parameter(torch.randn(1, c_out, c_in, 1, 1) * 0.01)

    def forward(self, x_BCDT: Tensor) -> Tensor:
        kernels_OCL, bias, groups = self.kernels(), None, 1
        if self.c_in > 1 and self.combine == "conv":
            weight_OC, bias = self._weights()
            kernels_OCL = kernels_OCL * weight_OC[..., None]
        elif self.c_in > 1:
            kernels_OCL = kernels_OCL * self.cls_attn[0, ..., 0].softmax(1)
            if self.combine == "soft_released":
                kernels_OCL, groups = kernels_OCL.sum(0)[:, None], self.c_in
        y_BCDT = F.conv2d(
            x_BCDT, kernels_OCL[:, :, None].to(x_BCDT.dtype), bias, padding="same", groups=groups
        )
        return y_BCDT if bias is None else F.relu(y_BCDT)

    def kernels(self) -> Tensor:
        """[c_out, c_in, length]: the mixture of every pair of channels, with a sum of 1."""
        bank_NL = self._gaussian() if self.kernel == "gaussian" else self._cauchy()
        return (self.soft_attn.softmax(1) @ bank_NL.to(self.soft_attn)).view(
            self.c_out, self.c_in, self.length
        )

    def _cauchy(self) -> Tensor:
        return self.cauchy(self._lengths(), self.length)[0]

    def _gaussian(self) -> Tensor:
        precision_N1 = torch.exp(2 * self.gamma.abs())[:, None]
        squares_NL = self.distances(self._lengths(), self.length)[0].square()
        return (-squares_NL * precision_N1 / 2).softmax(1)

    def _lengths(self) -> Tensor:
        return torch.tensor([self.length], device=self.center.device)

    def _weights(self) -> tuple[Tensor, Tensor]:
        weights, biases = zip(*((conv.weight, conv.bias) for conv in self.convs), strict=True)
        return torch.cat(weights).flatten(1), torch.cat(biases)


class TGM(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T]: a classifier on the features
    and on the maximum over the channels of TGM layers on each feature's time series.

    padding="released": padding is not masked between layers, as published. "exact": padding does
    not change existing steps.
    """

    takes: ClassVar[str] = "features"

    def __init__(
        self,
        layers: list[TGMLayer],
        in_features: int,
        num_classes: int,
        hidden: int,
        dropout: float,
        padding: Padding,
        events: EventScores | None = None,
    ) -> None:
        super().__init__()
        self.padding: Padding = one_of("padding", padding, Padding)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.events = events
        width = 2 * in_features + (num_classes if events else 0)
        self.h = nn.Conv1d(width, hidden, 1)
        self.classify = nn.Conv1d(hidden, num_classes, 1)

    def forward(self, features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        mask_BT = step_mask(features_BDT, lengths_B) if self.padding == "exact" else None
        features_BDT = masked(features_BDT, mask_BT)
        parts = [self.dropout(features_BDT), self.dropout(self._filtered(features_BDT, mask_BT))]
        if self.events:
            scores_BK = self.dropout(self.events(features_BDT, lengths_B, mask_BT))
            parts.append(scores_BK[..., None].expand(-1, -1, features_BDT.shape[2]))
        hidden_BCT = F.relu(self.h(F.relu(torch.cat(parts, 1))))
        return self.classify(hidden_BCT)

    def _filtered(self, features_BDT: Tensor, mask_BT: Tensor | None) -> Tensor:
        x_BCDT = features_BDT[:, None]
        for layer in self.layers:
            x_BCDT = masked(layer(x_BCDT), mask_BT)
        return x_BCDT.max(1).values


@register
def tgm(
    num_classes: int,
    *,
    in_features: int = 432,
    filters: int = 0,
    layers: int = 3,
    channels: int = 8,
    mixtures: int = 16,
    length: int = 5,
    hidden: int = 512,
    kernel: Kernel = "gaussian",
    combine: Combine = "conv",
    dropout: float = 0.5,
    padding: Padding = "released",
) -> TGM:
    """TGM, at the published size by default; published weights need kernel="cauchy".

    length: steps of a kernel. filters: windows of each temporal structure filter of Super-Events;
    0: no Super-Events. ValueError for another `kernel`, `combine` or `padding`.
    """
    stack = [
        TGMLayer(mixtures, length, channels if number else 1, channels, kernel, combine)
        for number in range(layers)
    ]
    events = EventScores(in_features, num_classes, filters, dropout=0.0) if filters else None
    return TGM(stack, in_features, num_classes, hidden, dropout, padding, events)


@variant_of(tgm)
def tgm_super_events(num_classes: int, **options: Any) -> TGM:
    """TGM with Super-Events' scores of the whole video (filters=3)."""
    return tgm(num_classes, **{"filters": 3, **options})
