"""Trained networks by the names of their checkpoints, ready to be run on any video."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ssdet.data.loading.sampling import generator_for
from ssdet.inference.recipe import PredictRecipe
from ssdet.models import accelerate, create
from ssdet.stages.backbone_with_head import assemble
from ssdet.store.base import STAGE_ID, Store
from ssdet.studies.graph.identity import Stage, StageLocator, stored_stage
from ssdet.studies.graph.lineage import named_stages
from ssdet.system.recipe_json import from_json
from ssdet.training import checkpoint as checkpoints
from ssdet.training.recipe import TrainRecipe

LAST = "checkpoints/last.pt"
TRAINED = ("pretrain", "finetune")
NO_NAMES = (
    "classes have no names, and videos are read as they are: the checkpoint has no data.json "
    "(stages of earlier versions did not keep it)"
)

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class LoadedNetwork:
    """One network with all that scoring a video takes."""

    model: nn.Module
    """In evaluation mode."""
    classes: tuple[str, ...]
    recipe: PredictRecipe
    readout: Literal["frame", "clip"] = "frame"
    """Logits of every frame, or of whole clips (`model.classify`)."""
    exclusive: bool = False
    """Classes exclude each other: probabilities are a softmax instead of sigmoids."""
    extra: int = 0
    """Logits before those of the classes: 1 where pretraining had a background."""
    decode_size: int | None = None
    """Short side at which frames are decoded; None: as they are."""
    fps: float = 0.0
    """Rate at which videos are read, the nearest frame each time; 0: every frame of a file."""
    notes: tuple[str, ...] = ()

    def probabilities(self, logits_NK: Tensor) -> Tensor:
        """Of the classes alone."""
        scores_NK = logits_NK.float()
        scores_NK = scores_NK.softmax(1) if self.exclusive else scores_NK.sigmoid()
        return scores_NK[:, self.extra :]


def load_networks(name: Name | LoadedNetwork, store: Name | None = None) -> list[LoadedNetwork]:
    """The networks that a checkpoint's name stands for; see `Detector`."""
    if isinstance(name, LoadedNetwork):
        return [name]
    text, path = os.fspath(name), Path(name)
    if STAGE_ID.fullmatch(text):
        place = Store.at(store or os.environ.get("SSDET_STORE", "runs"))
        return _of_stage(text, place.fetch)
    if path.is_dir():
        beside = path.absolute().parent
        return _of_stage(path.absolute().name, lambda stage, part: beside / stage)
    if path.is_file():
        recipe = _recipe_beside(path)
        return [_trained(path, _identity(recipe), recipe.parent)]
    return [_published(text)]


def _of_stage(stage: str, find: StageLocator) -> list[LoadedNetwork]:
    """Members of a stage; `find` gives the folder of a stage by its id, with a file of it."""
    folder = find(stage, "recipe.json")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such stage; name another store (--store)")
    identity = _identity(folder / "recipe.json")
    kind, parents = identity["kind"], identity.get("parents", [])
    if kind in TRAINED:
        find(stage, "data.json")
        return [_trained(find(stage, LAST) / LAST, identity, folder)]
    if kind in ("predict", "validate"):
        recipe = from_json(PredictRecipe, identity["recipe"])
        before = {_identity(find(one, "recipe.json") / "recipe.json")["kind"] for one in parents}
        if before & {"fit_head", "extract"}:
            return [_assembled(stored_stage(find, stage), find)]
        return [replace(one, recipe=recipe) for one in _of_stage(parents[0], find)]
    if kind == "ensemble":
        return [one for parent in parents for one in _of_stage(parent, find)]
    raise ValueError(f"{folder}: a {kind} stage keeps no network of its own; name a trained one")


def _assembled(end: Stage, find: StageLocator) -> LoadedNetwork:
    """A run whose network was trained in several stages."""
    tuned = named_stages(end)["finetune"]
    data = json.loads((find(tuned.id, "data.json") / "data.json").read_text(encoding="utf-8"))
    classes = tuple(data["classes"])
    model = assemble(end, len(classes), find)
    return LoadedNetwork(
        model, classes, end.recipe, decode_size=data["decode_size"], fps=data["fps"]
    )


def _recipe_beside(file: Path) -> Path:
    places = (file.parent / "recipe.json", file.parent.parent / "recipe.json")
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{file}: no recipe.json beside it or in the folder above")


def _identity(path: Path) -> dict[str, Any]:
    """What a stage is: its identity, or a bare training recipe."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict) and "task" in found:
        return {"kind": found["task"], "recipe": found}
    if not isinstance(found, dict) or "kind" not in found or "recipe" not in found:
        raise ValueError(f"{path}: neither a stage nor a training recipe (a 'kind' and a 'recipe')")
    return found


def _trained(file: Path, identity: dict[str, Any], folder: Path) -> LoadedNetwork:
    if identity["kind"] not in TRAINED:
        raise ValueError(f"{file}: its recipe.json is of a {identity['kind']} stage, not of one "
                         "that trains")  # fmt: skip
    recipe = from_json(TrainRecipe, identity["recipe"])
    weights = checkpoints.load_weights(file)
    prefix: Any = _fresh(recipe, 1).classifier
    outputs = len(next(value for name, value in weights.items() if name.startswith(prefix)))
    extra = recipe.head_classes(0)
    model = _fresh(recipe, outputs)
    model.load_state_dict(weights)
    data = _data_of(folder, outputs - extra)
    pretrained = recipe.task == "pretrain"
    return LoadedNetwork(
        model.eval(),
        tuple(data["classes"]),
        PredictRecipe(recipe.clip),
        recipe.readout if pretrained else "frame",
        exclusive=pretrained and recipe.loss != "bce",
        extra=extra,
        decode_size=data["decode_size"],
        fps=data["fps"],
        notes=() if data["named"] else (NO_NAMES,),
    )


def _fresh(recipe: TrainRecipe, outputs: int) -> nn.Module:
    """The recipe's network; whatever its training started from is not looked for."""
    generator, options = generator_for(recipe.seed), dict(recipe.model.options)
    return accelerate(create(recipe.model.name, outputs, generator=generator, **options))


def _data_of(folder: Path, classes: int) -> dict[str, Any]:
    """What a stage kept of its data: class names, decoding size and rate."""
    path = folder / "data.json"
    if not path.is_file():
        names = [f"class {k}" for k in range(classes)]
        return {"classes": names, "decode_size": None, "fps": 0.0, "named": False}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if len(kept["classes"]) != classes:
        raise ValueError(f"{path}: {len(kept['classes'])} classes, the checkpoint has {classes}")
    return {"fps": 0.0, **kept, "named": True}


def _published(name: str) -> LoadedNetwork:
    from ssdet.models.weights import published

    try:
        model, classes, clip = published.load(name)
    except ValueError as error:
        raise ValueError(
            f"checkpoint {name!r}: no stage id, no folder or file here, no published weights: "
            f"{error}"
        ) from error
    rate = published.named(name).fps
    return LoadedNetwork(model, classes, PredictRecipe(clip), "clip", exclusive=True, fps=rate)
