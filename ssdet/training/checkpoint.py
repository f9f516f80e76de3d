"""Checkpoints that a crash cannot break: written beside, then renamed into place."""

import os
from pathlib import Path
from typing import Any

import torch


class BrokenCheckpoint(ValueError):
    """A checkpoint that is truncated, not a checkpoint, or holds more than tensors and numbers."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds the old or the new one, whole, at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(f".{os.getpid()}.partial")
    with open(work, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)


def clean(path: Path) -> None:
    """Remove what killed processes left beside a checkpoint; no other may be writing it."""
    for left in path.parent.glob("*.partial"):
        left.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises BrokenCheckpoint with the path and what is wrong, OSError for a file that cannot be
    opened.
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
        raise BrokenCheckpoint(f"{path}: holds a {type(state).__name__}, expected a dictionary")
    return state


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights to evaluate or to start from: the moving average where one was kept.

    Statistics of single normalisation splits are left out: they belong to the batch they came from.
    """
    state = load(path)
    weights = state.get("averaged") or state.get("model")
    if not isinstance(weights, dict):
        raise BrokenCheckpoint(f"{path}: has no entry 'model', it is not a checkpoint of a stage")
    return {name: value for name, value in weights.items() if ".split_" not in name}
