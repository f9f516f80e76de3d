"""Training recipes, loop, losses, checkpoints and heads."""

from typing import TYPE_CHECKING

from ssdet.system.lazy import attach

if TYPE_CHECKING:
    from ssdet.training.context import Context
    from ssdet.training.loop import network, train
    from ssdet.training.recipe import ModelRecipe, OptimRecipe, TrainRecipe

attach(
    __name__,
    {
        "ssdet.training.context": ["Context"],
        "ssdet.training.loop": ["network", "train"],
        "ssdet.training.recipe": ["ModelRecipe", "OptimRecipe", "TrainRecipe"],
    },
)
