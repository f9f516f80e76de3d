"""Everything that a run must have to go on where it was stopped, and the progress it tells of."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssdet.training import checkpoint
from ssdet.training.context import Context
from ssdet.training.distributed import agree, barrier, own_state, whole_state
from ssdet.training.optim import optimizer_for
from ssdet.training.recipe import TrainRecipe, to_json

Validate = Callable[[nn.Module], float]
"""Score of a network in evaluation mode, higher is better."""


class State:
    """Weights, optimiser, scaler, moving average and counts of one run.

    Draws depend on seed and step alone, so the step is also the position in the data and the state
    of every generator.
    """

    def __init__(self, recipe: TrainRecipe, model: nn.Module, context: Context) -> None:
        optim = recipe.optim
        self.recipe, self.model, self.context = recipe, model, context
        self.optimizer = optimizer_for(model, optim)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=optim.amp == "fp16")
        average = get_ema_multi_avg_fn(optim.ema)
        self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True) if optim.ema else None
        self.step = 0
        self.scores: dict[str, float] = {}
        self.replaced: dict[str, str] = {}
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Load checkpoint `last` if there is one; ValueError if it is of another recipe."""
        path = self.context.checkpoint("last")
        if not path.is_file():
            return
        state = checkpoint.load(path, self.context.device)
        if state["recipe"] != to_json(self.recipe):
            raise ValueError(f"{path} belongs to another recipe: use another folder, or remove it")
        self.model.load_state_dict(own_state(state["model"], self.model, self.context))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.scores, self.replaced = state["step"], state["scores"], state["replaced"]

    def update(self) -> None:
        """One optimiser step from the gradients that have gathered."""
        if self.recipe.optim.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def judge(self, validate: Validate) -> None:
        """Score the network on the validation split; the best so far is kept as `best`."""
        weights = self.weights()
        if self.context.rank == 0:
            judged = self.model if self.ema is None else self.ema.module
            judged.eval()
            use_statistics(judged, weights)
            score = validate(judged)
            self.scores["validation"] = score
            if score > self.scores.get("best_validation", float("-inf")):
                self.scores |= {"best_validation": score, "best_step": self.step}
                checkpoint.save(self.context.checkpoint("best"), {"model": weights, "averaged": None})
        self.model.train()
        barrier(self.context)
        self.context.report({"step": self.step, **self.scores})

    def weights(self) -> dict[str, Any]:
        """State dict to evaluate: the moving average where one is kept."""
        judged = self.model if self.ema is None else self.ema.module
        return whole_state(judged, self.context)

    def save_if_due(self) -> None:
        """Write `last` if the last time is long enough ago; rank 0's clock decides."""
        due = time.monotonic() - self._saved >= self.context.checkpoint_every
        if agree(due, self.context):
            self.save()

    def save(self) -> Path:
        """Write checkpoint `last`."""
        model = whole_state(self.model, self.context)
        averaged = None if self.ema is None else self.weights()
        path = self.context.checkpoint("last")
        if self.context.rank == 0:
            state = {
                "recipe": to_json(self.recipe),
                "model": model,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "averaged": averaged,
                "step": self.step,
                "scores": self.scores,
                "replaced": self.replaced,
            }
            checkpoint.save(path, state)
        self._saved = time.monotonic()
        return path

    def finish(self) -> dict[str, Any]:
        """Write the final checkpoint and say what happened."""
        self.save()
        return {"steps": self.step, "replaced": dict(self.replaced), **self.scores}


def use_statistics(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Evaluate with the running statistics of `weights`, which hold those of all workers."""
    own = model.state_dict()
    for name, value in weights.items():
        if ".running_" in name:
            own[name].copy_(value)


class Progress:
    """Means of the loss over stretches of steps, told at most a hundred times a run or every 50."""

    def __init__(self, steps: int, context: Context) -> None:
        self.every = max(1, min(50, steps // 100))
        self.steps, self.context = steps, context
        self._losses: list[float] = []
        self._clips, self._since = 0, time.monotonic()

    def add(self, step: int, loss: float, lr: float, clips: int) -> None:
        """Count step `step` (from 0) with its loss, learning rate and number of clips."""
        self._losses.append(loss)
        self._clips += clips
        if (step + 1) % self.every and step + 1 < self.steps:
            return
        seconds = time.monotonic() - self._since
        mean = sum(self._losses) / len(self._losses)
        rate = self._clips / max(seconds, 1e-9)
        self.context.report(
            {"step": step + 1, "steps": self.steps, "loss": mean, "lr": lr, "clips_per_second": rate}
        )
        self._losses, self._clips, self._since = [], 0, time.monotonic()
