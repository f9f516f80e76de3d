"""Optimisers and learning-rate schedules; the rate is a function of step and validation losses."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ssdet.training.recipe import OptimRecipe


def optimizer_for(model: nn.Module, recipe: OptimRecipe) -> torch.optim.Optimizer:
    """SGD or AdamW over two groups, backbone and head, whose learning rates `set_lr` sets.

    A network without `head_parameters` is all head.
    """
    head = {id(parameter) for parameter in getattr(model, "head_parameters", model.parameters)()}
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
    optimizer: torch.optim.Optimizer,
    recipe: OptimRecipe,
    step: int,
    reductions: int = 0,
    scale: float = 1.0,
) -> float:
    """Set and return the head's learning rate at step `step` (from 0).

    reductions: see `lr_reductions`. scale: factor beside the schedule (multigrid's larger batches).
    """
    lr = recipe.lr * scale * lr_factor(recipe, step) * recipe.decay**reductions
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    return lr


def lr_factor(recipe: OptimRecipe, step: int) -> float:
    """Learning rate at a step as a fraction of `recipe.lr`, before any reduction at a plateau.

    step: times `decay` at each milestone. cosine: half a wave down to 0. onecycle: up from 1/25 in
    the first 30 % of the steps and down to 0, in cosine arcs (Smith & Topin 2019, as in torch).
    """
    done = step / recipe.steps
    if recipe.schedule == "step":
        factor = recipe.decay ** sum(done >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "cosine":
        factor = _cosine(1.0, 0.0, done)
    elif recipe.schedule == "onecycle" and done < 0.3:
        factor = _cosine(0.04, 1.0, done / 0.3)
    elif recipe.schedule == "onecycle":
        factor = _cosine(1.0, 0.0, (done - 0.3) / 0.7)
    else:
        factor = 1.0
    return factor * min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else factor


def _cosine(start: float, stop: float, done: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * done)) / 2


def lr_reductions(recipe: OptimRecipe, losses: Sequence[float]) -> int:
    """How often schedule "plateau" has multiplied the rate by `decay` after these losses.

    It does so when more than `patience` validation losses in a row are not below the best by 1 in
    10,000 (torch's ReduceLROnPlateau). 0 for every other schedule.
    """
    if recipe.schedule != "plateau":
        return 0
    best, waited, reductions = math.inf, 0, 0
    for loss in losses:
        better = loss < best * (1 - 1e-4)
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited > recipe.patience:
            reductions, waited = reductions + 1, 0
    return reductions
