"""Stages for those who watch from outside: gauges, TensorBoard, an actor by each stage's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from ssdet.studies.plan import Plan
from ssdet.studies.progress import names

NAMESPACE = "ssdet"
GAUGES = {
    "loss": "training loss, mean over the last stretch of steps",
    "lr": "learning rate",
    "clips_per_second": "clips trained on per second",
    "validation": "score of the validation split, a fraction",
    "gpu_memory_bytes": "most memory held on the GPU",
    "step": "optimiser steps done",
    "steps": "optimiser steps in all",
}
"""Exported by Ray's metrics agents as `ray_ssdet_NAME`."""

TAGS = ("study", "kind", "arm", "seed", "stage")


class Telemetry:
    """Passes on what stages report: to Ray's metrics, to event files in `STORE/tensorboard`, and,
    where there is a dashboard, to one named actor for each stage that runs."""

    def __init__(self, plan: Plan, folder: Path, actors: bool) -> None:
        from ray.util.metrics import Gauge

        self._study = plan.study.name
        self._names = names(plan)
        self._folder = folder / self._study
        self._gauges = {
            name: Gauge(f"ssdet_{name}", description, tag_keys=TAGS)
            for name, description in GAUGES.items()
        }
        self._running = Gauge("ssdet_running", "1 while a stage runs, else 0", tag_keys=TAGS)
        self._writers: dict[str, SummaryWriter] = {}
        self._actors: dict[str, Any] = {}
        self._with_actors = actors

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage reported a step, its end ("finished") or an error."""
        tags = self.tags(stage)
        over = "error" in metrics or bool(metrics.get("finished"))
        self._running.set(0.0 if over else 1.0, tags)
        if over:
            self._end(stage)
            return
        found = {name: float(metrics[name]) for name in GAUGES if name in metrics}
        if not found:
            return
        for name, value in found.items():
            self._gauges[name].set(value, tags)
        if stage not in self._writers:
            # An arm's name may hold what is no folder name.
            safe = tags["arm"].replace("/", "_")
            path = self._folder / f"{tags['kind']}-{safe}-seed{tags['seed']}-{stage[-6:]}"
            self._writers[stage] = SummaryWriter(str(path), flush_secs=10)
        for name, value in found.items():
            if name not in ("step", "steps"):
                self._writers[stage].add_scalar(name, value, int(metrics.get("step", 0)))
        if self._with_actors:
            self._tell_actor(stage, {**tags, **found})

    def tags(self, stage: str) -> dict[str, str]:
        """What a stage is, as labels; all arms that share it are named."""
        kind, arms, seed = self._names[stage]
        values = self._study, kind, "+".join(arms), str(seed), stage
        return dict(zip(TAGS, values, strict=True))

    def close(self) -> None:
        """The study has ended, or was stopped."""
        for stage in [*self._writers, *self._actors]:
            self._end(stage)

    def _end(self, stage: str) -> None:
        import ray

        if (writer := self._writers.pop(stage, None)) is not None:
            writer.close()
        if (actor := self._actors.pop(stage, None)) is not None:
            ray.kill(actor)

    def _tell_actor(self, stage: str, state: Mapping[str, Any]) -> None:
        import ray

        if stage not in self._actors:
            tags = self.tags(stage)
            name = f"{tags['study']}: {tags['kind']} {tags['arm']} seed {tags['seed']}"
            remote = ray.remote(num_cpus=0)(running_class())
            self._actors[stage] = remote.options(
                name=name, namespace=NAMESPACE, get_if_exists=True
            ).remote(name)
        self._actors[stage].put.remote(dict(state))


def running_class() -> type:
    """Class of the actor that stands for a running stage in the dashboard and knows its latest
    figures: `ray.get_actor(NAME, namespace="ssdet").get.remote()`.

    Made in a function, so that Ray ships it by value: found by its name, it would have the actor's
    process import all that this package imports, hundreds of megabytes for a few figures.
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

    return Running
