"""Heat maps of action centres as training targets (MS-TCT, Dai et al., CVPR 2022, and its code).

An action is (class from 0, start, end) in seconds.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GAMMA = 0.5

Action = tuple[int, float, float]


class Centre(NamedTuple):
    """The middle of one action, in steps."""

    label: int
    centre: int
    """The step after the middle; the number of steps where that is in the last one."""
    duration: int
    radius: int
    """Reach of the Gaussian to each side."""


def action_centres(actions: Iterable[Action], fps: float, steps: int) -> list[Centre]:
    """Centres of the actions whose middle is strictly between two of `steps` + 1 steps, `fps` a
    second; as in the published code, a middle exactly on a step or beyond the end has none."""
    times = np.arange(steps + 1) / fps
    centres = []
    for label, start, end in actions:
        middle = (start + end) / 2
        centre = int(np.searchsorted(times, middle))
        if 0 < centre <= steps and middle < times[centre]:
            duration = int((end - start) * fps)
            centres.append(Centre(int(label), centre, duration, int(duration / GAMMA)))
    return centres


def gaussian_1d(radius: int) -> Tensor:
    """exp(-x² / σ²) [2 · radius + 1] for x from -radius to radius, σ a quarter of its length."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return torch.exp(-((4 * x / (2 * radius + 1)) ** 2))


def heat_map(actions: Iterable[Action], fps: float, steps: int, classes: int) -> Tensor:
    """Gaussians around all centres, float32 [K, T]; the maximum where several overlap."""
    heat_KT = torch.zeros(classes, steps)
    for label, centre, _, radius in action_centres(actions, fps, steps):
        first, stop = max(0, centre - radius), min(steps, centre + radius + 1)
        inside = gaussian_1d(radius)[first - centre + radius : stop - centre + radius]
        row_T = heat_KT[label, first:stop]
        torch.maximum(row_T, inside, out=row_T)
    return heat_KT


def focal_loss(probs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Focal loss between probabilities p and heat maps y of the same shape, per peak.

    -(Σ at targets of 1: (1-p)² log p + Σ elsewhere: p² (1-y)⁴ log(1-p)), p clamped to [1e-4,
    1 - 1e-4]; not divided without a peak. `mask` (broadcasts) selects the values that count.
    """
    probs = probs.float().clamp(1e-4, 1 - 1e-4)
    peaks = targets == 1
    loss = torch.where(
        peaks, (1 - probs) ** 2 * probs.log(), probs**2 * (1 - targets) ** 4 * torch.log1p(-probs)
    )
    if mask is not None:
        loss, peaks = loss.masked_fill(~mask, 0), peaks & mask
    return -loss.sum() / peaks.sum().clamp(min=1)
