"""The training loop, for pretraining and fine-tuning, alone or as one of several workers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdet import augment
from ssdet.augment.checks import needs_gradient
from ssdet.data.loading.batches import Batch, batches
from ssdet.data.loading.clips import Clips, normalise
from ssdet.data.loading.sampling import generator_for
from ssdet.inference.fine_features import Guide
from ssdet.models import create
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d, set_splits, splits_for
from ssdet.models.networks.pyramid import FineFeatures
from ssdet.models.networks.x3d_cpu import accelerate
from ssdet.training import losses, multigrid
from ssdet.training.context import Context
from ssdet.training.distributed import parallel, share_dropout
from ssdet.training.optimiser import set_lr
from ssdet.training.recipe import TrainRecipe
from ssdet.training.state import Progress, State, Validate


def train(
    recipe: TrainRecipe,
    clips: Clips,
    context: Context,
    initial: Mapping[str, Tensor] | None = None,
    validate: Validate | None = None,
    guide: Guide | None = None,
) -> dict[str, Any]:
    """Train from `initial` weights (their classifier is replaced), or from fresh ones.

    guide: the fine stream's features, for a recipe with `guide_steps`.

    Goes on from `context.folder/checkpoints/last.pt` where there is one, to the same bits as a run
    that was never stopped. Returns what happened; the weights are in the checkpoints `last` and,
    with `validate`, `best`. Raises FloatingPointError when the loss is not finite.
    """
    optim = recipe.optim
    model = network(recipe, clips.manifest.num_classes, initial).to(context.device)
    start_splits(model, recipe, context.world)
    share_dropout(model, context)
    state = State(recipe, model, context)
    state.restore()
    scored = parallel(Readout(model, recipe.readout), context)
    mixing = augmentation(recipe)
    if recipe.multigrid:
        data = multigrid.batches(clips, recipe, state.step, context.loaders, context.decode)
    else:
        data = batches(
            clips, optim.batch, state.step, optim.steps, context.rank, context.world,
            context.loaders, context.decode,
        )  # fmt: skip

    def backward(step: int) -> tuple[float, int]:
        batch, total = next(data), 0.0
        with multigrid.shaped(recipe, model, step) as shaped:
            for part in batch.split(optim.accumulate):
                with autocast(context.device, optim.amp):
                    loss = batch_loss(shaped, scored, mixing, part, step, context, guide)
                state.scaler.scale(loss / optim.accumulate).backward()
                total += loss.item() / optim.accumulate
        state.replaced |= batch.replaced
        return total, len(batch) * context.world

    scale = partial(multigrid.lr_scale, recipe)
    return descend(state, recipe.seed, backward, validate, recipe.validations, scale)


def descend(
    state: State,
    seed: int,
    backward: Callable[[int], tuple[float, int]],
    validate: Validate | None,
    validations: int,
    lr_scale: Callable[[int], float] = lambda step: 1.0,
) -> dict[str, Any]:
    """The steps that are left of a run; returns what happened.

    backward: leave the gradients of a step, and say its loss and how many samples it was of.
    lr_scale: factor of a step's learning rate, beside what the recipe's schedule says.
    """
    optim, context = state.recipe.optim, state.context
    progress = Progress(optim.steps, context)
    state.model.train()
    for step in range(state.step, optim.steps):
        seed_dropout(seed, step)
        scaled = replace(optim, lr=optim.lr * lr_scale(step))
        lr = set_lr(state.optimizer, scaled, step, state.drops)
        loss, samples = backward(step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}: lower the learning rate")
        state.update()
        progress.add(step, loss, lr, samples)
        if validate is not None and due(step + 1, optim.steps, validations):
            state.judge(validate)
        state.save_if_due()
    return state.finish()


def share(recipe: TrainRecipe, workers: int) -> int:
    """Clips of one pass of one worker. ValueError where they do not hold whole normalisation
    groups: the number of workers would then change what is computed."""
    if recipe.multigrid and workers > 1:
        raise ValueError(f"multigrid with {workers} workers: batches change shape, use one worker")
    batch, group = recipe.optim.batch // recipe.optim.accumulate, recipe.model.norm_group
    each, odd = divmod(batch, workers)
    if odd or (workers > 1 and each % min(group, batch)):
        raise ValueError(
            f"{batch} clips a pass over {workers} workers: each must get a multiple of "
            f"{min(group, batch)} clips, which share statistics; use fewer workers"
        )
    if workers > 1 and recipe.model.norm_start != "running":
        raise ValueError(f"norm_start={recipe.model.norm_start!r} stretches statistics over one "
                         "worker's groups: use one worker, or norm_start='running'")  # fmt: skip
    return each


def shares(recipe: TrainRecipe, low: int, high: int) -> list[int]:
    """Numbers of workers from low to high that `share` allows; ValueError where it allows none."""
    allowed, why = [], ""
    for workers in range(low, high + 1):
        try:
            share(recipe, workers)
        except ValueError as error:
            why = str(error)
        else:
            allowed.append(workers)
    if not allowed:
        raise ValueError(f"none of {low} to {high} workers is possible: {why}")
    return allowed


def start_splits(model: nn.Module, recipe: TrainRecipe, workers: int) -> None:
    """Give every normalisation one split a group, with the statistics that the recipe asks for."""
    splits = splits_for(share(recipe, workers), recipe.model.norm_group)
    set_splits(model, 1 if recipe.multigrid else splits)
    if recipe.model.norm_start == "running":
        return
    for norm in (module for module in model.modules() if isinstance(module, SubBatchNorm3d)):
        for name in ("mean", "var"):
            running_C, split_SC = getattr(norm, f"running_{name}"), getattr(norm, f"split_{name}")
            pooled = nn.functional.adaptive_avg_pool1d(running_C[None, None], len(split_SC))
            split_SC.copy_(pooled[0, 0])


def augmentation(recipe: TrainRecipe) -> augment.Augmentation:
    """The recipe's augmentation; frozen frames are labelled as `recipe.background` says."""
    options = dict(recipe.augment_options)
    if recipe.augment in ("freeze", "joint", "joint_single"):
        options["background"] = "zero" if recipe.background == "zero" else "class"
    return augment.create(recipe.augment, **options)


def network(
    recipe: TrainRecipe, classes: int, initial: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The recipe's network: fresh weights by its seed, or `initial` under a fresh classifier.

    Parts that the network has and its backbone lacks (`fresh`) are in `initial` or not, and may be
    all of it. ValueError where the backbone is there in part, or does not fit.
    """
    generator = generator_for(recipe.seed, "weights", recipe.task)
    model = create(
        recipe.model.name,
        recipe.head_classes(classes),
        generator=generator,
        **dict(recipe.model.options),
    )
    if initial is not None:
        # Statistics of splits start from the running ones that are loaded (`start_splits`).
        fresh = {k: v for k, v in model.state_dict().items() if ".split_" not in k}
        keep = {k: v for k, v in initial.items() if k in fresh and v.shape == fresh[k].shape}
        prefix: Any = model.classifier
        classifier = {name for name in fresh if name.startswith(prefix)}
        beside: tuple[str, ...] = getattr(model, "fresh", ())
        wrong = {k for k in fresh.keys() - keep.keys() - classifier if not k.startswith(beside)}
        if wrong and not all(name.startswith(beside) for name in initial):
            raise ValueError(f"initial weights do not fit {recipe.model.name}: {sorted(wrong)[:5]}")
        model.load_state_dict({**fresh, **{k: v for k, v in keep.items() if k not in classifier}})
    return accelerate(model)


class Readout(nn.Module):
    """A network as the loss sees it: frame logits [B, K, T], or clip logits [B, K].

    With `mix` the frames are those of mixed clips; a generator draws the level where they are mixed
    (`augment.manifold`), without one it is the input.
    """

    def __init__(self, model: nn.Module, readout: str) -> None:
        super().__init__()
        self.model, self.readout = model, readout

    def forward(
        self,
        clips_BCTHW: Tensor,
        mix: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
        fine: FineFeatures | None = None,
    ) -> Tensor:
        if fine is not None:
            return self.model(clips_BCTHW, fine)
        if self.readout == "clip":
            return self.model.classify(clips_BCTHW)  # type: ignore[operator]
        if mix is None:
            return self.model(clips_BCTHW)
        level = 0 if generator is None else augment.draw_level(self.model, generator)
        with augment.mixed_at(self.model, level, mix):
            return self.model(clips_BCTHW)


def batch_loss(
    recipe: TrainRecipe,
    scored: nn.Module,
    mixing: augment.Augmentation,
    batch: Batch,
    step: int,
    context: Context,
    guide: Guide | None = None,
) -> Tensor:
    """Loss of one part of a batch."""
    clips = normalise(batch.clips_BTHWC, recipe.clip, context.device)
    labels = batch.targets_BKF.to(context.device)
    if recipe.task == "finetune":
        masked = recipe.localisation == "coarse_fine"
        form = losses.masked_localisation_loss if masked else losses.localisation_loss
        if guide is None:
            logits = scored(clips)
        else:
            fine = guide(batch.videos, batch.starts_B).to(context.device)
            logits = scored(clips, fine=fine)
        return form(logits, labels, batch.mask_BF.to(context.device), recipe.align_corners)
    labels = labels[:, :, 0]
    targets = losses.pretrain_targets(labels, recipe.clip.frames, recipe.background)
    if recipe.readout == "clip":
        return losses.soft_cross_entropy(scored(clips), targets[:, :, 0])
    labelled: list[Any] = []

    def mixed(features: Tensor) -> Tensor:
        features, *labelled[:] = mix(recipe, mixing, features, targets, batch, step)
        return features

    # By the step alone: one level for a batch, all its parts and every worker.
    deep = recipe.mix_depth == "random"
    logits = scored(clips, mixed, generator_for(recipe.seed, "level", step) if deep else None)
    soft, components = labelled
    if recipe.loss == "released":
        return losses.released_loss(logits, components)
    if recipe.loss == "bce":
        return nn.functional.binary_cross_entropy_with_logits(logits, soft)
    return losses.soft_cross_entropy(logits, soft)


def mix(
    recipe: TrainRecipe,
    mixing: augment.Augmentation,
    clips_BCTHW: Tensor,
    targets_BKT: Tensor,
    batch: Batch,
    step: int,
) -> tuple[Tensor, Tensor, augment.Components]:
    """Augment clips (in place) or features (which need a gradient), normalisation group by group.

    A group is what shares batch statistics, so clips are mixed with the same partners and by the
    same draws on any number of workers.
    """
    groups = splits_for(len(batch), recipe.model.norm_group)
    deep = needs_gradient(clips_BCTHW)
    pictures, parts = [], []
    mixed = torch.empty_like(targets_BKT)
    for group in range(groups):
        members = slice(group, None, groups)
        draws_of = generator_for(recipe.seed, "mix", step, int(batch.positions_B[group]))
        clips, targets, components = mixing(
            clips_BCTHW[members], targets_BKT[members], draws_of, inplace=not deep,
            return_components=True,
        )  # fmt: skip
        mixed[members] = targets
        pictures.append(clips)
        parts.append(components)
    if deep:
        clips_BCTHW = torch.stack(pictures, 1).flatten(0, 1)
    return clips_BCTHW, mixed, join(parts)


def join(parts: Sequence[augment.Components]) -> augment.Components:
    """Components of several groups as those of one batch, whose clip i is of group i mod groups; a
    group that has fewer gets empty ones, which weigh nothing."""
    most = max(len(part.weights) for part in parts)
    padded = [
        [torch.cat([field, field.new_zeros(most - len(field), *field.shape[1:])]) for field in part]
        for part in parts
    ]
    whole = (torch.stack(fields, 2).flatten(1, 2) for fields in zip(*padded, strict=True))
    return augment.Components(*whole)


def due(step: int, steps: int, times: int) -> bool:
    """Whether one of `times` evenly spaced events falls on the end of step `step` (from 1)."""
    return step * times // steps > (step - 1) * times // steps


def seed_dropout(seed: int, step: int) -> None:
    """Dropout reads the global generator: give it a state that depends on the step alone."""
    torch.manual_seed(generator_for(seed, "step", step, 0).initial_seed())


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Mixed precision as the recipe says."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")
