"""The training loop with all that it needs: recipes, losses, checkpoints, inference, workers."""

from ssdet.training.context import Context
from ssdet.training.loop import network, train
from ssdet.training.recipe import ModelRecipe, OptimRecipe, TrainRecipe

__all__ = ["Context", "ModelRecipe", "OptimRecipe", "TrainRecipe", "network", "train"]
