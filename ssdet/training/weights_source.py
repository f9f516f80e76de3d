"""Identity of weights in recipes: published name, imported name, or hash of a file."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

CONTENT = "sha256:"


def fingerprint(weights: str) -> str:
    """Identity of weights in a recipe's JSON: a published name, or the hash of a file or of
    imported weights. FileNotFoundError for anything else."""
    if not weights or weights.startswith(CONTENT) or is_published(weights):
        return weights
    path = weights_file(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {weights!r}: neither a file nor a published name nor an imported one: names "
            "are listed by `ssdet weights ls`"
        )
    status = os.stat(path)
    return CONTENT + _hashed(path.absolute(), status.st_mtime_ns, status.st_size)


def weights_file(weights: str) -> Path:
    """File of imported weights, or the path itself."""
    from ssdet.models.weights import imported

    return imported.named(weights).file if weights in imported.available() else Path(weights)


def is_published(weights: str) -> bool:
    """Whether this is the name of published weights."""
    from ssdet.models.weights import published

    return weights in published.available()


@lru_cache(maxsize=64)
def _hashed(path: Path, time: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
