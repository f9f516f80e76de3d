"""Several workers as one, with torch.distributed."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssdet.training.context import Context


def parallel(module: nn.Module, context: Context) -> nn.Module:
    """The module as one of `context.world` replicas that average their gradients."""
    if context.world == 1:
        return module
    devices = [context.device] if context.device.type == "cuda" else None
    # Normalisation statistics differ between workers on purpose: each holds its own groups.
    return nn.parallel.DistributedDataParallel(module, devices, broadcast_buffers=False)


def share_dropout(model: nn.Module, context: Context) -> None:
    """Let dropout drop from a clip what it would drop on one worker: every worker draws for the
    clips of all, in the order of one worker's batch, and takes its own."""
    if context.world > 1:
        for module in (module for module in model.modules() if isinstance(module, nn.Dropout)):
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


def agree(decision: bool, context: Context) -> bool:
    """The decision of rank 0, on every worker."""
    if context.world == 1:
        return decision
    flag = torch.tensor([decision], dtype=torch.int32, device=context.device)
    dist.broadcast(flag, 0)
    return bool(flag.item())


def any_of(flags: Sequence[bool], context: Context) -> list[bool]:
    """Each flag, whether it is set on any worker."""
    if context.world == 1:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32, device=context.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def average(value: float, context: Context) -> float:
    """Mean of a number over all workers."""
    if context.world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=context.device)
    dist.all_reduce(total)
    return total.item() / context.world
