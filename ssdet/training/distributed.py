"""Several workers as one: what the loop needs of torch.distributed, and Ray Train to start them."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssdet.data.decoders import DECODER_CPU
from ssdet.training.context import Context
from ssdet.training.preemption import Preempted, drained, notices

ANSWER = "workers.json"
WAIT_SECONDS = 24 * 3600
"""Longest wait for another worker: rank 0 scores the validation split while the others wait."""

FAILURES = 3
"""Deaths and errors of workers after which the team is started again."""
MOVES = 20
"""Starts with other workers, where one was told to go or there was room for more, per call."""
LOOK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
"""Seconds between two looks of Ray Train at its workers. A worker that reports waits for the next;
with Ray's 2 seconds, a hundred reports are three minutes of waiting."""
PATIENCE = 3.0
"""Seconds in which Ray finds places that are free."""


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


@dataclass(frozen=True)
class Team:
    """How many Ray Train workers share a training, and what each of them asks of Ray."""

    sizes: Sequence[int]
    """Numbers of workers that it may have; as many as there is room for."""
    resources: Mapping[str, float]
    settle: float = 60.0
    """Seconds that it trains before it is stopped for a larger one."""
    decoders: int = 0
    """Tasks that decode for each worker, on a core each, wherever there is one."""

    @property
    def elastic(self) -> bool:
        return len(self.sizes) > 1

    def places(self, workers: int) -> list[dict[str, float]]:
        """What so many workers ask of Ray, their decoders with them."""
        decoders = [{"CPU": DECODER_CPU}] * (workers * self.decoders)
        return [dict(self.resources)] * workers + decoders


class Growth:
    """A request for the workers that a team lacks, open while it trains, so that an autoscaler sees
    it: a sign to stop, and to start again with them, once they have a place."""

    def __init__(self, team: Team, size: int, asks: bool) -> None:
        self.team, self.since = team, time.monotonic()
        self.more = min((s - size for s in team.sizes if s > size), default=0) if asks else 0
        self.place: Any = None

    def __call__(self) -> str:
        from ray.util import placement_group

        if not self.more or time.monotonic() - self.since < self.team.settle:
            return ""
        if self.place is None:
            self.place = placement_group(self.team.places(self.more))
        return f"room for {self.more} more workers" if self.place.wait(1) else ""

    def close(self) -> None:
        """Withdraw the request."""
        from ray.util import remove_placement_group

        if self.place is not None:
            remove_placement_group(self.place)


def size_now(team: Team) -> int:
    """The largest size that there is room for; waits for the smallest where there is none.

    Asks Ray for the places and gives them back: what is free in all may lie on nodes that cannot
    hold one worker, or on one that is being drained.
    """
    from ray.util import placement_group, remove_placement_group

    sizes = sorted(team.sizes, reverse=True)
    if not team.elastic:
        return sizes[0]
    for size in sizes:
        place = placement_group(team.places(size))
        try:
            while not place.wait(PATIENCE):
                if size > sizes[-1]:
                    break
            else:
                return size
        finally:
            remove_placement_group(place)
    raise AssertionError("the smallest size is waited for")


def _work(
    folder: Path,
    team: Team,
    driver: str,
    work: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
) -> None:
    """What each Ray Train worker runs; rank 0 leaves the result in its folder."""
    from ray import train

    place = train.get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    growth = Growth(team, world, asks=rank == 0)
    with closing(growth), notices(drained(), drained(driver), growth) as asked:
        context = Context(
            folder,
            rank=rank,
            world=world,
            device=train.torch.get_device(),
            report=lambda metrics: train.report({**metrics, "workers": world}),
            asked=asked,
        )
        result = work(context, *arguments)
    if rank == 0:
        (context.folder / ANSWER).write_text(json.dumps(result))


def run_workers(
    team: Team,
    folder: Path,
    work: Callable[..., dict[str, Any]],
    *arguments: Any,
    bring: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `work(context, *arguments)` on Ray Train workers; returns what rank 0 returned, and as
    `teams` how many worked each time.

    Must be called where Ray is initialised; inside a Tune trial the workers' reports become the
    trial's. If one dies or raises, all are started again, at most three times, and go on from the
    last checkpoint: the others wait for it in a collective call and cannot go on without it. They
    are also started again, at most `MOVES` times, where `work` returns `preempted`. Each start has
    as many workers as there is room for then. `bring` is called when they have ended: it brings
    their files where they have another disk. Raises Ray Train's error with the worker's when
    training fails, Preempted where the caller's own node is drained.
    """
    from ray import get_runtime_context
    from ray.train import TrainingFailedError

    driver, teams, failures = get_runtime_context().get_node_id(), list[int](), 0
    leaves = drained()
    while True:
        teams.append(size_now(team))
        try:
            answer = _fit(team, teams[-1], folder, partial(_work, folder, team, driver, work,
                                                           arguments), bring)  # fmt: skip
        except TrainingFailedError:
            if leaves():
                raise Preempted(leaves()) from None
            if (failures := failures + 1) > FAILURES:
                raise
            continue
        if "preempted" not in answer:
            return {**answer, "teams": teams}
        if leaves() or len(teams) - failures > MOVES:
            raise Preempted(answer["preempted"])


def _fit(
    team: Team, size: int, folder: Path, worker: Callable[[], None], bring: Callable[[], None]
) -> dict[str, Any]:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    answer = folder / ANSWER
    answer.unlink(missing_ok=True)

    callbacks: list[Any] = []
    with suppress(RuntimeError):  # refuses to exist outside a Tune trial, where none listens
        callbacks.append(TuneReportCallback())
    for name, value in LOOK.items():
        os.environ.setdefault(name, value)  # Ray Train passes it on
    trainer = TorchTrainer(
        worker,
        torch_config=TorchConfig(timeout_s=WAIT_SECONDS),
        scaling_config=train.ScalingConfig(
            num_workers=size,
            use_gpu=bool(team.resources.get("GPU")),
            resources_per_worker=dict(team.resources),
        ),
        run_config=train.RunConfig(
            name=f"workers-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            # Ray would start the same number again; `run_workers` looks how many there can be.
            failure_config=train.FailureConfig(  # type: ignore[call-arg]
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=0 if team.elastic else 3,
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
