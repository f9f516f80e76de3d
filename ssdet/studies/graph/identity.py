"""Identity of a stage: the values whose hash is the id under which its output is stored."""

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
"""Version of the computation of stages. Raise it with every change that alters results or ids."""

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

StageLocator = Callable[[str, str], Path]
"""Function from a stage's id and the name of one of its files to the stage's local folder, such as
`Store.fetch`."""


@dataclass(frozen=True)
class EnsembleRecipe:
    """Mean of the members' probabilities."""

    method: str = "mean_probability"


@dataclass(frozen=True)
class FrozenProbe:
    """A linear probe, and the recipe of the fresh network that it reads without pretraining."""

    probe: ProbeRecipe
    fresh: TrainRecipe | None = None


@dataclass(frozen=True)
class Stage:
    """One unit of work with one output folder, named by a hash of everything that decides the
    output."""

    kind: str
    recipe: Any
    parents: tuple["Stage", ...]
    fingerprint: str
    """Fingerprint of the data that the stage reads: see `data_fingerprint`."""

    @cached_property
    def id(self) -> str:
        """Kind and hash of the identity; for a stage read from a store, its recorded id."""
        return stage_id(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The hashed values, as JSON; stored beside the output as `recipe.json`."""
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
    """16 hex digits of the SHA-256 of JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def data_fingerprint(data: Data, kind: str, recipe: Any = None) -> str:
    """Fingerprints of the splits that a stage of this kind and recipe reads, with the decoding size
    and frame rate. KeyError for an unknown kind.
    """
    role, splits = SPLITS[kind]
    if getattr(recipe, "validate_on", "val") == "test" and "test" not in splits:
        splits = (*splits, "test")
    contents = [data.split(role, name).fingerprint for name in splits]
    rate = f" at {data.fps:g} frames a second" if data.fps and role == "downstream" else ""
    return ",".join([*contents, f"decoded at {data.decode_size}{rate}"])


def recorded_stage(name: str, identity: Mapping[str, Any], parents: Mapping[str, Stage]) -> Stage:
    """The stage with a recorded identity and id, even where this version would compute another id.

    ValueError for a recipe that this version cannot read.
    """
    ancestors = tuple(parents[parent] for parent in identity["parents"])
    recipe = recipe_of(identity["kind"], identity["recipe"])
    stage = Stage(identity["kind"], recipe, ancestors, identity["data"])
    stage.__dict__["id"] = name
    return stage


def stored_stage(locate: StageLocator, name: str) -> Stage:
    """A stage of a store and all its ancestors, read from their `recipe.json`.

    FileNotFoundError where one of them is missing; ValueError for a recipe that this version cannot
    read.
    """
    identity = json.loads((locate(name, "recipe.json") / "recipe.json").read_text())
    parents = {parent: stored_stage(locate, parent) for parent in identity["parents"]}
    return recorded_stage(name, identity, parents)


def recipe_of(kind: str, values: Mapping[str, Any]) -> Any:
    """A stage's recipe from its JSON; ValueError for unknown kinds and fields."""
    if kind not in RECIPES:
        raise ValueError(f"kind of stage {kind!r}: expected one of {', '.join(RECIPES)}")
    return from_json(RECIPES[kind], values)


RECIPES: Mapping[str, type] = {
    "pretrain": TrainRecipe,
    "finetune": TrainRecipe,
    "predict": PredictRecipe,
    "validate": PredictRecipe,
    "probe": FrozenProbe,
    "ensemble": EnsembleRecipe,
    "extract": ExtractRecipe,
    "fit_head": HeadRecipe,
}
"""Recipe class of each kind of stage."""
