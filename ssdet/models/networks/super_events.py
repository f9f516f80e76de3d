"""Super-Events: per-step scores plus scores of the whole video from learned temporal windows.

Piergiovanni & Ryoo, "Learning Latent Super-Events to Detect Multiple Activities in Videos", CVPR
2018. Parameters have the published names.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssdet.models.layers.masking import Padding, masked, step_mask
from ssdet.models.registry import one_of, register


class Windows(nn.Module):
    """N temporal windows whose centres are fractions of the sequence's length.

    The published parameter `delta` has no influence: its factor is zero.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.center, self.delta, self.gamma = (
            nn.Parameter(torch.randn(count) * sd) for sd in (0.5, 0.01, 1e-4)
        )

    def distances(self, lengths_B: Tensor, steps: int) -> Tensor:
        """[B, N, steps]: distance of each step from the centre of each window."""
        # float16 cannot represent the centres of long videos.
        lengths_B = lengths_B.to(torch.promote_types(self.center.dtype, torch.float32))
        positions_N = self.center.tanh() + 0 * self.delta.tanh()
        centres_BN1 = ((lengths_B[:, None] - 1) * (positions_N + 1) / 2)[..., None]
        return torch.arange(steps, device=centres_BN1.device) - centres_BN1

    def cauchy(self, lengths_B: Tensor, steps: int, mask_BT: Tensor | None = None) -> Tensor:
        """[B, N, steps]: Cauchy windows with a sum of 1 over the existing steps or, without a mask
        (as published), over the padded length."""
        width_N1 = torch.exp(1.5 - 2 * self.gamma.tanh().abs())[:, None]
        offsets_BNT = self.distances(lengths_B, steps) / width_N1
        heights_BNT = 1 / (math.pi * width_N1 * (1 + offsets_BNT.square()))
        heights_BNT = masked(heights_BNT, mask_BT)
        return heights_BNT / (heights_BNT.sum(2, keepdim=True) + 1e-6)


class TemporalStructureFilter(Windows):
    """Features [B, D, T] -> [B, D]: maximum over N weighted sums over time.

    This is the code of the published weights; later code in the repository concatenates the sums.
    """

    def forward(
        self, features_BDT: Tensor, lengths_B: Tensor, mask_BT: Tensor | None = None
    ) -> Tensor:
        windows_BNT = self.cauchy(lengths_B, features_BDT.shape[2], mask_BT)
        sums_BND = windows_BNT.to(features_BDT.dtype) @ features_BDT.transpose(1, 2)
        return sums_BND.max(1).values


class EventScores(nn.Module):
    """Features [B, D, T] -> one score per class and video [B, K], from two filters.

    Each class has its own weights of the two filters and of the features.
    """

    def __init__(self, in_features: int, num_classes: int, filters: int, dropout: float) -> None:
        super().__init__()
        self.super_event = TemporalStructureFilter(filters)
        self.super_event2 = TemporalStructureFilter(filters)
        # The published code does not initialise these; trained values reach 6e35.
        self.cls_wts = nn.Parameter(torch.randn(num_classes) * 0.01)
        bound = (2 * in_features) ** -0.5
        self.sup_mat = nn.Parameter(torch.empty(1, num_classes, in_features))
        nn.init.uniform_(self.sup_mat, -bound, bound)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features_BDT: Tensor, lengths_B: Tensor, mask_BT: Tensor | None = None
    ) -> Tensor:
        events = (
            event(features_BDT, lengths_B, mask_BT)
            for event in (self.super_event, self.super_event2)
        )
        scores_B2K = self.dropout(torch.stack(list(events), 1)) @ self.sup_mat[0].T
        weight_K = self.cls_wts.sigmoid()
        return weight_K * scores_B2K[:, 0] + (1 - weight_K) * scores_B2K[:, 1]


class SuperEvents(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T]: scores of each step plus scores
    of the whole video.

    padding="released": windows have a sum of 1 over the padded length, as published, and padded
    features count (they should be 0). "exact": padding does not change existing steps.
    """

    takes: ClassVar[str] = "features"

    def __init__(
        self, in_features: int, num_classes: int, filters: int, dropout: float, padding: Padding
    ) -> None:
        super().__init__()
        self.padding: Padding = one_of("padding", padding, Padding)
        self.dropout = nn.Dropout(dropout)
        self.events = EventScores(in_features, num_classes, filters, dropout)
        self.per_frame = nn.Conv1d(in_features, num_classes, 1)
        bound = (2 * in_features) ** -0.5
        for parameter in self.per_frame.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        mask_BT = step_mask(features_BDT, lengths_B) if self.padding == "exact" else None
        features_BDT = self.dropout(masked(features_BDT, mask_BT))
        events_BK = self.events(features_BDT, lengths_B, mask_BT)
        return self.per_frame(features_BDT) + events_BK[..., None]


@register
def super_events(
    num_classes: int,
    *,
    in_features: int = 432,
    filters: int = 3,
    dropout: float = 0.7,
    padding: Padding = "released",
) -> SuperEvents:
    """Super-Events; published weights have 3 filters (Charades) or 1 (MultiTHUMOS).

    ValueError for another `padding`.
    """
    return SuperEvents(in_features, num_classes, filters, dropout, padding)
