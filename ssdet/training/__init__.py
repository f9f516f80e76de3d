"""The training loop with all that it needs: recipes, losses, checkpoints, inference, workers."""

from typing import TYPE_CHECKING

from ssdet.lazy import attach

if TYPE_CHECKING:
    from ssdet.training.context import Context
    from ssdet.training.loop import network, train
    from ssdet.training.recipe import ModelRecipe, OptimRecipe, TrainRecipe

attach(
    __name__,
    {
        "context": ["Context"],
        "loop": ["network", "train"],
        "recipe": ["ModelRecipe", "OptimRecipe", "TrainRecipe"],
    },
)
