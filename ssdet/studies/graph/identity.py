"""Identity of a stage: everything that decides the id under which its output is stored."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssdet.inference.recipe import PredictRecipe
from ssdet.studies.data import Data
from ssdet.system.recipe_json import from_json, to_json
from ssdet.training.recipe import ExtractRecipe, HeadRecipe, ProbeRecipe, TrainRecipe

FORMAT = 7
"""Version of what stages compute; a change that alters results or ids raises it. 7: ids name every
field of a recipe."""

SPLITS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pretrain": ("upstream", ("train", "val")),
    "finetune": ("downstream", ("train", "val")),
    "probe": ("downstream", ("train", "val", "test")),
    "extract": ("downstream", ("train", "val", "test")),
    "fit_head": ("downstream", ("train", "val", "test")),
    "predict": ("downstream", ("val", "test")),
    "ensemble": ("downstream", ("val", "test")),
    "validate": ("downstream", ("val",)),
}
"""Data set and splits that each kind of stage reads."""

Find = Callable[[str, str], Path]
"""Folder of a stage by its id, with a file or folder of it; `Store.fetch` is one."""


@dataclass(frozen=True)
class EnsembleRecipe:
    """Mean of the members' probabilities."""

    method: str = "mean_probability"


@dataclass(frozen=True)
class FrozenProbe:
    """A probe, and the recipe of the fresh network that it reads where nothing was pretrained."""

    probe: ProbeRecipe
    fresh: TrainRecipe | None = None


@dataclass(frozen=True)
class Stage:
    """One unit of work with one output folder, named by a hash of all that decides its output."""

    kind: str
    recipe: Any
    parents: tuple["Stage", ...]
    fingerprint: str
    """Of the data that it reads: see `data_fingerprint`."""

    @cached_property
    def id(self) -> str:
        """Kind and hash of the identity; the recorded id of a stage that was read from a store."""
        return stage_id(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """What is hashed, as JSON values; stored beside the output as `recipe.json`."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "recipe": to_json(self.recipe),
            "parents": [parent.id for parent in self.parents],
            "data": self.fingerprint,
        }


def stage_id(identity: Mapping[str, Any]) -> str:
    """Id of a stage: its kind and 16 hex digits of the hash of its identity."""
    return f"{identity['kind']}-{short_hash(identity)}"


def short_hash(values: Any) -> str:
    """16 hex digits of the SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def data_fingerprint(data: Data, kind: str, recipe: Any = None) -> str:
    """Content of the splits that a stage of this kind and recipe reads, and how frames are decoded.

    KeyError for an unknown kind.
    """
    role, splits = SPLITS[kind]
    if getattr(recipe, "validate_on", "val") == "test" and "test" not in splits:
        splits = (*splits, "test")
    contents = [data.split(role, name).fingerprint for name in splits]
    grid = f" at {data.fps:g} frames a second" if data.fps and role == "downstream" else ""
    return ",".join([*contents, f"decoded at {data.decode_size}{grid}"])


def recorded_stage(name: str, identity: Mapping[str, Any], parents: Mapping[str, Stage]) -> Stage:
    """The stage of a recorded identity. It keeps its recorded id, also where this version would
    compute another one. ValueError for a recipe that this version cannot read.
    """
    before = tuple(parents[parent] for parent in identity["parents"])
    recipe = recipe_of(identity["kind"], identity["recipe"])
    stage = Stage(identity["kind"], recipe, before, identity["data"])
    stage.__dict__["id"] = name
    return stage


def stored_stage(find: Find, name: str) -> Stage:
    """A stage of a store with all its ancestors, from their `recipe.json`.

    FileNotFoundError where one of them is absent, ValueError for a recipe that this version cannot
    read.
    """
    identity = json.loads((find(name, "recipe.json") / "recipe.json").read_text())
    parents = {parent: stored_stage(find, parent) for parent in identity["parents"]}
    return recorded_stage(name, identity, parents)


def recipe_of(kind: str, values: Mapping[str, Any]) -> Any:
    """A stage's recipe from its JSON; ValueError for unknown kinds and fields."""
    if kind not in RECIPES:
        raise ValueError(f"kind of stage {kind!r}: this version knows {', '.join(RECIPES)}")
    return RECIPES[kind](values)


def _train(values: Mapping[str, Any]) -> TrainRecipe:
    return from_json(TrainRecipe, values)


def _predict(values: Mapping[str, Any]) -> PredictRecipe:
    return from_json(PredictRecipe, values)


def _probe(values: Mapping[str, Any]) -> FrozenProbe:
    fresh = values.get("fresh")
    return FrozenProbe(from_json(ProbeRecipe, values["probe"]), fresh and _train(fresh))


RECIPES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "pretrain": _train,
    "finetune": _train,
    "predict": _predict,
    "validate": _predict,
    "probe": _probe,
    "ensemble": lambda values: from_json(EnsembleRecipe, values),
    "extract": lambda values: from_json(ExtractRecipe, values),
    "fit_head": lambda values: from_json(HeadRecipe, values),
}
"""How the recipe of each kind of stage is read from JSON."""
