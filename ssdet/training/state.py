"""Resumable training state and the metrics it reports."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssdet.models.layers.sub_batch_norm import aggregate_splits, gather_splits, scatter_splits
from ssdet.system.recipe_json import to_json
from ssdet.training import checkpoint
from ssdet.training.context import Context
from ssdet.training.distributed import agree, any_of, average, barrier
from ssdet.training.optimiser import optimizer_for, plateau_drops
from ssdet.training.preemption import Preempted
from ssdet.training.recipe import OptimRecipe

Validate = Callable[[nn.Module], Mapping[str, float]]
"""What a network in evaluation mode reaches: `validation`, higher is better, and perhaps
`validation_loss`."""


class Recipe(Protocol):
    """What a run's recipe must have; all of it decides whether a checkpoint is of this run."""

    @property
    def optim(self) -> OptimRecipe:
        """Optimiser, schedule and batch."""


class State:
    """Weights, optimiser, scaler, moving average and counts of one run.

    Draws depend on seed and step alone, so the step is also the position in the data and the state
    of every generator.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, context: Context) -> None:
        optim = recipe.optim
        self.recipe, self.model, self.context = recipe, model, context
        self.optimizer = optimizer_for(model, optim)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=optim.amp == "fp16")
        self.ema = None
        if optim.ema:
            decay = get_ema_multi_avg_fn(optim.ema)
            self.ema = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        self.step = 0
        self.scores: dict[str, float] = {}
        self.losses: list[float] = []
        self.drops = 0
        self.replaced: dict[str, str] = {}
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Load checkpoint `last` if there is one; ValueError if it is of another recipe."""
        path = self.context.checkpoint("last")
        if self.context.rank == 0:
            checkpoint.clean(path)
        if not path.is_file():
            return
        state = checkpoint.load(path, self.context.device)
        if "recipe" not in state:
            raise checkpoint.BrokenCheckpoint(f"{path} is not a checkpoint of a run: remove it")
        if state["recipe"] != to_json(self.recipe):
            raise ValueError(f"{path} belongs to another recipe: use another folder, or remove it")
        own = scatter_splits(state["model"], self.context.rank, self.context.world)
        self.model.load_state_dict(own)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            averaged = scatter_splits(state["averaged"], self.context.rank, self.context.world)
            self.ema.module.load_state_dict(averaged)
            self.ema.n_averaged.copy_(state["ema"])
        self.step, self.scores, self.replaced = state["step"], state["scores"], state["replaced"]
        self.losses = state.get("losses", [])
        self.drops = self._plateaus()

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
        judged, weights = self.judged, gather_splits(self.judged)
        judged.eval()
        aggregate_splits(judged)
        if self.context.rank == 0:
            found = validate(judged)
            self.scores |= found
            score = found["validation"]
            self.losses += [found["validation_loss"]] if "validation_loss" in found else []
            if score > self.scores.get("best_validation", float("-inf")):
                self.scores |= {"best_validation": score, "best_step": self.step}
                checkpoint.save(self.context.checkpoint("best"), {"model": weights})
        self.model.train()
        barrier(self.context)
        self.drops += agree(self._plateaus() > self.drops, self.context)
        self.context.report({"step": self.step, **self.scores})

    def _plateaus(self) -> int:
        """How often the learning rate has been lowered; rank 0 alone knows before the others."""
        optim = self.recipe.optim
        return plateau_drops(self.losses, optim.patience) if optim.schedule == "plateau" else 0

    @property
    def judged(self) -> nn.Module:
        """The network to evaluate: the moving average where one is kept."""
        return self.model if self.ema is None else self.ema.module

    def save_if_due(self) -> None:
        """Write `last` if the last time is long enough ago, by rank 0's clock, or if a worker is
        asked to stop: then Preempted is raised, on all, unless this was the last step."""
        context = self.context
        due = time.monotonic() - self._saved >= context.checkpoint_every
        why = context.asked()
        save, stop = any_of([due and context.rank == 0, bool(why)], context)
        stop = stop and self.step < self.recipe.optim.steps
        if save or stop:
            self.save()
        if stop:
            raise Preempted(f"stopped after step {self.step}: {why or 'another worker had to'}")

    def save(self) -> Path:
        """Write checkpoint `last`."""
        model = gather_splits(self.model)
        averaged = None if self.ema is None else gather_splits(self.judged)
        path = self.context.checkpoint("last")
        if self.context.rank == 0:
            state = {
                "recipe": to_json(self.recipe),
                "model": model,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": None if self.ema is None else self.ema.n_averaged,
                "averaged": averaged,
                "step": self.step,
                "scores": self.scores,
                "losses": self.losses,
                "replaced": self.replaced,
            }
            checkpoint.save(path, state)
        self._saved = time.monotonic()
        return path

    def finish(self) -> dict[str, Any]:
        """Write the final checkpoint and say what happened."""
        self.save()
        return {"steps": self.step, "replaced": dict(self.replaced), **self.scores}


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
        mean = average(sum(self._losses) / len(self._losses), self.context)
        rate = self._clips / max(seconds, 1e-9)
        count = {"step": step + 1, "steps": self.steps}
        told = {**count, "loss": mean, "lr": lr, "clips_per_second": rate}
        if self.context.device.type == "cuda":
            told["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.context.device)
        self.context.report(told)
        self._losses, self._clips, self._since = [], 0, time.monotonic()
