"""The training loop of pretraining and fine-tuning, for one or several workers."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdet import augment
from ssdet.augment.checks import needs_gradient
from ssdet.data.loading.batches import Batch, batches
from ssdet.data.loading.clips import Clips, normalise
from ssdet.data.loading.sampling import generator_for
from ssdet.inference.fine_features import FineFeatureReader
from ssdet.models import create
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d, set_splits, splits_for
from ssdet.models.networks.pyramid import FineFeatures
from ssdet.models.networks.x3d_cpu import accelerate
from ssdet.training import losses, multigrid
from ssdet.training.context import Context
from ssdet.training.distributed import parallel, share_dropout
from ssdet.training.optimiser import set_lr
from ssdet.training.recipe import TrainRecipe
from ssdet.training.state import LossReporter, TrainState, Validate


def train(
    recipe: TrainRecipe,
    clips: Clips,
    context: Context,
    initial: Mapping[str, Tensor] | None = None,
    validate: Validate | None = None,
    fine_reader: FineFeatureReader | None = None,
) -> dict[str, Any]:
    """Train from `initial` weights (with a fresh classifier) or from fresh ones.

    fine_reader: the fine stream's features, for a recipe with `fine_steps`.

    Resumes from `context.folder/checkpoints/last.pt` if it exists, to the same bits as an
    uninterrupted run. Returns steps, replaced clips and scores; the weights are in the checkpoints
    `last` and, with `validate`, `best`. Raises FloatingPointError when the loss is not finite.
    """
    optim = recipe.optim
    model = network(recipe, clips.manifest.num_classes, initial).to(context.device)
    start_splits(model, recipe, context.world)
    share_dropout(model, context)
    state = TrainState(recipe, model, context)
    state.restore()
    readout = parallel(Readout(model, recipe.readout), context)
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
                    loss = batch_loss(shaped, readout, mixing, part, step, context, fine_reader)
                state.scaler.scale(loss / optim.accumulate).backward()
                total += loss.item() / optim.accumulate
        state.replaced |= batch.replaced
        return total, len(batch) * context.world

    scale = partial(multigrid.lr_scale, recipe)
    return run_steps(state, recipe.seed, backward, validate, recipe.validations, scale)


def run_steps(
    state: TrainState,
    seed: int,
    backward: Callable[[int], tuple[float, int]],
    validate: Validate | None,
    validations: int,
    lr_scale: Callable[[int], float] = lambda step: 1.0,
) -> dict[str, Any]:
    """Run the remaining steps; return `TrainState.finish()`.

    backward: accumulate the gradients of a step; return (loss, number of samples).
    lr_scale: factor of a step's learning rate beside the recipe's schedule.
    """
    optim, reporter = state.recipe.optim, LossReporter(state.recipe.optim.steps, state.context)
    state.model.train()
    for step in range(state.step, optim.steps):
        # Dropout reads the global generator: give it a state that depends on the step alone.
        torch.manual_seed(generator_for(seed, "step", step, 0).initial_seed())
        lr = set_lr(state.optimizer, optim, step, state.lr_reductions, lr_scale(step))
        loss, samples = backward(step)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}: lower the learning rate")
        state.update()
        reporter.add(step, loss, lr, samples)
        if validate is not None and is_due(step + 1, optim.steps, validations):
            state.validate(validate)
        state.save_if_due()
    return state.finish()


def fit(
    recipe: Any,
    model: nn.Module,
    batch_of: Callable[[int], Any],
    loss_of: Callable[[Any], Tensor],
    context: Context,
    validate: Validate | None,
) -> dict[str, Any]:
    """Train a head: batches by step (with `to` and `targets_BKT`), one backward pass per step.

    recipe: with `optim`, `seed` and `validations`. Resumes and ends as `train`.
    """
    state = TrainState(recipe, model.to(context.device), context)
    state.restore()

    def backward(step: int) -> tuple[float, int]:
        batch = batch_of(step).to(context.device)
        with autocast(context.device, recipe.optim.amp):
            loss = loss_of(batch)
        state.scaler.scale(loss).backward()
        return loss.item(), len(batch.targets_BKT)

    return run_steps(state, recipe.seed, backward, validate, recipe.validations)


def is_due(step: int, steps: int, times: int) -> bool:
    """Whether one of `times` evenly spaced events falls on the end of step `step` (from 1)."""
    return step * times // steps > (step - 1) * times // steps


def clips_per_worker(recipe: TrainRecipe, workers: int) -> int:
    """Clips in one forward pass of one worker.

    ValueError unless they are whole normalisation groups: results would depend on `workers`.
    """
    if recipe.multigrid and workers > 1:
        raise ValueError(f"multigrid with {workers} workers: batches change shape, use one worker")
    batch, group = recipe.optim.batch // recipe.optim.accumulate, recipe.model.norm_group
    clips, remainder = divmod(batch, workers)
    if remainder or (workers > 1 and clips % min(group, batch)):
        raise ValueError(
            f"{batch} clips a pass over {workers} workers: each must get a multiple of "
            f"{min(group, batch)} clips, which share statistics; use fewer workers"
        )
    if workers > 1 and recipe.model.norm_start != "running":
        raise ValueError(f"norm_start={recipe.model.norm_start!r} stretches statistics over one "
                         "worker's groups: use one worker, or norm_start='running'")  # fmt: skip
    return clips


def worker_counts(recipe: TrainRecipe, low: int, high: int) -> list[int]:
    """Numbers of workers from low to high that `clips_per_worker` allows; ValueError for none."""
    allowed, reason = [], ""
    for workers in range(low, high + 1):
        try:
            clips_per_worker(recipe, workers)
            allowed.append(workers)
        except ValueError as error:
            reason = str(error)
    if not allowed:
        raise ValueError(f"none of {low} to {high} workers is possible: {reason}")
    return allowed


def start_splits(model: nn.Module, recipe: TrainRecipe, workers: int) -> None:
    """Give every normalisation one split per group, with statistics by `norm_start`."""
    splits = splits_for(clips_per_worker(recipe, workers), recipe.model.norm_group)
    set_splits(model, 1 if recipe.multigrid else splits)
    if recipe.model.norm_start == "running":
        return
    for norm in (module for module in model.modules() if isinstance(module, SubBatchNorm3d)):
        for name in ("mean", "var"):
            running_C, split_SC = getattr(norm, f"running_{name}"), getattr(norm, f"split_{name}")
            pooled = nn.functional.adaptive_avg_pool1d(running_C[None, None], len(split_SC))
            split_SC.copy_(pooled[0, 0])


def augmentation(recipe: TrainRecipe) -> augment.Augmentation:
    """The recipe's augmentation, with the label of frozen frames by `recipe.background`."""
    options = dict(recipe.augment_options)
    if recipe.augment in ("freeze", "joint", "joint_single"):
        options["background"] = "zero" if recipe.background == "zero" else "class"
    return augment.create(recipe.augment, **options)


def network(
    recipe: TrainRecipe, classes: int, initial: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The recipe's network with fresh weights by its seed, or `initial` under a fresh classifier.

    `initial` may lack the parts that the network has beside its backbone (prefixes `fresh`), or
    have them alone. ValueError for an incomplete backbone or one of other shapes.
    """
    generator = generator_for(recipe.seed, "weights", recipe.task)
    model = create(
        recipe.model.name,
        recipe.head_classes(classes),
        generator=generator,
        **dict(recipe.model.options),
    )
    if initial is not None:
        # Statistics of splits start from the loaded running ones (`start_splits`).
        own = {k: v for k, v in model.state_dict().items() if ".split_" not in k}
        classifier: Any = model.classifier
        beside: tuple[str, ...] = getattr(model, "fresh", ())
        usable = {
            k: v
            for k, v in initial.items()
            if k in own and v.shape == own[k].shape and not k.startswith(classifier)
        }
        missing = [k for k in own.keys() - usable.keys() if not k.startswith(classifier)]
        wrong = sorted(k for k in missing if not k.startswith(beside))
        if wrong and not all(name.startswith(beside) for name in initial):
            raise ValueError(f"initial weights do not fit {recipe.model.name}: {wrong[:5]}")
        model.load_state_dict({**own, **usable})
    return accelerate(model)


class Readout(nn.Module):
    """Frame logits [B, K, T] of a network, or clip logits [B, K] for readout="clip".

    With `mix`, clips are mixed on their way through the network: at a level that the generator
    draws (`augment.manifold`), or at the input without a generator.
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
    readout: nn.Module,
    mixing: augment.Augmentation,
    batch: Batch,
    step: int,
    context: Context,
    fine_reader: FineFeatureReader | None = None,
) -> Tensor:
    """Loss of one part of a batch."""
    clips = normalise(batch.clips_BTHWC, recipe.clip, context.device)
    labels = batch.targets_BKF.to(context.device)
    if recipe.task == "finetune":
        masked = recipe.localisation == "coarse_fine"
        localisation = losses.masked_localisation_loss if masked else losses.localisation_loss
        fine = fine_reader and fine_reader(batch.videos, batch.starts_B).to(context.device)
        mask_BF = batch.mask_BF.to(context.device)
        return localisation(readout(clips, fine=fine), labels, mask_BF, recipe.align_corners)
    labels = labels[:, :, 0]
    targets = losses.pretrain_targets(labels, recipe.clip.frames, recipe.background)
    if recipe.readout == "clip":
        return losses.soft_cross_entropy(readout(clips), targets[:, :, 0])
    mixed: list[Any] = []

    def mix_features(features: Tensor) -> Tensor:
        features, *mixed[:] = mix(recipe, mixing, features, targets, batch, step)
        return features

    # The level depends on the step alone: one for all parts of a batch and all workers.
    deep = recipe.mix_depth == "random"
    level = generator_for(recipe.seed, "level", step) if deep else None
    logits = readout(clips, mix_features, level)
    soft, components = mixed
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
    """Augment clips (in place) or features (that need a gradient), normalisation group by group.

    Groups have the same draws and the same clips on any number of workers. Returns clips, soft
    targets and components.
    """
    groups = splits_for(len(batch), recipe.model.norm_group)
    deep = needs_gradient(clips_BCTHW)
    clips, components = [], []
    soft_BKT = torch.empty_like(targets_BKT)
    for group in range(groups):
        rows = slice(group, None, groups)
        generator = generator_for(recipe.seed, "mix", step, int(batch.positions_B[group]))
        mixed, soft_BKT[rows], parts = mixing(
            clips_BCTHW[rows], targets_BKT[rows], generator, inplace=not deep,
            return_components=True,
        )  # fmt: skip
        clips.append(mixed)
        components.append(parts)
    if deep:
        clips_BCTHW = torch.stack(clips, 1).flatten(0, 1)
    return clips_BCTHW, soft_BKT, join_components(components)


def join_components(groups: Sequence[augment.Components]) -> augment.Components:
    """Components of a batch whose clip i belongs to group i mod groups; a group with fewer
    components gets ones of weight 0."""
    size = max(len(group.weights) for group in groups)
    padded = [
        [
            torch.cat([field, field.new_zeros(size - len(field), *field.shape[1:])])
            for field in group
        ]
        for group in groups
    ]
    fields = (torch.stack(parts, 2).flatten(1, 2) for parts in zip(*padded, strict=True))
    return augment.Components(*fields)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Mixed precision by `OptimRecipe.amp`."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")
