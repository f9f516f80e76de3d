"""Several workers as one: what the loop needs of torch.distributed, and Ray Train to start them."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ssdet.training.context import Context

ANSWER = "workers.json"
WAIT_SECONDS = 24 * 3600
"""Longest wait for another worker: rank 0 scores the validation split while the others wait."""


def parallel(module: nn.Module, context: Context) -> nn.Module:
    """The module as one of `context.world` replicas that average their gradients."""
    if context.world == 1:
        return module
    devices = [context.device] if context.device.type == "cuda" else None
    # Normalisation statistics differ between workers on purpose: each holds its own groups.
    return nn.parallel.DistributedDataParallel(module, devices, broadcast_buffers=False)


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


def average(value: float, context: Context) -> float:
    """Mean of a number over all workers."""
    if context.world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=context.device)
    dist.all_reduce(total)
    return total.item() / context.world


def _work(folder: Path, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    """What each Ray Train worker runs; rank 0 leaves the result in its folder."""
    from ray import train

    place = train.get_context()
    context = Context(
        folder,
        rank=place.get_world_rank(),
        world=place.get_world_size(),
        device=train.torch.get_device(),
        report=lambda metrics: train.report(dict(metrics)),
    )
    result = work(context, *arguments)
    if context.rank == 0:
        (context.folder / ANSWER).write_text(json.dumps(result))


def run_workers(
    workers: int,
    resources: Mapping[str, float],
    folder: Path,
    work: Callable[..., dict[str, Any]],
    *arguments: Any,
    bring: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `work(context, *arguments)` on several Ray Train workers; returns what rank 0 returned.

    Must be called where Ray is initialised; inside a Tune trial the workers' reports become the
    trial's. If one dies or raises, all are started again, at most three times, and go on from the
    last checkpoint: the others wait for it in a collective call and cannot go on without it.
    `bring` is called when they have ended: it brings their files where they have another disk.
    Raises RuntimeError with the worker's error when training fails.
    """
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    answer = folder / ANSWER
    answer.unlink(missing_ok=True)

    callbacks: list[Any] = []
    with suppress(RuntimeError):  # refuses to exist outside a Tune trial, where none listens
        callbacks.append(TuneReportCallback())
    trainer = TorchTrainer(
        partial(_work, folder, work, arguments),
        torch_config=TorchConfig(timeout_s=WAIT_SECONDS),
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(resources.get("GPU")),
            resources_per_worker=dict(resources),
        ),
        run_config=train.RunConfig(
            name=f"workers-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            failure_config=train.FailureConfig(  # type: ignore[call-arg]
                max_failures=3, controller_failure_limit=3
            ),
            callbacks=callbacks,
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)
    bring()
    return json.loads(answer.read_text())
