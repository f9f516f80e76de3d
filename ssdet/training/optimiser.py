"""Optimisers and learning rates; the rate is a function of the step, so there is no state of it."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ssdet.training.recipe import OptimRecipe


def optimizer_for(model: nn.Module, recipe: OptimRecipe) -> torch.optim.Optimizer:
    """SGD or AdamW over two groups, backbone and head; `set_lr` sets their learning rates.

    A network that names no `head_parameters` is all head.
    """
    head_of = getattr(model, "head_parameters", model.parameters)
    head = {id(parameter) for parameter in head_of()}
    parts: list[list[nn.Parameter]] = [[], []]
    for parameter in model.parameters():
        parts[id(parameter) in head].append(parameter)
    groups = [
        {"params": parts[0], "scale": 1 / recipe.head_lr_mult},
        {"params": parts[1], "scale": 1.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        groups, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def set_lr(
    optimizer: torch.optim.Optimizer, recipe: OptimRecipe, step: int, drops: int = 0
) -> float:
    """Set and return the learning rate of step `step` (from 0), that of the head.

    drops: how often a plateau has lowered it, see `plateau_drops`.
    """
    lr = recipe.lr * lr_factor(recipe, step) * recipe.decay**drops
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    return lr


def lr_factor(recipe: OptimRecipe, step: int) -> float:
    """Learning rate at a step as a share of `recipe.lr`.

    step: times `decay` at each milestone. cosine: half a wave down to 0. onecycle: up from 1/25 in
    the first 30 % of the steps and down to 0, in cosine arcs (Smith & Topin 2019, as in torch).
    """
    done = step / recipe.steps
    if recipe.schedule == "step":
        factor = recipe.decay ** sum(done >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "cosine":
        factor = _arc(1.0, 0.0, done)
    elif recipe.schedule == "onecycle":
        rising = done < 0.3
        factor = _arc(0.04, 1.0, done / 0.3) if rising else _arc(1.0, 0.0, (done - 0.3) / 0.7)
    else:
        factor = 1.0
    return factor * min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else factor


def plateau_drops(losses: Sequence[float], patience: int) -> int:
    """How often the rate has been lowered after these validation losses: each time when more than
    `patience` in a row are no better, by 1 in 10,000, than the best (torch's ReduceLROnPlateau)."""
    best, waited, drops = math.inf, 0, 0
    for loss in losses:
        better = loss < best * (1 - 1e-4)
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited > patience:
            drops, waited = drops + 1, 0
    return drops


def _arc(start: float, stop: float, done: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * done)) / 2
