"""A study as a graph of unique stages: what several arms share exists once."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ssdet.studies.data import Data
from ssdet.studies.experiment import Experiment
from ssdet.studies.presets import completed
from ssdet.studies.study import Arm, Study
from ssdet.training.origin import check_constants, starting_weights
from ssdet.training.recipe import ExtractRecipe, TrainRecipe, to_json

FORMAT = 3
"""Version of what stages compute; a change that alters results raises it."""
REVISED = {"finetune": 4}
"""Kinds whose results alone have changed since. 4: running statistics of pretraining are kept."""


@dataclass(frozen=True)
class Stage:
    """One unit of work with one output folder, named by a hash of all that decides its output."""

    kind: str
    recipe: Any
    parents: tuple["Stage", ...]
    fingerprint: str

    @cached_property
    def id(self) -> str:
        """Kind and hash of recipe (with its seed), parents, data and format version."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def identity(self) -> dict[str, Any]:
        """What is hashed, as JSON values; kept beside the output as `recipe.json`."""
        return {
            "format": REVISED.get(self.kind, FORMAT),
            "kind": self.kind,
            "recipe": to_json(self.recipe),
            "parents": [parent.id for parent in self.parents],
            "data": self.fingerprint,
        }


@dataclass(frozen=True)
class EnsembleRecipe:
    """Mean of the members' probabilities."""

    method: str = "mean_probability"


@dataclass(frozen=True)
class Run:
    """One arm with one seed: the stages whose scores are its result."""

    arm: str
    seed: int
    predict: Stage
    probe: Stage | None


@dataclass(frozen=True)
class Plan:
    """The stages of a study, parents before children, and what each run reads."""

    study: Study
    runs: tuple[Run, ...]

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Unique stages by id, parents first, in the order of seeds and arms."""
        found: dict[str, Stage] = {}

        def visit(stage: Stage) -> None:
            for parent in stage.parents:
                visit(parent)
            found.setdefault(stage.id, stage)

        for run in self.runs:
            for stage in (run.predict, run.probe):
                if stage is not None:
                    visit(stage)
        return found

    @cached_property
    def unshared(self) -> list[Stage]:
        """Every stage as often as it would run if each run trained its own; both read-outs of a
        run have the same pretraining even then."""

        def family(stage: Stage) -> dict[str, Stage]:
            older = {k: v for parent in stage.parents for k, v in family(parent).items()}
            return older | {stage.id: stage}

        return [
            stage
            for run in self.runs
            for stage in (family(run.predict) | (family(run.probe) if run.probe else {})).values()
        ]

    def of(self, arm: str) -> list[Run]:
        """Runs of one arm in the order of seeds."""
        return [run for run in self.runs if run.arm == arm]

    def missing(self, arm: Arm) -> str:
        """What an arm without runs needs, empty for one that runs."""
        return "" if self.of(arm.name) else self.study.needs(arm)


def plan(study: Study) -> Plan:
    """Resolve every arm and seed into stages; nothing is trained.

    A study without base or data gets those of the preset `tiny`, rendered on first use. The data's
    files must be there: what they hold is part of the stages' names. An arm that waits for a
    network has no runs; ValueError where it is the baseline.
    """
    study = completed(study)
    base = study.arm(study.baseline)
    if not study.can_run(base):
        raise ValueError(f"baseline {base.name!r} needs {study.needs(base)}: not built yet")
    arms = [arm for arm in study.arms if study.can_run(arm)]
    assert study.base is not None
    _check_start(study.base, study.data)
    stage = _stages_of(study.data)
    runs: dict[tuple[str, int], Run] = {}
    for seed in study.seeds:
        for arm in arms:
            if not arm.members and not arm.seeds_of:
                experiment = arm.change(study.base).with_seed(seed)
                runs[arm.name, seed] = _run(stage, arm.name, seed, experiment)
    for arm in arms:
        for index, seed in enumerate(study.seeds):
            if arm.members:
                members = [runs[member, seed] for member in arm.members]
            elif arm.seeds_of and _distinct(index, arm.size, len(study.seeds)):
                turned = study.seeds[index:] + study.seeds[:index]
                members = [runs[arm.seeds_of, other] for other in turned[: arm.size]]
            else:
                continue
            parents = tuple(sorted((run.predict for run in members), key=lambda s: s.id))
            ensemble = stage("ensemble", EnsembleRecipe(), parents)
            runs[arm.name, seed] = Run(arm.name, seed, ensemble, None)
    return Plan(study, tuple(runs.values()))


def _distinct(index: int, size: int, seeds: int) -> bool:
    """Whether the window of `size` seeds that starts at `index` is a set of its own."""
    if seeds < size:
        raise ValueError(
            f"an ensemble of {size} seeds needs {size} seeds, the study has {seeds}: give it more "
            "seeds, or leave the arm out"
        )
    return seeds > size or index == 0


def _stages_of(data: Data) -> Callable[..., Stage]:
    prints = {kind: data.fingerprint(kind) for kind in ("pretrain", "finetune", "predict", "probe")}
    prints |= dict.fromkeys(("extract", "fit_head"), prints["probe"])
    known: dict[str, Stage] = {}

    def stage(kind: str, recipe: Any, parents: tuple[Stage, ...]) -> Stage:
        print_ = prints.get(kind, prints["predict"])
        if isinstance(recipe, TrainRecipe) and recipe.validate_on == "test":
            print_ += "," + data.fingerprint("predict")
        fresh = Stage(kind, recipe, parents, print_)
        return known.setdefault(fresh.id, fresh)

    return stage


def _run(stage: Callable[..., Stage], arm: str, seed: int, experiment: Experiment) -> Run:
    maps = _maps(stage, experiment)
    start, tuned = _trained(stage, experiment, maps)
    last: tuple[Stage, ...] = (tuned, *maps)
    if experiment.head is not None:
        if maps:
            raise ValueError(f"arm {arm!r}: a head reads the features of one network: drop either "
                             "`head` or `guide`")  # fmt: skip
        features = stage("extract", ExtractRecipe(experiment.predict), (tuned,))
        last = (stage("fit_head", experiment.head, (features,)),)
    probe = None
    if experiment.probe is not None:
        recipe = FrozenProbe(experiment.probe, None if start else experiment.finetune)
        probe = stage("probe", recipe, start)
    return Run(arm, seed, stage("predict", experiment.predict, last), probe)


def _trained(
    stage: Callable[..., Stage], experiment: Experiment, maps: tuple[Stage, ...] = ()
) -> tuple[tuple[Stage, ...], Stage]:
    """The last pretraining, if any, and the fine-tuning that goes on from it."""
    start: tuple[Stage, ...] = ()
    for pretraining in experiment.pretrainings:
        start = (stage("pretrain", _after(start, pretraining), start),)
    _check_reading(experiment)
    return start, stage("finetune", _after(start, experiment.finetune), (*start, *maps))


def _maps(stage: Callable[..., Stage], experiment: Experiment) -> tuple[Stage, ...]:
    """What a two-stream network gets of its fine stream, which is trained before it."""
    fine = experiment.guide
    if fine is None:
        return ()
    _, tuned = _trained(stage, fine)
    grid = experiment.finetune.model.options.get("grid", 7)
    return (stage("extract", ExtractRecipe(fine.predict, pyramid=grid), (tuned,)),)


def _after(start: tuple[Stage, ...], recipe: TrainRecipe) -> TrainRecipe:
    """The recipe as it goes on from a stage: without weights of its own, with clips as there."""
    if not start:
        return recipe
    before: TrainRecipe = start[0].recipe
    source = f"{before.task}ing with {before.model.name}"
    check_constants(recipe, (before.clip.mean, before.clip.std), source)
    return replace(recipe, model=replace(recipe.model, weights=""))


def _check_start(base: Experiment, data: Data) -> None:
    """ValueError or FileNotFoundError where the base's first weights cannot be started from."""
    if base.pretrainings:
        first = base.pretrainings[0]
        starting_weights(first, first.head_classes(data.manifests["upstream"].num_classes))


def _check_reading(experiment: Experiment) -> None:
    """ValueError where whole videos are normalised otherwise than the clips of fine-tuning."""
    trained, read = experiment.finetune.clip, experiment.predict.clip
    if (trained.mean, trained.std) != (read.mean, read.std):
        raise ValueError(
            f"predict normalises by {read.mean} and {read.std}, fine-tuning by {trained.mean} and "
            f"{trained.std}: give predict.clip the mean and std of finetune.clip"
        )


@dataclass(frozen=True)
class FrozenProbe:
    """A probe, and the recipe of the fresh network that it reads where nothing was pretrained."""

    probe: Any
    fresh: Any = None
