"""Mixing at a random depth of a network: its input or the output of a layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.augment.base import Augmentation
from ssdet.augment.checks import check_generator


def manifold(
    aug: Augmentation,
    model: nn.Module,
    clips_BCTHW: Tensor,
    targets_BKT: Tensor,
    generator: torch.Generator,
    level: int | None = None,
    return_components: bool = False,
) -> tuple[Any, ...]:
    """Run the model, mixing at one level: (logits, soft targets) and, if requested, Components.

    Level 0 mixes the input, level k the output of `model.layers[k - 1]`; gradients pass through
    the mixture. Without a level one is drawn for the whole batch. Draws and labels are those of
    the augmentation for clips as wide as the features at that level. Raises TypeError for a model
    without `layers`, ValueError for an unknown level or one whose number of frames differs from
    the targets'. Paper: Table A.1b, after Manifold MixUp (Verma et al. 2019).
    """
    level = draw_level(model, generator) if level is None else level
    labels: list[Any] = []

    def mix(features_BCTHW: Tensor) -> Tensor:
        mixed, *labels[:] = aug(
            features_BCTHW, targets_BKT, generator, return_components=return_components
        )
        return mixed

    with mixed_at(model, level, mix):
        logits_BKT = model(clips_BCTHW)
    return logits_BKT, *labels


def draw_level(model: nn.Module, generator: torch.Generator) -> int:
    """Draw a level uniformly from 0 ... the number of layers."""
    check_generator(generator)
    return int(torch.randint(len(_layers(model)) + 1, (), generator=generator))


@contextmanager
def mixed_at(model: nn.Module, level: int, mix: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the input (level 0) or the output of a layer by `mix` of it inside the block."""
    layers = _layers(model)
    if not 0 <= level <= len(layers):
        raise ValueError(f"level={level}: expected 0 (input) to {len(layers)} (last layer)")
    if level == 0:
        hook = model.register_forward_pre_hook(lambda _, inputs: (mix(inputs[0]), *inputs[1:]))
    else:
        hook = layers[level - 1].register_forward_hook(lambda _, inputs, output: mix(output))
    try:
        yield
    finally:
        hook.remove()


def _layers(model: nn.Module) -> Sequence[nn.Module]:
    layers = getattr(model, "layers", None)
    if layers is None:
        raise TypeError(
            f"{type(model).__name__} has no attribute `layers`: expected the modules whose outputs "
            "[B, C, T, H, W] keep the frames of the input"
        )
    return layers
