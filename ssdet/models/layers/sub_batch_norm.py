"""Sub-batch normalisation: batch statistics over groups of a few clips, for any batch size.

Sample i of a batch belongs to split i mod n. In training every split is normalised by its own
statistics; evaluation uses those of all splits together (as in the code of X3D-Multigrid).

In a run of w processes, process r has the samples r, r + w, r + 2w, ... and 1/w of the splits: its
split k is split k * w + r of the whole batch.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

_SPLIT, _RUNNING = ("split_mean", "split_var"), ("running_mean", "running_var")


class SubBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation of [N, C, T, H, W] over ``splits`` groups of N / splits samples.

    Weights, running statistics and their names are those of ``BatchNorm3d``, with two additional
    buffers, ``split_mean`` and ``split_var`` ([splits * C], split-major). A state dict without them
    loads strictly, and they start from the running statistics. Evaluation mode sets the running
    statistics to those of all splits together after a training batch, or after loading splits.

    Raises ValueError in training if N is not a multiple of ``splits``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    split_mean: Tensor
    split_var: Tensor
    momentum: float

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, splits: int = 1
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.splits, self._fresh = 1, False
        self.set_splits(splits)

    def set_splits(self, splits: int) -> None:
        """Change the number of splits; their statistics restart from the running ones."""
        if splits < 1:
            raise ValueError(f"splits={splits}: a batch has at least one split")
        self._aggregate()
        self.splits = splits
        for split, running in zip(_SPLIT, _RUNNING, strict=True):
            self.register_buffer(split, getattr(self, running).repeat(splits))

    def begin(self, samples: int) -> int:
        """Count a training batch and return its number of splits.

        Raises ValueError if the batch does not divide into them.
        """
        if samples % self.splits:
            raise ValueError(
                f"batch of {samples} samples does not divide into {self.splits} splits: "
                "change the batch size, drop the last batch or call set_splits(model, n)"
            )
        self.num_batches_tracked.add_(1)
        self._fresh = True
        return self.splits

    def keep_running(self) -> None:
        """Evaluate with the current running statistics until the next training batch."""
        self._fresh = False

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCTHW)
        (samples, channels), splits = x_NCTHW.shape[:2], self.begin(len(x_NCTHW))
        y = F.batch_norm(
            x_NCTHW.reshape(samples // splits, splits * channels, *x_NCTHW.shape[2:]),
            self.split_mean,
            self.split_var,
            self.weight.repeat(splits),
            self.bias.repeat(splits),
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )
        return y.reshape(x_NCTHW.shape)

    def train(self, mode: bool = True) -> "SubBatchNorm3d":
        if not mode:
            self._aggregate()
        return super().train(mode)

    def _aggregate(self) -> None:
        if self._fresh:
            self._fresh = False
            self.running_mean.copy_(self.split_mean.view(self.splits, -1).mean(0))
            self.running_var.copy_(pooled_variance(self.split_mean, self.split_var, self.splits))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._fresh = prefix + _SPLIT[0] in state_dict
        for split, running in zip(_SPLIT, _RUNNING, strict=True):
            if prefix + running in state_dict:
                start = state_dict[prefix + running].repeat(self.splits)
                state_dict.setdefault(prefix + split, start)
        super()._load_from_state_dict(state_dict, prefix, *args)


def pooled_variance(mean: Tensor, var: Tensor, splits: int) -> Tensor:
    """Variance [C] over splits of equal size, from their statistics [splits * C]."""
    between = mean.view(splits, -1).var(0, unbiased=False)
    return var.view(splits, -1).mean(0) + between


def splits_for(batch: int, group: int = 8) -> int:
    """Number of splits for statistics over ``group`` samples; 1 for a smaller batch.

    Raises ValueError for a batch that is larger than a group, but not a multiple of it.
    """
    if batch > group and batch % group:
        raise ValueError(
            f"batch of {batch} samples does not divide into groups of {group}: "
            f"use {batch - batch % group} or {batch - batch % group + group} samples, "
            "or another group size"
        )
    return max(1, batch // group)


def set_splits(model: nn.Module, splits: int) -> None:
    """Set the number of splits of every sub-batch normalisation in ``model``."""
    for module in model.modules():
        if isinstance(module, SubBatchNorm3d):
            module.set_splits(splits)


def gather_splits(model: nn.Module, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """State dict with the splits of all processes, and running statistics over them.

    A collective call of all processes in ``group``; without torch.distributed, the model's own.
    """
    state = dict(model.state_dict())
    names = [name for name in state if name.endswith(_SPLIT)]
    if not names:
        return state
    sizes = [len(state[name]) for name in names]
    for name, values_RS in zip(names, _gathered(names, state, group).split(sizes, 1), strict=True):
        channels = len(state[_running(name)])
        state[name] = values_RS.unflatten(1, (-1, channels)).transpose(0, 1).flatten()
    for name in names:
        if name.endswith(_SPLIT[0]):
            variance = name.removesuffix(_SPLIT[0]) + _SPLIT[1]
            mean, splits = state[name], len(state[name]) // len(state[_running(name)])
            state[_running(name)] = mean.view(splits, -1).mean(0)
            state[_running(variance)] = pooled_variance(mean, state[variance], splits)
    return state


def _gathered(names: list[str], state: Mapping[str, Tensor], group: Any) -> Tensor:
    local = torch.cat([state[name] for name in names])
    if not (dist.is_available() and dist.is_initialized()):
        return local[None]
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(ranks, local, group)
    return torch.stack(ranks)


def scatter_splits(state: Mapping[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """The part of a state dict of `gather_splits` that process ``rank`` of ``world`` loads.

    Raises ValueError if the splits do not divide evenly.
    """
    part = dict(state)
    for name in state:
        if name.endswith(_SPLIT):
            values_SC = state[name].view(-1, len(state[_running(name)]))
            if len(values_SC) % world:
                raise ValueError(
                    f"{name}: {len(values_SC)} splits cannot be shared by {world} processes: "
                    "use a number of processes that divides them, or load without split statistics"
                )
            part[name] = values_SC[rank::world].flatten()
    return part


def aggregate_splits(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Set the running statistics on every process to those of the splits of all processes."""
    state = gather_splits(model, group)
    for name, buffer in model.named_buffers():
        if name.endswith(_RUNNING):
            buffer.copy_(state[name])


def _running(name: str) -> str:
    head, _, statistic = name.rpartition("split_")
    return f"{head}running_{statistic}"
