"""Lineage of a scoring stage: its ancestors, named by the fields of the experiment."""

from collections.abc import Iterator, Mapping
from typing import Any

from ssdet.studies.experiment import Experiment
from ssdet.studies.graph.identity import Stage

FINE_STREAM = "fine_stream."
"""Prefix of the names of the fine stream's stages."""


def ancestry(stage: Stage) -> Iterator[Stage]:
    """All ancestors of a stage, parents first, then the stage; shared ancestors are repeated."""
    for parent in stage.parents:
        yield from ancestry(parent)
    yield stage


def network_stage(end: Stage) -> Stage:
    """The training stage whose network a scoring stage uses: the head of a run with a head; of two
    streams the one that reads the features of the other."""
    return end.parents[0]


def named_stages(end: Stage) -> dict[str, Stage]:
    """Stages of the run that a scoring stage ends, by name and in order: `start`, `pretrain`,
    `finetune`, `features` (an extraction), `head`, then `predict` or, of a trial, `validate`. The
    stages of a fine stream come first, with the prefix `FINE_STREAM`. Empty for an ensemble, whose
    members are runs.
    """
    if end.kind == "ensemble":
        return {}
    last, head = network_stage(end), dict[str, Stage]()
    if last.kind == "fit_head":
        features = last.parents[0]
        head = {"features": features, "head": last}
        last = features.parents[0]
    stages = _trainings(last) | head | {end.kind: end}
    maps = [parent for parent in last.parents if parent.kind == "extract"]
    if not maps:
        return stages
    fine = _trainings(maps[0].parents[0]) | {"features": maps[0]}
    return {FINE_STREAM + name: stage for name, stage in fine.items()} | stages


def _trainings(finetune: Stage) -> dict[str, Stage]:
    """A fine-tuning stage and its pretrainings, first to last."""
    chain = [finetune]
    while parents := [parent for parent in chain[0].parents if parent.kind == "pretrain"]:
        chain.insert(0, parents[0])
    return dict(zip(("start", "pretrain", "finetune")[-len(chain) :], chain, strict=True))


def experiment_of(end: Stage, probed: Stage | None = None) -> Experiment | None:
    """The experiment whose stages are a scoring stage, its ancestors and a probe; None for an
    ensemble."""
    recipes = {name: stage.recipe for name, stage in named_stages(end).items()}
    if "finetune" not in recipes:
        return None
    fine_stream = None
    if FINE_STREAM + "finetune" in recipes:
        maps = recipes[FINE_STREAM + "features"]
        fine_stream = Experiment(**_trained(recipes, FINE_STREAM), predict=maps.predict, probe=None)
    probe = probed.recipe.probe if probed else None
    own = _trained(recipes)
    return Experiment(**own, predict=end.recipe, probe=probe, fine_stream=fine_stream)


def _trained(recipes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Recipes of the trainings of one stream, by the field of the experiment."""
    names = ("start", "pretrain", "finetune", "head")
    return {name: recipes[prefix + name] for name in names if prefix + name in recipes}
