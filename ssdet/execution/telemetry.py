"""Telemetry of running stages: Ray metrics, TensorBoard files, actors in Ray's dashboard."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from ssdet.studies.graph.plan import Plan, stage_labels

NAMESPACE = "ssdet"
GAUGES = {
    "loss": "training loss, mean over the steps since the last report",
    "lr": "learning rate",
    "clips_per_second": "clips trained on per second",
    "validation": "score of the validation split, a fraction",
    "gpu_memory_bytes": "peak memory allocated on the GPU",
    "step": "optimiser steps done",
    "steps": "optimiser steps of the whole training",
}
"""Exported by Ray's metrics agents as `ray_ssdet_NAME`."""

TAGS = ("study", "kind", "arm", "seed", "stage")
SECONDS_BETWEEN_GAUGES = 5.0
SECONDS_BETWEEN_FLUSHES = 10.0

log = logging.getLogger(__name__)


class Telemetry:
    """Exports the reports of stages to Ray's metrics, to event files in `STORE/tensorboard`, and,
    if `actors`, to one named actor per running stage in Ray's dashboard."""

    def __init__(self, plan: Plan, folder: Path, actors: bool) -> None:
        from ray.util.metrics import Gauge

        self._study = plan.study.name
        self._names = stage_labels(plan)
        self._folder = folder / self._study
        self._gauges = {
            name: Gauge(f"ssdet_{name}", description, tag_keys=TAGS)
            for name, description in {**GAUGES, "running": "1 while a stage runs, else 0"}.items()
        }
        self._latest: dict[str, dict[str, float]] = {}
        self._lock = Lock()
        self._closed = Event()
        self._repeating = Thread(target=self._repeat, daemon=True)
        self._repeating.start()
        self._writers: dict[str, EventsWriter] = {}
        self._flushed, self._full = time.monotonic(), False
        self._actors: dict[str, Any] = {}
        self._with_actors = actors

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage began, reported a step, its end ("finished"), an error, or that another process
        runs it ("elsewhere")."""
        if "error" in metrics or metrics.get("finished") or metrics.get("elsewhere"):
            self._end(stage)
            return
        values = {name: float(metrics[name]) for name in GAUGES if name in metrics}
        with self._lock:
            latest = self._latest.setdefault(stage, {"running": 1.0})
            latest.update(values)
            self._set(stage)
        if values:
            self._write(stage, values)
        if self._with_actors:
            self._update_actor(stage, {**self.tags(stage), **latest})

    def tags(self, stage: str) -> dict[str, str]:
        """Labels of a stage, with all arms that share it."""
        kind, arms, seed = self._names[stage]
        values = self._study, kind, "+".join(arms), str(seed), stage
        return dict(zip(TAGS, values, strict=True))

    def close(self) -> None:
        """The study has ended, or was stopped."""
        self._closed.set()
        self._repeating.join()
        for stage in [*self._latest]:
            self._end(stage)

    def _set(self, stage: str) -> None:
        tags = self.tags(stage)
        for name, value in self._latest[stage].items():
            self._gauges[name].set(value, tags)

    def _repeat(self) -> None:
        # Ray drops a gauge that was not set for 20 seconds; reports may be minutes apart.
        while not self._closed.wait(SECONDS_BETWEEN_GAUGES):
            with self._lock:
                for stage in self._latest:
                    self._set(stage)

    def _write(self, stage: str, values: Mapping[str, float]) -> None:
        """Append to a stage's event file, in this thread: a full disk would end the thread of
        tensorboardX's own writer and with it the study. Losing curves is acceptable."""
        if self._full:
            return
        try:
            if stage not in self._writers:
                self._writers[stage] = self._open(stage)
            for name, value in values.items():
                if name not in ("step", "steps"):
                    event = event_pb2.Event(
                        wall_time=time.time(),
                        step=int(values.get("step", 0)),
                        summary=scalar(name, value),
                    )
                    self._writers[stage].write_event(event)
            if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:
                self._flushed = time.monotonic()
                for writer in self._writers.values():
                    writer.flush()
        except OSError as error:
            self._give_up(error)

    def _open(self, stage: str) -> EventsWriter:
        tags = self.tags(stage)
        # An arm's name may contain a slash.
        safe = tags["arm"].replace("/", "_")
        path = self._folder / f"{tags['kind']}-{safe}-seed{tags['seed']}-{stage[-6:]}"
        path.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(path / "events"))

    def _give_up(self, error: OSError) -> None:
        log.warning("TensorBoard gets no more curves of this run: %s", error)
        self._full = True
        self._writers.clear()

    def _end(self, stage: str) -> None:
        import ray

        with self._lock:
            self._latest.pop(stage, None)
            self._gauges["running"].set(0.0, self.tags(stage))
        if (writer := self._writers.pop(stage, None)) is not None:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)
        if (actor := self._actors.pop(stage, None)) is not None:
            ray.kill(actor)

    def _update_actor(self, stage: str, state: Mapping[str, Any]) -> None:
        import ray

        if stage not in self._actors:
            tags = self.tags(stage)
            name = f"{tags['study']}: {tags['kind']} {tags['arm']} seed {tags['seed']}"
            remote: Any = ray.remote(num_cpus=0)(running_class())
            self._actors[stage] = remote.options(
                name=name, namespace=NAMESPACE, get_if_exists=True
            ).remote(name)
        self._actors[stage].put.remote(dict(state))


def running_class() -> type:
    """Class of the actor that represents a running stage in the dashboard, with its latest metrics:
    `ray.get_actor(NAME, namespace="ssdet").get.remote()`.

    Defined in a function, so that Ray ships it by value: a module-level class would make the
    actor's process import this package, hundreds of megabytes for a few numbers.
    """

    class Running:
        def __init__(self, name: str) -> None:
            self.name = name
            self.state: dict[str, Any] = {}

        def __repr__(self) -> str:
            return self.name

        def put(self, state: dict[str, Any]) -> None:
            self.state = state

        def get(self) -> dict[str, Any]:
            return self.state

    Running.__qualname__ = "Running"  # the dashboard's column "Class"
    return Running
