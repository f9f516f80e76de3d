"""Published training recipes of the models of features."""

from collections.abc import Callable
from typing import Any

from ssdet.training.recipe import HeadRecipe, ModelRecipe, OptimRecipe


def published_head(name: str, dataset_size: int, **options: Any) -> HeadRecipe:
    """The recipe of a model, with `options` of that model, for this many training videos (with
    `skip_empty`, as for `ms_tct`, those that have actions).

    Epochs become optimiser steps, and an epoch's end a validation, after which the rate may drop;
    its plateaus are of the validation loss. Adam is `adamw` without weight decay, which is the same
    thing. Steps that only fill up a batch do not add to the loss (the published code of
    Super-Events and TGM: `padding="counted"`), and the split that is followed is `val` (`test`
    there). Raises ValueError for a model without such a recipe, or no videos.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no published recipe for {name!r}: choose from {', '.join(_PUBLISHED)}")
    if dataset_size < 1:
        raise ValueError(f"dataset_size {dataset_size}: expected at least one video")
    return _PUBLISHED[name](ModelRecipe(name, options), dataset_size)


def _super_events(model: ModelRecipe, size: int, epochs: int = 40, patience: int = 3) -> HeadRecipe:
    optim = _adam(size, epochs, 16, lr=0.1 * 16 / size, patience=patience, decay=0.1)
    return HeadRecipe(model, optim, validations=epochs)


def _tgm(model: ModelRecipe, size: int) -> HeadRecipe:
    return _super_events(model, size, epochs=60, patience=5)


def _pdan(model: ModelRecipe, size: int) -> HeadRecipe:
    optim = _adam(size, 100, 32, lr=1e-4, patience=8, decay=0.5)
    return HeadRecipe(model, optim, validations=100)


def _ms_tct(model: ModelRecipe, size: int) -> HeadRecipe:
    optim = _adam(size, 50, 32, lr=1e-4, patience=8, decay=0.5)
    return HeadRecipe(model, optim, validations=50, crop=256, heat_map=0.05, skip_empty=True)


def _adam(
    size: int, epochs: int, batch: int, lr: float, patience: int, decay: float
) -> OptimRecipe:
    return OptimRecipe(
        steps=epochs * -(-size // batch),
        batch=batch,
        lr=lr,
        optimizer="adamw",
        weight_decay=0.0,
        schedule="plateau",
        patience=patience,
        decay=decay,
    )


_PUBLISHED: dict[str, Callable[[ModelRecipe, int], HeadRecipe]] = {
    "linear": _super_events,
    "super_events": _super_events,
    "tgm": _tgm,
    "tgm_super_events": _tgm,
    "pdan": _pdan,
    "ms_tct": _ms_tct,
}
