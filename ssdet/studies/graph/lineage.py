"""Stages that a run consists of, by the names of the parts of its experiment."""

from collections.abc import Iterator

from ssdet.studies.experiment import Experiment
from ssdet.studies.graph.identity import Stage

FINE_STREAM = "fine_stream."
"""In front of the names of the fine stream's parts."""


def ancestry(stage: Stage) -> Iterator[Stage]:
    """A stage and all that it was made from, parents first."""
    for parent in stage.parents:
        yield from ancestry(parent)
    yield stage


def scored(end: Stage) -> Stage:
    """The training stage whose network a scoring stage reads: of a run with a head that head, of
    two streams the one that reads the other's features."""
    return end.parents[0]


def parts(end: Stage) -> dict[str, Stage]:
    """Stages below the one that scores a run, and it, first to last: `start`, `pretrain`,
    `finetune`, `features` (an extraction), `head`, and `predict` or, of a trial, `validate`. Those
    of a fine stream come before them, as `fine_stream.start` and so on. Nothing below an ensemble,
    whose members are runs."""
    if end.kind == "ensemble":
        return {}
    found = {end.kind: end}
    last = scored(end)
    if last.kind == "fit_head":
        found |= {"head": last, "features": last.parents[0]}
        last = last.parents[0].parents[0]
    found |= _training(last)
    maps = [parent for parent in last.parents if parent.kind == "extract"]
    ordered = dict(reversed(found.items()))
    if not maps:
        return ordered
    below = dict(reversed(({"features": maps[0]} | _training(maps[0].parents[0])).items()))
    return {FINE_STREAM + name: stage for name, stage in below.items()} | ordered


def _training(tuned: Stage) -> dict[str, Stage]:
    """A fine-tuning and the pretrainings that it goes on from, last to first."""
    found, stage = {"finetune": tuned}, tuned
    for name in ("pretrain", "start"):
        before = [parent for parent in stage.parents if parent.kind == "pretrain"]
        if not before:
            break
        found[name] = stage = before[0]
    return found


def experiment_of(end: Stage, probed: Stage | None = None) -> Experiment | None:
    """The experiment that a scoring stage, its ancestors and a probe carry out; None for an
    ensemble."""
    found = {name: stage.recipe for name, stage in parts(end).items()}
    if "finetune" not in found:
        return None
    own = {name: found[name] for name in ("finetune", "pretrain", "start", "head")
           if name in found} | {"predict": end.recipe}  # fmt: skip
    probe = probed.recipe.probe if probed else None
    below = {
        name.removeprefix(FINE_STREAM): recipe
        for name, recipe in found.items()
        if name.startswith(FINE_STREAM) and name != FINE_STREAM + "features"
    }
    if not below:
        return Experiment(**own, probe=probe)
    fine_stream = Experiment(**below, predict=found[FINE_STREAM + "features"].predict, probe=None)
    return Experiment(**own, probe=probe, fine_stream=fine_stream)
