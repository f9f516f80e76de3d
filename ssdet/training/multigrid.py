"""Multigrid schedule of pretraining: larger batches of shorter, smaller clips before full shape.

Wu et al., "A Multigrid Method for Efficiently Training Video Models", CVPR 2020, after the code of
X3D-Multigrid. Shapes are functions of the step, so that a stopped run resumes exactly.
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
"""Percentages of all steps at which the phases begin, and the end."""
LONG = ((4, True, 8), (2, True, 4), (2, False, 2), (1, False, 1))
"""Long cycle: divisor of the frames, whether the side is divided by √2, factor of the batch."""


@dataclass(frozen=True)
class Shape:
    """Shape of the batch of one step."""

    frames: int
    size: int
    """Side of the square clips in pixels."""
    batch: int
    """Factor of the batch, and of the number of normalisation groups, whose size is constant."""
    lr: int
    """Factor of the learning rate: that of the batch in the long cycle."""
    stride: int
    """Each clip's stride is multiplied by a random number from 1 to this one."""


def shape_at(step: int, steps: int, frames: int, size: int) -> Shape:
    """Shape of step `step` of `steps` (from 0) for clips of `frames` and `size` at the end.

    Each phase but the last goes through the four shapes of the long cycle in equal parts. In each
    of them the steps alternate (short cycle) between twice the clips at 1/√2 of its side and the
    clips at its side; a shape of the full side also has four times the clips at half the side.
    The last phase has the full shape alone. The released code continues the short cycle there, and
    enlarges groups in the short cycle instead of adding some.
    """
    phase = sum(step >= steps * start // 100 for start in PHASES[1:-1])
    if phase == len(PHASES) - 2:
        return Shape(frames, size, 1, 1, 1)
    start, stop = (steps * percent // 100 for percent in PHASES[phase : phase + 2])
    part, shrunk, factor = LONG[(step - start) * len(LONG) // (stop - start)]
    side, clip = _shrunk(size) if shrunk else size, frames // part
    cycle = [(2, _shrunk(side)), (1, side)]
    if not shrunk:
        cycle = [(4, side // 2), *cycle]
    clips, side = cycle[step % len(cycle)]
    return Shape(clip, side, factor * clips, factor, frames // clip)


def _shrunk(size: int) -> int:
    return isqrt(size * size // 2)  # ⌊size / √2⌋


def samples_before(recipe: TrainRecipe, step: int) -> int:
    """Clips that the steps before `step` take: position of its first clip in the stream."""
    return recipe.optim.batch * sum(_shape(recipe, earlier).batch for earlier in range(step))


def _shape(recipe: TrainRecipe, step: int) -> Shape:
    return shape_at(step, recipe.optim.steps, recipe.clip.frames, recipe.clip.size)


def lr_scale(recipe: TrainRecipe, step: int) -> int:
    """Factor of the learning rate at a step; 1 without multigrid."""
    return _shape(recipe, step).lr if recipe.multigrid else 1


@contextmanager
def shaped(recipe: TrainRecipe, model: nn.Module, step: int) -> Iterator[TrainRecipe]:
    """Yield the recipe of one step, with the step's clip shape (without multigrid: unchanged).

    In the block every normalisation has one split per group of the larger batch, started from the
    running statistics; between steps it has a single one.
    """
    if not recipe.multigrid:
        yield recipe
        return
    shape, part = _shape(recipe, step), recipe.optim.batch // recipe.optim.accumulate
    group = min(recipe.model.norm_group, part)
    set_splits(model, splits_for(part * shape.batch, group))
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


class _ShapedClips(Dataset):
    """Clips, indexed by (position, recipe of the clip)."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __getitem__(self, index: tuple[int, ClipRecipe]) -> dict:
        clips = copy(self.clips)
        position, clips.recipe = index
        return clips[position]


def batches(
    clips: Clips, recipe: TrainRecipe, start: int, loaders: int = 0, decode: Decode | None = None
) -> Iterator[Batch]:
    """Batches of steps `start` to the last, each of its own shape, decoded by `loaders` processes
    or by `decode`."""
    return load(_ShapedClips(clips), _indices(recipe, start), loaders, decode)


def _indices(recipe: TrainRecipe, start: int) -> Iterator[list[tuple[int, ClipRecipe]]]:
    stop = samples_before(recipe, start)
    for step in range(start, recipe.optim.steps):
        shape = _shape(recipe, step)
        clip = _resized(recipe.clip, shape)
        first, stop = stop, stop + recipe.optim.batch * shape.batch
        yield [(at, _strided(clip, shape.stride, recipe.seed, at)) for at in range(first, stop)]


def _strided(clip: ClipRecipe, highest: int, seed: int, position: int) -> ClipRecipe:
    factor = randint(1, highest + 1, (), generator=generator_for(seed, "stride", position))
    return replace(clip, stride=clip.stride * int(factor))
