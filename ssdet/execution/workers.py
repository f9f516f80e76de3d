"""Training on several Ray Train workers: start, restart after failure or preemption, resizing."""

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
from ssdet.training.preemption import Preempted, StopReason, watch_preemption

COLLECTIVE_TIMEOUT = 24 * 3600
"""Seconds that a worker waits for the others: rank 0 scores the validation split meanwhile."""
MAX_FAILURES = 3
"""Maximum restarts per call after a worker's death or error."""
MAX_PREEMPTION_RESTARTS = 20
"""Maximum restarts per call after preemption or scale-up."""
HEALTH_CHECK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
"""Seconds between Ray Train's polls of its workers. A worker that reports waits for the next poll:
with Ray's 2 seconds, a hundred reports are three minutes of waiting."""
PLACEMENT_TIMEOUT = 3.0
"""Seconds after which Ray has no room for a placement group."""


def drained(node: str = "") -> StopReason:
    """Reason to stop while Ray drains a node (hex id; by default this process's); none where Ray is
    not initialised."""
    import ray

    if not ray.is_initialized():
        return lambda: ""
    node = node or ray.get_runtime_context().get_node_id()

    def sign() -> str:
        # The public function works in Ray Train's workers only, not in a trial of Ray Tune.
        draining = ray._private.state.state.get_draining_nodes()
        return f"node {node} is being drained" if node in draining else ""

    return sign


@dataclass(frozen=True)
class WorkerGroup:
    """Sizes and resources of the Ray Train workers that share a training."""

    sizes: Sequence[int]
    """Possible numbers of workers; each start uses the largest that fits."""
    resources: Mapping[str, float]
    """Ray resources of one worker."""
    min_seconds_between_restarts: float = 60.0
    """Training time before the group is restarted with more workers."""
    decoders: int = 0
    """Decoding tasks per worker, each on a core of any node."""

    @property
    def elastic(self) -> bool:
        return len(self.sizes) > 1

    def bundles(self, workers: int) -> list[dict[str, float]]:
        """Placement group bundles of so many workers and their decoders."""
        decoders = [{"CPU": DECODER_CPU}] * (workers * self.decoders)
        return [dict(self.resources)] * workers + decoders


class UpscaleRequest:
    """A stop sign that is set once Ray has room for the next larger group of workers.

    The placement group of the missing workers stays requested while the group trains, so that an
    autoscaler adds nodes for it. Only the worker with `requests` (rank 0) makes the request.
    """

    def __init__(self, group: WorkerGroup, size: int, requests: bool) -> None:
        self.group, self.since = group, time.monotonic()
        larger = [s - size for s in group.sizes if s > size]
        self.missing = min(larger, default=0) if requests else 0
        self.placement: Any = None

    def __call__(self) -> str:
        from ray.util import placement_group

        trained = time.monotonic() - self.since
        if not self.missing or trained < self.group.min_seconds_between_restarts:
            return ""
        if self.placement is None:
            self.placement = placement_group(self.group.bundles(self.missing))
        return f"room for {self.missing} more workers" if self.placement.wait(1) else ""

    def close(self) -> None:
        """Withdraw the request."""
        from ray.util import remove_placement_group

        if self.placement is not None:
            remove_placement_group(self.placement)


def size_now(group: WorkerGroup) -> int:
    """The largest size that Ray has room for; waits for the smallest where there is no room.

    Tries placement groups and removes them again: free resources may be scattered over nodes that
    cannot host one worker, or be on a node that is being drained.
    """
    from ray.util import placement_group, remove_placement_group

    sizes = sorted(group.sizes, reverse=True)
    if not group.elastic:
        return sizes[0]
    for size in sizes:
        placement = placement_group(group.bundles(size))
        try:
            while not placement.wait(PLACEMENT_TIMEOUT):
                if size > sizes[-1]:
                    break
            else:
                return size
        finally:
            remove_placement_group(placement)
    raise AssertionError("the smallest size is waited for")


def _work(
    folder: Path,
    group: WorkerGroup,
    driver: str,
    work: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
) -> None:
    """Run `work` in a Ray Train worker; rank 0 writes the result to `folder`."""
    from ray import train

    place = train.get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    upscale = UpscaleRequest(group, world, requests=rank == 0)
    with closing(upscale), watch_preemption(drained(), drained(driver), upscale) as stop_reason:
        context = Context(
            folder,
            rank=rank,
            world=world,
            device=train.torch.get_device(),
            report=lambda metrics: train.report({**metrics, "workers": world}),
            stop_reason=stop_reason,
        )
        result = work(context, *arguments)
    if rank == 0:
        (folder / WORKERS_RESULT).write_text(json.dumps(result))


def run_workers(
    group: WorkerGroup,
    folder: Path,
    work: Callable[..., dict[str, Any]],
    *arguments: Any,
    download_results: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `work(context, *arguments)` on Ray Train workers; return the result of rank 0, and as
    `teams` the number of workers of each start.

    Must be called where Ray is initialised; inside a Tune trial the workers' reports become the
    trial's. If a worker dies or raises, all are restarted from the last checkpoint, at most
    `MAX_FAILURES` times, since the others wait for it in a collective call. They are also
    restarted, at most `MAX_PREEMPTION_RESTARTS` times, where `work` returns `preempted`. Each start
    has as many workers as Ray has room for then. `download_results` is called when the workers have
    ended, to fetch their files from another disk. Raises Ray Train's error with the worker's when
    training fails, Preempted where the caller's own node is drained.
    """
    from ray import get_runtime_context
    from ray.train import TrainingFailedError

    driver, sizes, failures = get_runtime_context().get_node_id(), list[int](), 0
    own_node_drained = drained()
    while True:
        sizes.append(size_now(group))
        worker = partial(_work, folder, group, driver, work, arguments)
        try:
            result = _train(group, sizes[-1], folder, worker, download_results)
        except TrainingFailedError:
            if own_node_drained():
                raise Preempted(own_node_drained()) from None
            if (failures := failures + 1) > MAX_FAILURES:
                raise
            continue
        if "preempted" not in result:
            return {**result, "teams": sizes}
        if own_node_drained() or len(sizes) - failures > MAX_PREEMPTION_RESTARTS:
            raise Preempted(result["preempted"])


def _train(
    group: WorkerGroup,
    size: int,
    folder: Path,
    worker: Callable[[], None],
    download_results: Callable[[], None],
) -> dict[str, Any]:
    """One start of the workers; the result that rank 0 wrote."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    result = folder / WORKERS_RESULT
    result.unlink(missing_ok=True)

    callbacks: list[Any] = []
    with suppress(RuntimeError):  # raised outside a Tune trial, which needs no callback
        callbacks.append(TuneReportCallback())
    for name, value in HEALTH_CHECK.items():
        os.environ.setdefault(name, value)  # Ray Train passes it on
    trainer = TorchTrainer(
        worker,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT),
        scaling_config=train.ScalingConfig(
            num_workers=size,
            use_gpu=bool(group.resources.get("GPU")),
            resources_per_worker=dict(group.resources),
        ),
        run_config=train.RunConfig(
            name=f"workers-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            # Ray would restart the same number; `run_workers` finds the number that fits.
            failure_config=train.FailureConfig(  # type: ignore[call-arg]
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=0 if group.elastic else 3,
            ),
            callbacks=callbacks,
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)
    download_results()
    return json.loads(result.read_text())
