"""Budget of a run: core-hours or GPU-hours after which no further stage starts."""

import time
from collections.abc import Mapping
from typing import Any

from ssdet.studies.graph.identity import Stage

TRAINING = ("pretrain", "finetune")
"""Kinds of stages that several workers may share."""


class Budget:
    """Device hours of running and finished stages: of their GPUs, or cores where none are used."""

    def __init__(self, hours: float, workers: int = 1, gpus_per_worker: float = 0) -> None:
        if not hours > 0:
            raise ValueError(f"budget {hours}: expected hours above 0")
        self.hours, self.workers, self.per_worker = hours, workers, gpus_per_worker or 1.0
        self.unit = "GPU-hours" if gpus_per_worker else "core-hours"
        self._used = 0.0
        self._running: dict[str, tuple[float, float]] = {}

    def __str__(self) -> str:
        return f"budget of {self.hours:g} {self.unit}"

    def start(self, stage: Stage) -> None:
        """A stage starts to use its devices."""
        devices = self.per_worker * (self.workers if stage.kind in TRAINING else 1)
        self._running[stage.id] = time.monotonic(), devices

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage reported (`ssdet.execution.tuner.Listener`). With `workers` in the report, it is
        counted with so many since its last report or start, else with as many as planned."""
        if stage in self._running and "workers" in metrics:
            (began, _), now = self._running[stage], time.monotonic()
            devices = self.per_worker * metrics["workers"]
            self._used += (now - began) * devices / 3600
            self._running[stage] = now, devices

    def stop(self, stage_id: str) -> None:
        """A stage has finished or failed."""
        began, devices = self._running.pop(stage_id)
        self._used += (time.monotonic() - began) * devices / 3600

    def spent(self) -> bool:
        """Whether no further stage may start."""
        now = time.monotonic()
        running = sum((now - began) * devices / 3600 for began, devices in self._running.values())
        return self._used + running >= self.hours
