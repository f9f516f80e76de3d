"""Environment of the training loop: folder, rank, device, progress callbacks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ssdet.data.loading.batches import Decode

WORKERS_RESULT = "workers.json"
"""File in which the first of several workers leaves its result."""
Report = Callable[[Mapping[str, float]], None]


def default_device() -> torch.device:
    """The first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Context:
    """One worker of a training run.

    The loop runs the same in a plain process, in a Ray Tune trial and in a Ray Train worker; they
    differ in `report`, `rank` and `world`. Rank 0 writes `folder/checkpoints`.
    """

    folder: Path
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=default_device)
    report: Report = lambda metrics: None
    """Told of progress by every worker at the same steps."""
    asked: Callable[[], str] = lambda: ""
    """Why this worker should stop at the end of the step, or nothing."""
    checkpoint_every: float = 60.0
    """Seconds between two checkpoints of a run that goes on."""
    loaders: int = 0
    """Processes that decode ahead."""
    decode: Decode | None = None
    """Decodes ahead elsewhere, in place of loader processes."""

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoint `last` or `best`."""
        return self.folder / "checkpoints" / f"{name}.pt"
