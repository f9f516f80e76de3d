"""Linear interpolation of logits in time."""

from torch import Tensor
from torch.nn import functional as F


def interpolate(logits_BKT: Tensor, frames: int, align_corners: bool = False) -> Tensor:
    """[B, K, T] -> [B, K, frames]."""
    if logits_BKT.shape[2] == frames:
        return logits_BKT
    return F.interpolate(logits_BKT, size=frames, mode="linear", align_corners=align_corners)
