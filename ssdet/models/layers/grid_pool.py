"""Grid Pool, a learned temporal downsampling, and its inverse, Grid Unpool.

Kahatapitiya & Ryoo, "Coarse-Fine Networks", CVPR 2021. Parameters have the published names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d


class GridPool(nn.Module):
    """Maps [B, C, T, H, W] -> samples [B, C, S, H, W] and their positions [B, S] from 0 to 1.

    S = ⌈T/4⌉ + 1, from the first frame to the last for any T: one per four steps on average, more
    at high learned confidence.
    """

    def __init__(self, channels: int, splits: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, stride=2, padding=1)
        self.bn1 = SubBatchNorm3d(channels, splits=splits)
        self.conv2 = nn.Conv3d(channels, channels, 3, stride=2, padding=1)
        self.bn2 = SubBatchNorm3d(channels, splits=splits)
        self.conv3 = nn.Conv3d(channels, 1, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        grid_BS = self.grid(x_BCTHW)
        return sample(x_BCTHW, grid_BS), grid_BS

    def grid(self, x_BCTHW: Tensor) -> Tensor:
        """Ascending positions [B, S] in float32 from 0 to 1."""
        y_BCTHW = F.relu(self.bn1(self.conv1(x_BCTHW)))
        y_BCTHW = F.relu(self.bn2(self.conv2(y_BCTHW)))
        # Positions are sums over the clip, which half precision would round to other frames.
        confidence_BN = self.conv3(y_BCTHW).mean((1, 3, 4)).float()
        interval_BN = (-confidence_BN / 2).sigmoid()  # 1 - sigmoid, and never 0
        interval_BN = interval_BN / (interval_BN.sum(1, keepdim=True) + 1e-16)
        return F.pad(interval_BN.cumsum(1), (1, 0))


def sample(x_BCTHW: Tensor, positions_BS: Tensor) -> Tensor:
    """Values [B, C, S, H, W] at positions from 0 (first step) to 1 (last), linear in between."""
    last = x_BCTHW.shape[2] - 1
    steps_BS = positions_BS.clamp(0, 1) * last
    before_BS = steps_BS.floor().long()
    after_BS = (before_BS + 1).clamp(max=last)
    weight_BS111 = (steps_BS - before_BS).to(x_BCTHW.dtype)[:, :, None, None, None]
    x_BTCHW = x_BCTHW.transpose(1, 2)
    rows_B1 = torch.arange(len(x_BCTHW), device=x_BCTHW.device)[:, None]
    y_BSCHW = torch.lerp(x_BTCHW[rows_B1, before_BS], x_BTCHW[rows_B1, after_BS], weight_BS111)
    return y_BSCHW.transpose(1, 2)


def interpolate_1d(x_BN: Tensor, y_BN: Tensor, at_BM: Tensor) -> Tensor:
    """Piecewise linear interpolation [B, M] at `at_BM` through (x, y), x ascending, and beyond."""
    left_BM = torch.searchsorted(x_BN.detach().contiguous(), at_BM.detach().contiguous()) - 1
    left_BM = left_BM.clamp(0, x_BN.shape[1] - 2)
    slope_BN = y_BN.diff() / (torch.finfo(y_BN.dtype).eps + x_BN.diff())
    beyond_BM = at_BM - x_BN.gather(1, left_BM)
    return y_BN.gather(1, left_BM) + slope_BN.gather(1, left_BM) * beyond_BM


def unpool(values_BKS: Tensor, grid_BS: Tensor, frames: int) -> Tensor:
    """Grid Unpool: values at the positions of a Grid Pool -> [B, K, frames], evenly spaced."""
    even_BS = torch.linspace(0, 1, grid_BS.shape[1], device=grid_BS.device).expand_as(grid_BS)
    inverse_BS = interpolate_1d(grid_BS, even_BS, even_BS)
    even_BKS = sample(values_BKS[..., None, None], inverse_BS)[..., 0, 0]
    return F.interpolate(even_BKS, size=frames, mode="linear", align_corners=True)
