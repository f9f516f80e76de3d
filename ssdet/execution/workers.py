"""Training on several Ray Train workers: start, restart after failures and preemption, resizing."""

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

from ssdet.execution.decoding import DECODER_CPU
from ssdet.training.context import WORKERS_RESULT, Context
from ssdet.training.preemption import Preempted, Sign, notices

WAIT_SECONDS = 24 * 3600
"""Longest wait for another worker: rank 0 scores the validation split while the others wait."""

FAILURES = 3
"""Deaths and errors of workers after which the team is started again."""
MAX_PREEMPTION_RESTARTS = 20
"""Maximum restarts per call after preemption or scale-up."""
LOOK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
"""Seconds between two looks of Ray Train at its workers. A worker that reports waits for the next;
with Ray's 2 seconds, a hundred reports are three minutes of waiting."""
PATIENCE = 3.0
"""Seconds in which Ray finds places that are free."""


def drained(node: str = "") -> Sign:
    """Sign that Ray drains a node (hex id; by default this process's), which then goes away; never
    set where Ray is not initialised."""
    import ray

    if not ray.is_initialized():
        return lambda: ""
    node = node or ray.get_runtime_context().get_node_id()

    def sign() -> str:
        # The public call works in Ray Train's workers only, not in a trial of Ray Tune.
        draining = ray._private.state.state.get_draining_nodes()
        return f"node {node} is being drained" if node in draining else ""

    return sign


@dataclass(frozen=True)
class WorkerGroup:
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


class UpscaleRequest:
    """A request for the workers that a team lacks, open while it trains, so that an autoscaler sees
    it: a sign to stop, and to start again with them, once they have a place."""

    def __init__(self, team: WorkerGroup, size: int, asks: bool) -> None:
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


def size_now(team: WorkerGroup) -> int:
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
    team: WorkerGroup,
    driver: str,
    work: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
) -> None:
    """What each Ray Train worker runs; rank 0 leaves the result in its folder."""
    from ray import train

    place = train.get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    upscale = UpscaleRequest(team, world, asks=rank == 0)
    with closing(upscale), notices(drained(), drained(driver), upscale) as asked:
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
        (context.folder / WORKERS_RESULT).write_text(json.dumps(result))


def run_workers(
    team: WorkerGroup,
    folder: Path,
    work: Callable[..., dict[str, Any]],
    *arguments: Any,
    download_results: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `work(context, *arguments)` on Ray Train workers; returns what rank 0 returned, and as
    `teams` how many worked each time.

    Must be called where Ray is initialised; inside a Tune trial the workers' reports become the
    trial's. If one dies or raises, all are started again, at most three times, and go on from the
    last checkpoint: the others wait for it in a collective call and cannot go on without it. They
    are also started again, at most `MAX_PREEMPTION_RESTARTS` times, where `work` returns
    `preempted`. Each start has as many workers as there is room for then. `download_results` is called when
    they have ended: it fetches their files where they have another disk. Raises Ray Train's error
    with the worker's when training fails, Preempted where the caller's own node is drained.
    """
    from ray import get_runtime_context
    from ray.train import TrainingFailedError

    driver, teams, failures = get_runtime_context().get_node_id(), list[int](), 0
    leaves = drained()
    while True:
        teams.append(size_now(team))
        try:
            answer = _fit(team, teams[-1], folder, partial(_work, folder, team, driver, work,
                                                           arguments), download_results)  # fmt: skip
        except TrainingFailedError:
            if leaves():
                raise Preempted(leaves()) from None
            if (failures := failures + 1) > FAILURES:
                raise
            continue
        if "preempted" not in answer:
            return {**answer, "teams": teams}
        if leaves() or len(teams) - failures > MAX_PREEMPTION_RESTARTS:
            raise Preempted(answer["preempted"])


def _fit(
    team: WorkerGroup,
    size: int,
    folder: Path,
    worker: Callable[[], None],
    download_results: Callable[[], None],
) -> dict[str, Any]:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    answer = folder / WORKERS_RESULT
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
    download_results()
    return json.loads(answer.read_text())
