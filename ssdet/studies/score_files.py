"""Files with a finished stage's scores under further protocols: `stages/ID/scores/PROTOCOL.json`.

One holds the readings of one protocol by split and column, and what they were computed with: the
scorer's source and the result of the stage. The stage's own files, and so its identity and what
bundles pack, stay as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ssdet
from ssdet.evaluation.source import source_digest
from ssdet.store.base import Store
from ssdet.system.safe_files import make_folder, write_json

FORMAT = "ssdet-scores/1"
FOLDER = "scores"


def result_digest(folder: Path) -> str:
    """Names the result of a finished stage, which scores under further protocols belong to."""
    return hashlib.sha256((folder / "DONE").read_bytes()).hexdigest()[:16]


def read_scores(store: Store, stage: str, protocol: str) -> dict[str, dict[str, Any]]:
    """Readings by split and column, as JSON; none of another scorer or result."""
    folder = store.folder(stage)
    try:
        content = json.loads((folder / FOLDER / f"{protocol}.json").read_bytes())
        head = _head(folder, protocol)
        fits = {key: content[key] for key in head} == head
        return dict(content["scores"]) if fits else {}
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # it is written anew
        return {}


def keep_scores(
    store: Store, stage: str, protocol: str, split: str, readings: Mapping[str, Any]
) -> None:
    """Add a split's readings, by column, to the file of a protocol."""
    folder = store.folder(stage)
    path = folder / FOLDER / f"{protocol}.json"
    with store.lock(stage):
        make_folder(store.root, "stages", stage, FOLDER)
        scores = {**read_scores(store, stage, protocol), split: readings}
        write_json(path, {**_head(folder, protocol), "scores": scores})
        store.publish_files(path)


def _head(folder: Path, protocol: str) -> dict[str, str]:
    return {
        "format": FORMAT,
        "protocol": protocol,
        "ssdet": ssdet.__version__,
        "scorer": source_digest(),
        "result": result_digest(folder),
    }
