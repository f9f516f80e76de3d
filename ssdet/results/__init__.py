"""Queries, ensembles, tables, figures and reports of finished studies."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssdet.results.queries.results import Results

__all__ = ["open"]


def open(uri: str | os.PathLike[str]) -> "Results":
    """Open the store at a path or URI for queries; needs no Ray session.

    FileNotFoundError where there is no store, ValueError for unknown schemes.
    """
    from ssdet.results.queries.results import Results

    return Results.open(uri)
