"""Sources of weights: published names, imported names, and files, named by their content."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

CONTENT = "sha256:"


def fingerprint(weights: str) -> str:
    """Name of weights in a recipe's JSON: a published name, or a hash of the content of a file or
    of imported weights.

    FileNotFoundError for what is neither a known name nor a file.
    """
    if not weights or weights.startswith(CONTENT) or is_published(weights):
        return weights
    path = weights_file(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {weights!r}: neither a file nor a published name ({', '.join(_names())}) nor "
            "an imported one (ssdet weights ls)"
        )
    status = os.stat(path)
    return CONTENT + _hashed(path.absolute(), status.st_mtime_ns, status.st_size)


def weights_file(weights: str) -> Path:
    """Where imported weights lie, or the path itself."""
    from ssdet.models.weights import imported

    return imported.named(weights).file if weights in imported.available() else Path(weights)


def is_published(weights: str) -> bool:
    """Whether this is the name of published weights."""
    return weights in _names()


def _names() -> list[str]:
    from ssdet.models.weights import published

    return published.available()


@lru_cache(maxsize=64)
def _hashed(path: Path, time: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
