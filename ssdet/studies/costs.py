"""What an experiment's networks cost: weights, multiply-adds, and pretraining as the paper counts.

Networks are built without memory, so even the largest takes no time; each is counted once.
"""

import json
from functools import lru_cache

import torch

from ssdet.data.clips import ClipRecipe
from ssdet.evaluation import cost
from ssdet.models import create
from ssdet.studies.experiment import Experiment
from ssdet.training.recipe import ModelRecipe, TrainRecipe, to_json


def parameter_count(experiment: Experiment, classes: int) -> int:
    """Learnable weights of the fine-tuned network for a data set of `classes` classes."""
    recipe = experiment.finetune
    return _counted(_key(recipe.model), recipe.head_classes(classes), _shape(recipe.clip))[0]


def macs(experiment: Experiment, classes: int) -> int:
    """Multiply-adds of the convolutions of the fine-tuned network on one clip of fine-tuning."""
    return clip_macs(experiment.finetune, classes)


def pretraining_pflops(experiment: Experiment, classes: int) -> float:
    """10¹⁵ multiply-adds of all pretraining: those of the convolutions, forward, of every clip.

    A start counts too. The paper leaves out the published checkpoint that its shorter schedule
    starts from, which is `replace(experiment, start=None)` here. As in its Table A.1f
    classification costs what detection does, although its head is evaluated once a clip (0.3 %).
    """
    total = 0.0
    for recipe in experiment.pretrainings:
        clip, optim = clip_macs(recipe, classes), recipe.optim
        total += cost.pretraining_pflops(clip, optim.batch, optim.steps)
    return total


def clip_macs(recipe: TrainRecipe, classes: int) -> int:
    """Multiply-adds of the convolutions of a recipe's network on one of its clips, forward."""
    return _counted(_key(recipe.model), recipe.head_classes(classes), _shape(recipe.clip))[1]


def _key(model: ModelRecipe) -> str:
    values = to_json(model)
    return json.dumps([values["name"], values["options"]], sort_keys=True)


def _shape(clip: ClipRecipe) -> tuple[int, ...]:
    return 1, 3, clip.frames, clip.size, clip.size


@lru_cache(maxsize=256)
def _counted(model: str, outputs: int, clip: tuple[int, ...]) -> tuple[int, int]:
    name, options = json.loads(model)
    with torch.device("meta"):
        network = create(name, outputs, **options)
    return cost.parameters(network), cost.conv_macs(network, clip)
