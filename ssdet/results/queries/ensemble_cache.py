"""Combined prediction sets that are kept in a store, named by what they are made of."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdet.evaluation import PredictionSet
from ssdet.evaluation.ensembling.alignment import Alignment
from ssdet.evaluation.ensembling.combination import Combiner, Method

FORMAT = "ssdet-ensemble/2"
"""A change that alters combined scores raises it."""


@dataclass(frozen=True)
class Stored:
    """A combined prediction set."""

    folder: Path
    predictions: PredictionSet


def stored(
    root: Path,
    runs: Sequence[str],
    aligned: Alignment,
    split: str,
    method: Method,
    weights: Sequence[float] | None,
) -> Stored:
    """The combination of these runs from `root/HASH`, made first where it is not there.

    ``aligned`` has the runs' predictions in their order, whose change changes nothing. The folder
    holds `predictions/SPLIT` and `ensemble.json`, and appears whole: of two processes that make
    the same, the second takes what the first made. Raises ValueError for a damaged folder.
    """
    shares: Sequence[float | None] = weights or [None] * len(runs)
    what = {
        "format": FORMAT,
        "members": sorted(zip(runs, shares, strict=True)),
        "method": method,
        "split": split,
        "grid": _digest({video: list(shape) for video, shape in aligned.grid.items()}),
    }
    folder = root / _digest(what)
    if not folder.is_dir():
        _make(folder, what, Combiner(aligned, method), weights)
    try:
        predictions = PredictionSet.open(folder / "predictions" / split)
        predictions.verify()
        return Stored(folder, predictions)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder} is damaged ({error}): remove it, and it is made again"
        ) from error


def _make(
    folder: Path,
    what: Mapping[str, Any],
    combiner: Combiner,
    weights: Sequence[float] | None,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        combiner.write(work / "predictions" / what["split"], weights)
        (work / "ensemble.json").write_text(json.dumps(what, indent=1))
        try:
            os.rename(work, folder)
        except OSError:
            if not folder.is_dir():  # else another process has made it meanwhile
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
