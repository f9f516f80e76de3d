"""Cost of an experiment's networks: weights, multiply-adds, PFLOPs of pretraining.

Networks are built without memory, so even the largest takes no time; each is counted once.
"""

import json
from dataclasses import replace
from functools import lru_cache

import torch

from ssdet.data.loading.clips import ClipRecipe
from ssdet.evaluation import cost
from ssdet.inference.extraction import extractor, named_rows
from ssdet.inference.recipe import PredictRecipe
from ssdet.models import create
from ssdet.studies.experiment import Experiment
from ssdet.system.recipe_json import to_json
from ssdet.training.recipe import ExtractRecipe, ModelRecipe, TrainRecipe


def parameter_count(experiment: Experiment, classes: int) -> int:
    """Learnable weights of all that scores a video, for a data set of `classes` classes: both
    streams of two, and a model of features with the network that gives them."""
    return _cost(experiment, classes)[0]


def macs(experiment: Experiment, classes: int) -> int:
    """Multiply-adds of the convolutions of all that scores a video, on one clip of fine-tuning."""
    return _cost(experiment, classes)[1]


def _cost(experiment: Experiment, classes: int) -> tuple[int, int]:
    network = whole(experiment.finetune)
    key, shape = _key(network.model), _shape(network.clip)
    weights, macs = _counted(key, network.head_classes(classes), shape)
    if experiment.head is not None:
        width = _widths(key, shape, 0)
        more = _head(_key(experiment.head.model), classes, width, network.clip.frames)
        weights, macs = weights + more[0], macs + more[1]
    return weights, macs


def whole(recipe: TrainRecipe) -> TrainRecipe:
    """A recipe whose two-stream network has its fine stream within itself, for the same clips."""
    options = {k: v for k, v in recipe.model.options.items() if k != "own_fine"}
    return replace(recipe, model=replace(recipe.model, options=options), fine_steps=0)


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
    recipe = whole(recipe)
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


def row_width(trained: TrainRecipe, kept: ExtractRecipe) -> int:
    """Numbers that an extraction keeps of one clip frame."""
    return _widths(_key(trained.model), _shape(trained.clip), kept.pyramid)


@lru_cache(maxsize=256)
def _widths(model: str, clip: tuple[int, ...], pyramid: int) -> int:
    name, options = json.loads(model)
    with torch.device("meta"), torch.no_grad():
        recipe = ExtractRecipe(PredictRecipe(), pyramid=pyramid)
        features = extractor(create(name, 1, **options), recipe.pyramid)
        rows = named_rows(features, torch.empty(*clip))
    return sum(row[0].numel() for row in rows.values())


@lru_cache(maxsize=256)
def _head(model: str, classes: int, width: int, steps: int) -> tuple[int, int]:
    name, options = json.loads(model)
    generator = torch.Generator()
    network = create(name, classes, generator=generator, in_features=width, **options).eval()
    return cost.parameters(network), cost.head_macs(network, width, steps)
