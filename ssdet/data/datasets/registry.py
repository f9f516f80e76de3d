"""Registry of annotation formats by name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ssdet.plugins import Registry

if TYPE_CHECKING:
    from ssdet.data.datasets.manifest import Manifest

Reader = Callable[[list[Path], Path | None], "Manifest"]
"""Reads annotation files or folders and joins them with the videos of a folder, if given."""
AnyReader = TypeVar("AnyReader", bound=Callable[..., "Manifest"])

FORMATS: Registry[Reader] = Registry("data format")
available = FORMATS.available


def register(reader: AnyReader) -> AnyReader:
    """Register the function ``reader(paths, videos) -> Manifest`` under its own name.

    ``load_manifest`` handles quarantine, splits and remote folders.
    """
    FORMATS.add(reader.__name__, reader, reader.__module__)
    return reader


def only(format: str, paths: list[Path]) -> Path:
    """The path of a format whose annotation is one file. Raises ValueError for several."""
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} annotations given, {format} is one file: {paths[1]}")
    return paths[0]


def _add(format: str, module: str, function: str, several: bool = False) -> None:
    """Register a format of ssdet whose module is imported on first use."""

    def read(paths: list[Path], videos: Path | None) -> "Manifest":
        reader: Callable[..., Manifest] = getattr(import_module(module), function)
        return reader(paths if several else only(format, paths), videos)

    FORMATS.add(format, read, module)


def _shapes(paths: list[Path], videos: Path | None) -> "Manifest":
    from ssdet.data.datasets import moving_shapes

    return moving_shapes.manifest(only("moving_shapes", paths), "upstream")


_add("segments", "ssdet.data.datasets.segments", "read_segments")
_add("charades", "ssdet.data.datasets.charades", "read_charades", several=True)
_add("multithumos", "ssdet.data.datasets.segments", "read_multithumos")
_add("tsu", "ssdet.data.datasets.tsu", "read_tsu")
_add("activitynet", "ssdet.data.datasets.activitynet", "read_activitynet")
_add("kinetics", "ssdet.data.datasets.kinetics", "read_kinetics", several=True)
FORMATS.add("moving_shapes", _shapes, "ssdet.data.datasets.moving_shapes")
