"""Executor that runs stages on Ray."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ssdet.data.features.shards import FeatureWriter
from ssdet.data.loading.batches import Decode
from ssdet.stages.features import StreamJob
from ssdet.stages.job import Executor, Job, Result
from ssdet.training.preemption import StopReason


class RayExecutor(Executor):
    """Workers of Ray Train, decoding by tasks of Ray, extraction by Ray Data."""

    def preemption_signs(self) -> tuple[StopReason, ...]:
        """Reason to stop while Ray drains the node of this process."""
        from ssdet.execution.workers import drained

        return (drained(),)

    def decoder(self, decoders: int) -> Decode | None:
        """Decode by so many tasks; None for 0."""
        from ssdet.execution.decoding import decode_batches

        return partial(decode_batches, decoders=decoders) if decoders else None

    def run_workers(
        self,
        job: Job,
        work: Callable[..., Result],
        *arguments: Any,
        download_results: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run work on Ray Train workers; see `ssdet.execution.workers.run_workers`."""
        from ssdet.execution.workers import WorkerGroup, run_workers

        sizes = job.sizes or (job.workers,)
        group = WorkerGroup(sizes, job.worker_resources, job.settle, job.decoders)
        return run_workers(group, job.folder, work, *arguments, download_results=download_results)

    def stream_features(
        self, job: Job, writer: FeatureWriter, progress: Callable[[], None]
    ) -> None:
        """Extract by Ray Data; see `ssdet.execution.feature_stream.stream_features`."""
        from ssdet.execution.feature_stream import stream_features

        assert isinstance(job, StreamJob)
        stream_features(job, writer, progress)
