"""Linear classifier of each step of features."""

from typing import ClassVar

from torch import Tensor, nn

from ssdet.models.registry import register


class Linear(nn.Module):
    """Features [B, D, T] and their lengths [B] -> logits [B, K, T], including those of padding.

    Dropout and a 1x1 convolution: the baseline of Super-Events (Piergiovanni & Ryoo, CVPR 2018).
    """

    takes: ClassVar[str] = "features"

    def __init__(self, in_features: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.per_frame = nn.Conv1d(in_features, num_classes, 1)

    def forward(self, features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        return self.per_frame(self.dropout(features_BDT))


@register
def linear(num_classes: int, *, in_features: int = 432, dropout: float = 0.7) -> Linear:
    """A classifier for each step of features."""
    return Linear(in_features, num_classes, dropout)
