"""Atomic checkpoint files: written to a temporary file, then renamed."""

import os
from pathlib import Path
from typing import Any

import torch


class BrokenCheckpoint(ValueError):
    """A file that is truncated, no checkpoint, or has objects beside tensors and numbers."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: `path` is the old or the new one, complete, at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(f".{os.getpid()}.partial")
    with open(work, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)


def clean(path: Path) -> None:
    """Remove temporary files of killed processes; no other process may be writing here."""
    for partial in path.parent.glob("*.partial"):
        partial.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises BrokenCheckpoint with path and reason, OSError for a file that cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # damaged bytes can mean anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BrokenCheckpoint(
                f"{path}: not a checkpoint that can be read safely ({reason}); "
                "restore it from a copy, or remove it and the stage trains again"
            ) from error
    if not isinstance(state, dict):
        raise BrokenCheckpoint(f"{path}: is a {type(state).__name__}, expected a dictionary")
    return state


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights to evaluate or to start from: the moving average if there is one.

    Without the statistics of single normalisation splits, which are those of single batches.
    """
    state = load(path)
    weights = state.get("averaged") or state.get("model")
    if not isinstance(weights, dict):
        raise BrokenCheckpoint(f"{path}: has no entry 'model', it is not a checkpoint of a stage")
    return {name: value for name, value in weights.items() if ".split_" not in name}
