"""Masks of the steps of padded sequences."""

from typing import Literal

import torch
from torch import Tensor

Padding = Literal["released", "exact"]
"""How a network treats padding: as its published code, or without influence on existing steps."""


def step_mask(features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
    """bool [B, T]: which steps exist."""
    return torch.arange(features_BDT.shape[2], device=features_BDT.device) < lengths_B[:, None]


def masked(x: Tensor, mask_BT: Tensor | None) -> Tensor:
    """[B, ..., T] with zeros at steps outside the mask; without a mask, unchanged."""
    if mask_BT is None:
        return x
    return x.masked_fill(~mask_BT.view(x.shape[0], *[1] * (x.ndim - 2), -1), 0)
