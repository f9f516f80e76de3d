"""Collective operations of several workers, with torch.distributed; no-ops for one worker."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssdet.training.context import Context


def parallel(module: nn.Module, context: Context) -> nn.Module:
    """Wrap the module so that workers average their gradients."""
    if context.world == 1:
        return module
    devices = [context.device] if context.device.type == "cuda" else None
    # Normalisation statistics differ between workers on purpose: each has its own groups.
    return nn.parallel.DistributedDataParallel(module, devices, broadcast_buffers=False)


def share_dropout(model: nn.Module, context: Context) -> None:
    """Make dropout independent of the number of workers: every worker draws the mask of the whole
    batch, in one worker's order, and applies its own rows."""
    if context.world > 1:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.forward = partial(_drop, module, context)  # type: ignore[method-assign]


def _drop(module: nn.Dropout, context: Context, x: Tensor) -> Tensor:
    p = module.p if module.training else 0.0
    if not p:
        return x
    like = torch.empty_like(x[:1])  # draws go through memory in order
    shape = (len(x) * context.world, *x.shape[1:])
    ones = x.new_empty_strided(shape, (like.numel(), *like.stride()[1:])).fill_(1)
    return x * nn.functional.dropout(ones, p)[context.rank :: context.world]


def barrier(context: Context) -> None:
    """Wait for all workers."""
    if context.world > 1:
        dist.barrier()


def broadcast_decision(decision: bool, context: Context) -> bool:
    """Return rank 0's decision on every worker."""
    if context.world == 1:
        return decision
    flag = torch.tensor([decision], dtype=torch.int32, device=context.device)
    dist.broadcast(flag, 0)
    return bool(flag.item())


def any_of(flags: Sequence[bool], context: Context) -> list[bool]:
    """For each flag, whether any worker has set it."""
    if context.world == 1:
        return list(flags)
    reduced = torch.tensor(flags, dtype=torch.int32, device=context.device)
    dist.all_reduce(reduced, dist.ReduceOp.MAX)
    return [bool(flag) for flag in reduced.tolist()]


def average(value: float, context: Context) -> float:
    """Mean of a number over all workers."""
    if context.world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=context.device)
    dist.all_reduce(total)
    return total.item() / context.world
