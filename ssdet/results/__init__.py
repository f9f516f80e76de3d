"""Queries, ensembles, tables, figures and reports of finished studies."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssdet.results.query import Results

__all__ = ["open"]


def open(uri: str | os.PathLike[str]) -> "Results":
    """What the store at a path or file:// URI holds now; needs no Ray session.

    FileNotFoundError where there is no store, ValueError for other schemes.
    """
    from ssdet.results.query import Results

    return Results.open(uri)
