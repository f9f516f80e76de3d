"""Published training recipes of the models of features."""

from typing import Any

from ssdet.training.recipe import HeadRecipe, ModelRecipe, OptimRecipe


def published_head(name: str, dataset_size: int, **options: Any) -> HeadRecipe:
    """The recipe of a model, with `options` of that model, for this many training videos (with
    `skip_empty`, as for `ms_tct`: videos that have actions).

    An epoch becomes optimiser steps and a validation, whose loss decides on plateaus. Adam is
    `adamw` without weight decay, which is equal. Padding does not add to the loss and weights are
    selected on `val`; the published code of Super-Events and TGM has `padding="counted"` and
    `validate_on="test"`. Raises ValueError for a model without a recipe, or no videos.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no published recipe for {name!r}: choose from {', '.join(_PUBLISHED)}")
    if dataset_size < 1:
        raise ValueError(f"dataset_size {dataset_size}: expected at least one video")
    batch, epochs, lr, patience, decay, fields = _PUBLISHED[name]
    optim = OptimRecipe(
        steps=epochs * -(-dataset_size // batch),
        batch=batch,
        lr=lr or 0.1 * batch / dataset_size,
        optimizer="adamw",
        weight_decay=0.0,
        schedule="plateau",
        patience=patience,
        decay=decay,
    )
    return HeadRecipe(ModelRecipe(name, options), optim, validations=epochs, **fields)


_PUBLISHED: dict[str, tuple[int, int, float | None, int, float, dict[str, Any]]] = {
    "linear": (16, 40, None, 3, 0.1, {}),
    "super_events": (16, 40, None, 3, 0.1, {}),
    "tgm": (16, 60, None, 5, 0.1, {}),
    "tgm_super_events": (16, 60, None, 5, 0.1, {}),
    "pdan": (32, 100, 1e-4, 8, 0.5, {}),
    "ms_tct": (32, 50, 1e-4, 8, 0.5, {"crop": 256, "heat_map": 0.05, "skip_empty": True}),
}
"""Batch, epochs, learning rate (None: 0.1 / batches per epoch), patience, decay, other fields."""
