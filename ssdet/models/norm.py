"""Sub-batch normalisation: batch statistics over groups of a few clips, whatever the batch size.

Sample i of a batch belongs to split i mod n. Every split is normalised by its own statistics in
training; evaluation uses the statistics of all splits together (X3D-Multigrid; MODELS.md 1.2).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SubBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation of [N, C, T, H, W] over ``splits`` groups of N / splits samples.

    Weights, running statistics and their names are those of ``BatchNorm3d``. Two buffers are added,
    ``split_mean`` and ``split_var`` ([splits * C], split-major); a state dict without them loads
    strictly, and they start from the running statistics. Leaving training mode sets the running
    statistics to those of all splits together.

    Raises ValueError in training if N is not a multiple of ``splits``.
    """

    split_mean: Tensor
    split_var: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, splits: int = 1
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.set_splits(splits)

    def set_splits(self, splits: int) -> None:
        """Change the number of splits; their statistics start again from the running ones."""
        if splits < 1:
            raise ValueError(f"splits={splits}: a batch has at least one split")
        self.splits = splits
        self.register_buffer("split_mean", self.running_mean.repeat(splits))
        self.register_buffer("split_var", self.running_var.repeat(splits))

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCTHW)
        samples, channels = x_NCTHW.shape[:2]
        self.check(samples)
        self.num_batches_tracked.add_(1)
        grouped = x_NCTHW.reshape(samples // self.splits, self.splits * channels, *x_NCTHW.shape[2:])
        normalised = F.batch_norm(
            grouped,
            self.split_mean,
            self.split_var,
            self.weight.repeat(self.splits),
            self.bias.repeat(self.splits),
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )
        return normalised.reshape(x_NCTHW.shape)

    def check(self, samples: int) -> int:
        if samples % self.splits:
            raise ValueError(
                f"batch of {samples} samples does not divide into {self.splits} splits: "
                "change the batch size, drop the last batch or call set_splits(model, n)"
            )
        return self.splits

    def train(self, mode: bool = True) -> "SubBatchNorm3d":
        if self.training and not mode:
            self.aggregate()
        super().train(mode)
        return self

    @torch.no_grad()
    def aggregate(self) -> None:
        """Running statistics of all splits: mean of means; mean variance + variance of means."""
        mean, var = pooled_statistics(
            self.split_mean.view(-1, self.num_features), self.split_var.view(-1, self.num_features)
        )
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("mean", "var"):
            running = state_dict.get(f"{prefix}running_{name}")
            if running is not None and f"{prefix}split_{name}" not in state_dict:
                state_dict[f"{prefix}split_{name}"] = running.repeat(self.splits)
        super()._load_from_state_dict(state_dict, prefix, *args)


def pooled_statistics(mean_SC: Tensor, var_SC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of equally large splits (rows) taken together."""
    return mean_SC.mean(0), var_SC.mean(0) + mean_SC.var(0, unbiased=False)


def set_splits(model: nn.Module, splits: int) -> None:
    """Set the number of splits of every sub-batch normalisation in ``model``."""
    for module in model.modules():
        if isinstance(module, SubBatchNorm3d):
            module.set_splits(splits)
