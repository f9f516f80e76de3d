"""Environment of the training loop: folder, rank, device, callbacks for progress and preemption."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ssdet.data.loading.batches import Decode

WORKERS_RESULT = "workers.json"
"""File for the result of several workers, written by rank 0."""
Report = Callable[[Mapping[str, float]], None]


def default_device() -> torch.device:
    """The first GPU, or the CPU without one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Context:
    """Environment of one worker of a training run.

    The loop is the same in a plain process, a Ray Tune trial and a Ray Train worker, which differ
    in `report`, `rank` and `world`. Rank 0 writes `folder/checkpoints`.
    """

    folder: Path
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=default_device)
    report: Report = lambda metrics: None
    """Receives metrics, from every worker at the same steps."""
    stop_reason: Callable[[], str] = lambda: ""
    """Return the reason to stop after this step, or ''."""
    checkpoint_every: float = 60.0
    """Seconds between two checkpoints of a run that goes on."""
    loaders: int = 0
    """Processes that decode ahead."""
    decode: Decode | None = None
    """Remote decoder that replaces loader processes."""

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoint `last` or `best`."""
        return self.folder / "checkpoints" / f"{name}.pt"
