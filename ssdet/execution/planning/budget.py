"""Budget of a run: core-hours or GPU-hours after which no further stage starts."""

import time
from collections.abc import Mapping
from typing import Any

from ssdet.studies.graph.identity import Stage

TRAINING = ("pretrain", "finetune")


class Budget:
    """Device hours, counted from when stages start: GPUs held, or cores where none are used."""

    def __init__(self, hours: float, workers: int = 1, gpus_per_worker: float = 0) -> None:
        if not hours > 0:
            raise ValueError(f"budget {hours}: expected hours above 0")
        self.hours, self.workers, self.each = hours, workers, gpus_per_worker or 1.0
        self.unit = "GPU-hours" if gpus_per_worker else "core-hours"
        self._used = 0.0
        self._running: dict[str, tuple[float, float]] = {}

    def __str__(self) -> str:
        return f"budget of {self.hours:g} {self.unit}"

    def start(self, stage: Stage) -> None:
        """A stage begins to hold its devices."""
        held = self.each * (self.workers if stage.kind in TRAINING else 1)
        self._running[stage.id] = time.monotonic(), held

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage reported (`tuner.Listener`), perhaps with how many `workers`: since
        it reported last, or began, it is held to have had so many. Without, as many as planned."""
        if stage in self._running and "workers" in metrics:
            (began, _), now = self._running[stage], time.monotonic()
            held = self.each * metrics["workers"]
            self._used += (now - began) * held / 3600
            self._running[stage] = now, held

    def stop(self, stage_id: str) -> None:
        """A stage has ended, well or not."""
        began, held = self._running.pop(stage_id)
        self._used += (time.monotonic() - began) * held / 3600

    def spent(self) -> bool:
        """Whether nothing more may be started."""
        now = time.monotonic()
        running = sum((now - began) * held / 3600 for began, held in self._running.values())
        return self._used + running >= self.hours
