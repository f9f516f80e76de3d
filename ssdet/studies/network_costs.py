"""Costs of an experiment's networks: parameters, multiply-adds, PFLOPs of pretraining.

Networks are built on the meta device, without memory for weights; each is counted once.
"""

import json
from dataclasses import replace
from functools import lru_cache

import torch

from ssdet.data.loading.clips import ClipRecipe
from ssdet.evaluation import cost
from ssdet.inference.extraction import extractor, named_rows
from ssdet.models import create
from ssdet.studies.experiment import Experiment
from ssdet.system.recipe_json import to_json
from ssdet.training.recipe import ExtractRecipe, ModelRecipe, TrainRecipe


def parameter_count(experiment: Experiment, classes: int) -> int:
    """Learnable weights of all networks that score a video (both streams, backbone and head), for a
    data set of `classes` classes."""
    return _parameters_and_macs(experiment, classes)[0]


def macs(experiment: Experiment, classes: int) -> int:
    """Multiply-adds of the convolutions of all networks that score a video, for one clip of
    fine-tuning."""
    return _parameters_and_macs(experiment, classes)[1]


def _parameters_and_macs(experiment: Experiment, classes: int) -> tuple[int, int]:
    network = with_fine_stream(experiment.finetune)
    key, shape = _key(network.model), _shape(network.clip)
    parameters, macs = _network_cost(key, network.head_classes(classes), shape)
    if experiment.head is None:
        return parameters, macs
    width = _feature_width(key, shape, 0)
    head = _head_cost(_key(experiment.head.model), classes, width, network.clip.frames)
    return parameters + head[0], macs + head[1]


def with_fine_stream(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with the fine stream inside a two-stream network, on the same clips."""
    options = {k: v for k, v in recipe.model.options.items() if k != "own_fine"}
    return replace(recipe, model=replace(recipe.model, options=options), fine_steps=0)


def pretraining_pflops(experiment: Experiment, classes: int) -> float:
    """10¹⁵ multiply-adds of the convolutions, forward, over all clips of all pretrainings.

    `start` is included. The paper does not count the published checkpoint that its shorter schedule
    starts from: `replace(experiment, start=None)` gives that figure. As in its Table A.1f,
    classification costs the same as detection, although its head runs once per clip (0.3 %).
    """
    return sum(
        cost.pretraining_pflops(clip_macs(recipe, classes), recipe.optim.batch, recipe.optim.steps)
        for recipe in experiment.pretrainings
    )


def clip_macs(recipe: TrainRecipe, classes: int) -> int:
    """Multiply-adds of the convolutions of a recipe's network on one of its clips, forward."""
    recipe = with_fine_stream(recipe)
    return _network_cost(_key(recipe.model), recipe.head_classes(classes), _shape(recipe.clip))[1]


def _key(model: ModelRecipe) -> str:
    values = to_json(model)
    return json.dumps([values["name"], values["options"]], sort_keys=True)


def _shape(clip: ClipRecipe) -> tuple[int, ...]:
    return 1, 3, clip.frames, clip.size, clip.size


@lru_cache(maxsize=256)
def _network_cost(model: str, outputs: int, clip: tuple[int, ...]) -> tuple[int, int]:
    name, options = json.loads(model)
    with torch.device("meta"):
        network = create(name, outputs, **options)
    return cost.parameters(network), cost.conv_macs(network, clip)


def row_width(trained: TrainRecipe, extraction: ExtractRecipe) -> int:
    """Number of values that an extraction stores per clip frame."""
    return _feature_width(_key(trained.model), _shape(trained.clip), extraction.pyramid)


@lru_cache(maxsize=256)
def _feature_width(model: str, clip: tuple[int, ...], pyramid: int) -> int:
    name, options = json.loads(model)
    with torch.device("meta"), torch.no_grad():
        features = extractor(create(name, 1, **options), pyramid)
        rows = named_rows(features, torch.empty(*clip))
    return sum(row[0].numel() for row in rows.values())


@lru_cache(maxsize=256)
def _head_cost(model: str, classes: int, width: int, steps: int) -> tuple[int, int]:
    name, options = json.loads(model)
    network = create(
        name, classes, generator=torch.Generator(), in_features=width, **options
    ).eval()
    return cost.parameters(network), cost.head_macs(network, width, steps)
