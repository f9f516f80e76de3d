"""Warnings of dependencies, which concern developers and not the users of the commands."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

DEPENDENCIES = (
    "av", "fvcore", "google", "iopath", "jinja2", "matplotlib", "numpy", "optuna", "pandas",
    "pkg_resources", "pyarrow", "pydantic", "pytorchvideo", "ray", "scipy", "setuptools", "sklearn",
    "tensorboardX", "torch", "torchvision", "tyro",
)  # fmt: skip
CATEGORIES = (
    UserWarning, DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning
)  # fmt: skip


@contextmanager
def quiet_import() -> Iterator[None]:
    """Hide every warning while the block imports a dependency that warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet_dependencies() -> Iterator[None]:
    """Hide warnings that dependencies issue about themselves or each other while the block runs.

    Warnings of ssdet, of experiment files and of plugins are shown, and so is every RuntimeWarning.
    Where Python was started with `-W` or PYTHONWARNINGS, nothing is hidden.
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            for category in CATEGORIES:
                module = rf"({'|'.join(DEPENDENCIES)})(\.|$)"
                warnings.filterwarnings("ignore", category=category, module=module)
        yield
