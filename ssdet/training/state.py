"""Resumable training state and the metrics it reports."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssdet.models.layers.sub_batch_norm import aggregate_splits, gather_splits, scatter_splits
from ssdet.system.recipe_json import to_json
from ssdet.training import checkpoint
from ssdet.training.context import Context
from ssdet.training.distributed import any_of, average, barrier, broadcast_decision
from ssdet.training.optimiser import lr_reductions, optimizer_for
from ssdet.training.preemption import Preempted
from ssdet.training.recipe import OptimRecipe

Validate = Callable[[nn.Module], Mapping[str, float]]
"""Scores of a network in evaluation mode: `validation`, higher is better, and optionally
`validation_loss`."""


class Recipe(Protocol):
    """Any recipe with `optim`; a checkpoint belongs to a run if the whole recipes are equal."""

    @property
    def optim(self) -> OptimRecipe:
        """Optimiser, schedule and batch."""


class TrainState:
    """Weights, optimiser, scaler, moving average and counts of one run.

    Random draws depend on seed and step alone, so the step is also the position in the data and the
    state of every generator.
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
        self.lr_reductions = 0
        self.replaced: dict[str, str] = {}
        self._saved = time.monotonic()

    @property
    def eval_model(self) -> nn.Module:
        """The network to evaluate: the moving average if the recipe has one."""
        return self.model if self.ema is None else self.ema.module

    def restore(self) -> None:
        """Load checkpoint `last` if there is one; ValueError if it is of another recipe."""
        path, rank, world = self.context.checkpoint("last"), self.context.rank, self.context.world
        if rank == 0:
            checkpoint.clean(path)
        if not path.is_file():
            return
        state = checkpoint.load(path, self.context.device)
        if "recipe" not in state:
            raise checkpoint.BrokenCheckpoint(f"{path} is not a checkpoint of a run: remove it")
        if state["recipe"] != to_json(self.recipe):
            raise ValueError(f"{path} belongs to another recipe: use another folder, or remove it")
        self.model.load_state_dict(scatter_splits(state["model"], rank, world))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(scatter_splits(state["averaged"], rank, world))
            self.ema.n_averaged.copy_(state["ema"])
        self.step, self.scores, self.replaced = state["step"], state["scores"], state["replaced"]
        self.losses = state["losses"]
        self.lr_reductions = lr_reductions(self.recipe.optim, self.losses)

    def save(self) -> None:
        """Write checkpoint `last`."""
        model = gather_splits(self.model)
        averaged = None if self.ema is None else gather_splits(self.eval_model)
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
            checkpoint.save(self.context.checkpoint("last"), state)
        self._saved = time.monotonic()

    def save_if_due(self) -> None:
        """Write `last` when rank 0's clock says so or any worker has a reason to stop.

        With a reason, raises Preempted on all workers, unless this was the last step.
        """
        context = self.context
        due = time.monotonic() - self._saved >= context.checkpoint_every
        reason = context.stop_reason()
        save, stop = any_of([due and context.rank == 0, bool(reason)], context)
        stop = stop and self.step < self.recipe.optim.steps
        if save or stop:
            self.save()
        if stop:
            raise Preempted(f"stopped after step {self.step}: {reason or 'another worker had to'}")

    def update(self) -> None:
        """Make one optimiser step with the accumulated gradients."""
        if self.recipe.optim.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def validate(self, validate: Validate) -> None:
        """Score the network on the validation split and save the best so far as `best`."""
        model, weights = self.eval_model, gather_splits(self.eval_model)
        model.eval()
        aggregate_splits(model)
        if self.context.rank == 0:
            scores = validate(model)
            self.scores |= scores
            if "validation_loss" in scores:
                self.losses.append(scores["validation_loss"])
            if scores["validation"] > self.scores.get("best_validation", float("-inf")):
                self.scores |= {"best_validation": scores["validation"], "best_step": self.step}
                checkpoint.save(self.context.checkpoint("best"), {"model": weights})
        self.model.train()
        barrier(self.context)
        # Only rank 0 has the losses.
        reduced = lr_reductions(self.recipe.optim, self.losses) > self.lr_reductions
        self.lr_reductions += broadcast_decision(reduced, self.context)
        self.context.report({"step": self.step, **self.scores})

    def finish(self) -> dict[str, Any]:
        """Write the final checkpoint and return steps, replaced clips and scores."""
        self.save()
        return {"steps": self.step, "replaced": dict(self.replaced), **self.scores}


class LossReporter:
    """Reports the mean loss, learning rate and clips per second at most 100 times a run or every 50
    steps."""

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
        seconds = max(time.monotonic() - self._since, 1e-9)
        mean = average(sum(self._losses) / len(self._losses), self.context)
        metrics = {"step": step + 1, "steps": self.steps, "loss": mean, "lr": lr}
        metrics["clips_per_second"] = self._clips / seconds
        if self.context.device.type == "cuda":
            metrics["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.context.device)
        self.context.report(metrics)
        self._losses, self._clips, self._since = [], 0, time.monotonic()
