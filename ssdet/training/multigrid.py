"""Multigrid pretraining: more clips of fewer, smaller frames at a time, the full shape at the end.

Wu et al., "A Multigrid Method for Efficiently Training Video Models", CVPR 2020, as X3D-Multigrid
has it (MODELS.md 2.4). Everything follows from the step, so a stopped run goes on as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from math import isqrt

from torch import nn, randint
from torch.utils.data import Dataset

from ssdet.data.loading.batches import Batch, Decode, load
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.sampling import generator_for
from ssdet.models.layers.sub_batch_norm import set_splits, splits_for
from ssdet.training.recipe import TrainRecipe

PHASES = (0, 40, 65, 85, 100)
"""Percentages of all steps at which a phase begins; the last is that of the end."""
LONG = ((4, True, 8), (2, True, 4), (2, False, 2), (1, False, 1))
"""Long cycle: share of the frames, whether the side is divided by √2, and factor of the batch."""


@dataclass(frozen=True)
class Shape:
    """What one step is made of."""

    frames: int
    size: int
    """Side of the square clips in pixels."""
    batch: int
    """Factor of the batch, and so of the number of normalisation groups, which keep their size."""
    lr: int
    """Factor of the learning rate: that of the batch in the long cycle."""
    stride: int
    """Each clip's stride is multiplied by a number that is drawn from 1 to this one."""


def shape_at(step: int, steps: int, frames: int, size: int) -> Shape:
    """Shape of step `step` of `steps` (from 0) for clips of `frames` and `size` at the end.

    Each phase but the last goes through the four shapes of the long cycle in equal parts. Within
    each of them the steps take turns (short cycle): twice the clips at 1/√2 of the shape's side and
    once at that side, or four times at half of it as well where the side is the full one. The last
    phase has the full shape alone, without a short cycle, which the released code goes on with;
    that code also has fewer groups than batches of the short cycle, which grow instead.
    """
    phase = sum(step >= steps * start // 100 for start in PHASES[1:-1])
    if phase == len(PHASES) - 2:
        return Shape(frames, size, 1, 1, 1)
    start, stop = (steps * share // 100 for share in PHASES[phase : phase + 2])
    part, shrunk, factor = LONG[(step - start) * len(LONG) // (stop - start)]
    side, clip = _shrunk(size) if shrunk else size, frames // part
    turns = [(2, _shrunk(side)), (1, side)]
    if not shrunk:
        turns = [(4, side // 2), *turns]
    more, side = turns[step % len(turns)]
    return Shape(clip, side, factor * more, factor, frames // clip)


def _shrunk(size: int) -> int:
    return isqrt(size * size // 2)  # ⌊size / √2⌋


def samples_before(recipe: TrainRecipe, step: int) -> int:
    """Clips that the steps before `step` take: the position of its first in the stream of clips."""
    return recipe.optim.batch * sum(_shape(recipe, earlier).batch for earlier in range(step))


def _shape(recipe: TrainRecipe, step: int) -> Shape:
    return shape_at(step, recipe.optim.steps, recipe.clip.frames, recipe.clip.size)


def lr_scale(recipe: TrainRecipe, step: int) -> int:
    """Factor of the learning rate at a step, 1 without multigrid."""
    return _shape(recipe, step).lr if recipe.multigrid else 1


@contextmanager
def shaped(recipe: TrainRecipe, model: nn.Module, step: int) -> Iterator[TrainRecipe]:
    """The recipe of one step: itself without multigrid, else with the clips of the step's shape.

    Meanwhile every normalisation has a split for each group of the larger batch, which starts from
    the running statistics; between steps it has one, whatever the step before was.
    """
    if not recipe.multigrid:
        yield recipe
        return
    shape, each = _shape(recipe, step), recipe.optim.batch // recipe.optim.accumulate
    group = min(recipe.model.norm_group, each)
    set_splits(model, splits_for(each * shape.batch, group))
    yield replace(
        recipe,
        clip=_resized(recipe.clip, shape),
        model=replace(recipe.model, norm_group=group),
        multigrid=False,
    )
    set_splits(model, 1)


def _resized(clip: ClipRecipe, shape: Shape) -> ClipRecipe:
    low, high = (max(shape.size, round(s * shape.size / clip.size)) for s in clip.short_side)
    return replace(clip, frames=shape.frames, size=shape.size, short_side=(low, high))


class _Sized(Dataset):
    """Clips, indexed by position and the recipe of that clip."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __getitem__(self, place: tuple[int, ClipRecipe]) -> dict:
        clips = copy(self.clips)
        position, clips.recipe = place
        return clips[position]


def batches(
    clips: Clips, recipe: TrainRecipe, start: int, loaders: int = 0, decode: Decode | None = None
) -> Iterator[Batch]:
    """Batches of steps `start` to the last, each of its own shape; `loaders` processes decode, or
    `decoders` tasks of Ray."""
    return load(_Sized(clips), _places(recipe, start), loaders, decode)


def _places(recipe: TrainRecipe, start: int) -> Iterator[list[tuple[int, ClipRecipe]]]:
    stop = samples_before(recipe, start)
    for step in range(start, recipe.optim.steps):
        shape = _shape(recipe, step)
        clip = _resized(recipe.clip, shape)
        first, stop = stop, stop + recipe.optim.batch * shape.batch
        yield [(at, _strided(clip, shape.stride, recipe.seed, at)) for at in range(first, stop)]


def _strided(clip: ClipRecipe, most: int, seed: int, position: int) -> ClipRecipe:
    factor = randint(1, most + 1, (), generator=generator_for(seed, "stride", position))
    return replace(clip, stride=clip.stride * int(factor))
