"""A stage as a job for one process, and what it needs of the platform that runs it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdet.data.loading.batches import Decode
from ssdet.data.loading.recipe import DENSE
from ssdet.store.base import Store
from ssdet.studies.data import Data
from ssdet.studies.graph.identity import Stage
from ssdet.training.context import Report
from ssdet.training.preemption import StopReason
from ssdet.training.recipe import HeadRecipe, TrainRecipe

if TYPE_CHECKING:
    from ssdet.data.features.shards import FeatureWriter

Result = dict[str, Any]
LAST = "checkpoints/last.pt"
FEATURES = "features"
"""Folder of an extraction's features, in the folder of its stage."""


class Executor:
    """What stages need of the platform that runs them. This one is a single process; that of Ray is
    `ssdet.execution.executor.RayExecutor`."""

    def preemption_signs(self) -> tuple[StopReason, ...]:
        """Signs that this process should stop at a checkpoint, beside SIGTERM."""
        return ()

    def decoder(self, decoders: int) -> Decode | None:
        """Decoding by so many tasks elsewhere; None for 0. ValueError where there are none."""
        if decoders:
            raise ValueError(
                f"decoders={decoders}: they are tasks of Ray: run the study by its command, or use "
                "loaders, which need none"
            )
        return None

    def run_workers(
        self,
        job: "Job",
        work: Callable[..., Result],
        *arguments: Any,
        download_results: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run `work(context, *arguments)` on the job's workers; returns the result of the first,
        and as `teams` how many worked at each start. `download_results` fetches their files when
        they have ended."""
        raise ValueError(f"{job.stage.id}: {job.workers} workers need Ray")

    def stream_features(
        self, job: "Job", writer: "FeatureWriter", progress: Callable[[], None]
    ) -> None:
        """Write the features of all videos that the writer lacks, decoded by other processes."""
        raise ValueError(f"{job.stage.id}: decoding by other processes needs Ray")


@dataclass(frozen=True)
class Job:
    """A stage with all that it needs to run anywhere; plain values, so it travels as JSON."""

    stage: Stage
    store: str
    data: Data
    workers: int = 1
    sizes: tuple[int, ...] = ()
    """Numbers of workers of a training that has as many as there is room for, instead."""
    settle: float = 60.0
    """Seconds that it trains before it is stopped for more of them."""
    worker_resources: Mapping[str, float] = field(default_factory=dict)
    """What each of several workers asks of Ray."""
    loaders: int = 0
    decoders: int = 0
    """Tasks of Ray that decode for each worker of a training."""
    checkpoint_every: float = 60.0
    threads: int = 1
    protocol: str = DENSE
    """What a stage that scores videos is scored under beside its own dense mAP."""
    executor: Executor = field(default_factory=Executor)
    ranked: bool = False
    """Whether trials of a search are compared by the validations of this training."""

    @property
    def folder(self) -> Path:
        return Store.open(self.store).folder(self.stage.id)

    @property
    def alone(self) -> bool:
        """Whether the work is done in this process, not by workers that it starts."""
        return self.workers == 1 and not self.sizes

    def parent(self, index: int = 0, part: str = "") -> Path:
        """Folder of a parent stage, with this file or folder of it, or all, on this machine."""
        return Store.open(self.store).fetch(self.stage.parents[index].id, part)


def logged(path: Path, report: Report) -> Report:
    """A report that also appends a JSON line to a file. A resumed run repeats the steps since its
    checkpoint: the last line of a step counts."""

    def both(metrics: Mapping[str, float]) -> None:
        with open(path, "a") as log:
            log.write(json.dumps(dict(metrics)) + "\n")
        report(metrics)

    return both


def with_rungs(job: Job, report: Report) -> Report:
    """A report that, for a job by which trials are compared while they run, numbers each
    validation: `rung` (from 1) of `rungs`, and `map`."""
    if not job.ranked:
        return report
    recipe: TrainRecipe | HeadRecipe = job.stage.recipe

    def named(metrics: Mapping[str, float]) -> None:
        if "validation" in metrics:
            rung = int(metrics["step"]) * recipe.validations // recipe.optim.steps
            place = {"rung": rung, "rungs": recipe.validations}
            metrics = {**metrics, **place, "map": metrics["validation"]}
        report(metrics)

    return named
