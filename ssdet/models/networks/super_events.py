"""Super-Events: what happens over a whole video, seen through a few learned windows in time.

Piergiovanni & Ryoo, "Learning Latent Super-Events to Detect Multiple Activities in Videos", CVPR
2018; MODELS.md 7. Names of parameters are those of the published code.
"""

import math
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ssdet.models.registry import register

Padding = Literal["released", "exact"]
Word = TypeVar("Word", bound=str)


def one_of(option: str, value: Word, choices: Any) -> Word:
    """The value of an option; ValueError where it is none of a Literal's words."""
    if value not in get_args(choices):
        words = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"{option} {value!r}: choose from {words}")
    return value


def steps_of(features_BDT: Tensor, lengths_B: Tensor, padding: Padding) -> Tensor | None:
    """bool [B, T]: which steps exist; None with padding="released", which does not ask."""
    if padding == "released":
        return None
    return torch.arange(features_BDT.shape[2], device=features_BDT.device) < lengths_B[:, None]


def silenced(x: Tensor, steps_BT: Tensor | None) -> Tensor:
    """[B, ..., T] with zeros for the steps that do not exist."""
    if steps_BT is None:
        return x
    return x.masked_fill(~steps_BT.view(x.shape[0], *[1] * (x.ndim - 2), -1), 0)


class Windows(nn.Module):
    """N windows in time, whose centres move with the length that they are laid over.

    `delta` is published, and without influence: its factor is zero.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.center, self.delta, self.gamma = (
            nn.Parameter(torch.randn(count) * sd) for sd in (0.5, 0.01, 1e-4)
        )

    def distances(self, lengths_B: Tensor, steps: int) -> Tensor:
        """[B, N, steps]: how far each step is behind the centre of each window."""
        # Centres of long videos are no float16 numbers.
        lengths_B = lengths_B.to(torch.promote_types(self.center.dtype, torch.float32))
        places_N = self.center.tanh() + 0 * self.delta.tanh()
        centres_BN1 = ((lengths_B[:, None] - 1) * (places_N + 1) / 2)[..., None]
        return torch.arange(steps, device=centres_BN1.device) - centres_BN1

    def cauchy(self, lengths_B: Tensor, steps: int, steps_BT: Tensor | None = None) -> Tensor:
        """[B, N, steps]: windows of Cauchy shape, with a sum of 1 over the steps that exist.

        Without `steps_BT` that is the padded length, as published.
        """
        width_N1 = torch.exp(1.5 - 2 * self.gamma.tanh().abs())[:, None]
        offsets_BNT = self.distances(lengths_B, steps) / width_N1
        heights_BNT = 1 / (math.pi * width_N1 * (1 + offsets_BNT.square()))
        heights_BNT = silenced(heights_BNT, steps_BT)
        return heights_BNT / (heights_BNT.sum(2, keepdim=True) + 1e-6)


class TemporalStructureFilter(Windows):
    """Features [B, D, T] -> [B, D]: weighted sums over time, the largest of the N of them.

    The published weights take the largest; their repository's later code concatenates instead.
    """

    def forward(
        self, features_BDT: Tensor, lengths_B: Tensor, steps_BT: Tensor | None = None
    ) -> Tensor:
        windows_BNT = self.cauchy(lengths_B, features_BDT.shape[2], steps_BT)
        sums_BND = windows_BNT.to(features_BDT.dtype) @ features_BDT.transpose(1, 2)
        return sums_BND.max(1).values


class EventScores(nn.Module):
    """Features [B, D, T] -> one score per class and video [B, K], from two filters.

    Each class has its own share of the two, and its own direction in the features.
    """

    def __init__(self, in_features: int, num_classes: int, filters: int, dropout: float) -> None:
        super().__init__()
        self.super_event = TemporalStructureFilter(filters)
        self.super_event2 = TemporalStructureFilter(filters)
        # The published code leaves these as memory was; trained values reach 6e35.
        self.cls_wts = nn.Parameter(torch.randn(num_classes) * 0.01)
        bound = (2 * in_features) ** -0.5
        self.sup_mat = nn.Parameter(torch.empty(1, num_classes, in_features))
        nn.init.uniform_(self.sup_mat, -bound, bound)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features_BDT: Tensor, lengths_B: Tensor, steps_BT: Tensor | None = None
    ) -> Tensor:
        events = (
            event(features_BDT, lengths_B, steps_BT)
            for event in (self.super_event, self.super_event2)
        )
        scores_B2K = self.dropout(torch.stack(list(events), 1)) @ self.sup_mat[0].T
        share_K = self.cls_wts.sigmoid()
        return share_K * scores_B2K[:, 0] + (1 - share_K) * scores_B2K[:, 1]


class SuperEvents(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T]: each step alone, plus the
    scores of the whole video.

    padding="released": windows have a sum of 1 over the padded length, as published, and features
    in the padding count (they should be 0). "exact": padding does not change a step that exists.
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
        steps_BT = steps_of(features_BDT, lengths_B, self.padding)
        features_BDT = self.dropout(silenced(features_BDT, steps_BT))
        events_BK = self.events(features_BDT, lengths_B, steps_BT)
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

    Raises ValueError for another `padding`.
    """
    return SuperEvents(in_features, num_classes, filters, dropout, padding)
