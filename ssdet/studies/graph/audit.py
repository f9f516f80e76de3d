"""Fairness: whether the arms of a study differ in anything that they do not declare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssdet.store.base import Store
from ssdet.studies.graph.lineage import ancestry, experiment_of, parts
from ssdet.studies.graph.plan import Plan, Run
from ssdet.studies.network_costs import macs, parameter_count
from ssdet.studies.study import Arm, Study
from ssdet.system.recipe_json import to_json

HOW = ("revision", "packages", "processor", "gpu", "workers", "threads")
"""What of a stage's provenance should be the same in all arms, though it is no part of a recipe."""


@dataclass(frozen=True)
class Difference:
    """One field of the recipes in which an arm is not as what it is compared with."""

    arm: str
    field: str
    """Dotted, from `start`, `pretrain`, `finetune`, `predict` or `probe` on."""
    baseline: Any
    value: Any
    declared: bool
    against: str
    """The arm that it is compared with."""


@dataclass(frozen=True)
class Facts:
    """What an arm had, over all its seeds."""

    arm: str
    iterations: Mapping[str, int]
    """Optimiser steps by stage, pretraining first."""
    batch: Mapping[str, int]
    """Samples per optimiser step, by stage."""
    seeds: tuple[int, ...]
    selection: str
    """Which weights are scored."""
    coverage: tuple[int, int]
    """Videos scored and expected, of the worst seed; (0, 0) before anything is scored."""
    unreadable: int
    """Videos that some stage of the arm could not read."""
    parameters: int | None = None
    """Learnable weights of the fine-tuned network; None for an ensemble."""
    macs: int | None = None
    """Multiply-adds of its convolutions on one clip of fine-tuning; None for an ensemble."""
    how: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Code revisions, hardware and so on that its stages ran with."""


@dataclass(frozen=True)
class Audit:
    """All differences of arms from what they are compared with, and what else is unequal."""

    baseline: str
    facts: tuple[Facts, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """Whatever is unequal and not declared, in words; empty where the comparison is fair."""

    @property
    def fair(self) -> bool:
        return not self.notes


def audit(plan: Plan, store: Store | None = None) -> Audit:
    """Compare the recipes of all arms, and with a store also how their stages ran.

    An arm may differ from the one that it is compared with in the fields that either of them
    declares (`Arm.declared`). An ensemble is judged by its members, and an arm that is compared
    with an ensemble by the recipe of the study's baseline.
    """
    study = plan.study
    arms = [arm for arm in study.arms if plan.of(arm.name)]
    single = [arm for arm in arms if not arm.members and not arm.seeds_of]
    recipes = {arm.name: _recipes(plan.of(arm.name)[0]) for arm in single}
    differences = tuple(d for arm in single for d in _differences(study, arm, recipes))
    facts = {arm.name: _facts(arm.name, plan, store) for arm in arms}
    notes = [
        f"{d.arm} differs from {d.against} in {d.field}, which it does not declare: "
        f"{d.value!r} instead of {d.baseline!r}"
        for d in differences
        if not d.declared
    ]
    notes += [f"{arm.name}: {text}" for arm in single for text in _uneven(plan.of(arm.name))]
    pairs = [(facts[a], facts[base]) for a in facts if (base := study.baseline_of(a)) in facts]
    unlike = sorted(note for pair in pairs for note in _unlike(*pair))
    return Audit(study.baseline, tuple(facts.values()), differences, (*notes, *unlike))


def _differences(
    study: Study, arm: Arm, recipes: Mapping[str, Mapping[str, Any]]
) -> Iterator[Difference]:
    other = study.baseline_of(arm.name)
    base = study.arm(other if other in recipes else study.baseline)
    allowed = {*arm.declared, *base.declared}
    for name, old, new in _unequal(recipes.get(base.name, {}), recipes[arm.name]):
        yield Difference(arm.name, name, old, new, _covers(allowed, name), base.name)


def _recipes(run: Run) -> dict[str, Any]:
    """Every field of a run's recipes by dotted name, without seeds."""
    recipes = {name: stage.recipe for name, stage in parts(run.predict).items()}
    if run.probe is not None:
        recipes["probe"] = run.probe.recipe.probe
    recipes.pop("features", None)  # as the head and the scoring say
    found: dict[str, Any] = {}
    for name, recipe in recipes.items():
        found |= dict(_flat(to_json(recipe), name))
    return {key: value for key, value in found.items() if not key.endswith(".seed")}


def _flat(values: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{at}.{name}")
        else:
            yield f"{at}.{name}", value


def _unequal(base: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ; a whole stage that one of them lacks is one difference."""
    stages = {key.partition(".")[0] for key in {*base, *own}}
    lacking = {
        stage
        for stage in stages
        if any(not any(key.startswith(f"{stage}.") for key in side) for side in (base, own))
    }
    for stage in sorted(lacking):
        has = any(key.startswith(f"{stage}.") for key in own)
        yield stage, "absent" if has else "present", "present" if has else "absent"
    for key in sorted({*base, *own}):
        if key.partition(".")[0] not in lacking and base.get(key) != own.get(key):
            yield key, base.get(key), own.get(key)


def _covers(declared: set[str], name: str) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in declared)


def _uneven(runs: list[Run]) -> list[str]:
    """Fields in which the seeds of one arm differ."""
    first = _recipes(runs[0])
    unequal = {name for run in runs[1:] for name, _, _ in _unequal(first, _recipes(run))}
    return [f"its seeds differ in {name}" for name in sorted(unequal)]


def _facts(arm: str, plan: Plan, store: Store | None) -> Facts:
    runs = plan.of(arm)
    named = {name: stage.recipe for name, stage in parts(runs[0].predict).items()}
    recipes = {name: recipe for name, recipe in named.items() if hasattr(recipe, "optim")}
    averaged = any(recipe.optim.ema for recipe in recipes.values())
    results = [store.result(run.predict.id) for run in runs] if store is not None else []
    scores = [result["scores"]["test"] for result in results if result is not None]
    covered = [(score["videos_scored"], score["videos_expected"]) for score in scores]
    unreadable, how = _met(runs, store) if store is not None else (set[str](), {})
    size: tuple[int | None, int | None] = (None, None)
    experiment = experiment_of(runs[0].predict, runs[0].probe)
    if experiment is not None:
        classes = plan.study.data.manifests["downstream"].num_classes
        size = parameter_count(experiment, classes), macs(experiment, classes)
    return Facts(
        arm,
        {name: recipe.optim.steps for name, recipe in recipes.items()},
        {name: recipe.optim.batch for name, recipe in recipes.items()},
        tuple(run.seed for run in runs),
        "moving average at the last step" if averaged else "weights of the last step",
        min(covered, default=(0, 0)),
        len(unreadable),
        *size,
        how,
    )


def _met(runs: list[Run], store: Store) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """Videos that some stage could not read, and what the stages ran with."""
    unreadable: set[str] = set()
    how: dict[str, set[str]] = {}
    for stage in {stage.id for run in runs for stage in ancestry(run.predict)}:
        result = store.result(stage) or {}
        for name in ("replaced", "unreadable", "unreadable_train"):
            unreadable |= {*result.get(name, {})}
        seen = store.provenance(stage) or {}
        for name in HOW:
            if name in seen:
                how.setdefault(name, set()).add(str(seen[name]))
    return unreadable, {name: tuple(sorted(values)) for name, values in how.items()}


def _unlike(one: Facts, base: Facts) -> Iterator[str]:
    """Coverage, seeds and ways of running in which an arm is not as what it is compared with."""
    if one.coverage != base.coverage:
        yield (
            f"{one.arm} was scored on {one.coverage[0]} of {one.coverage[1]} videos, "
            f"{base.arm} on {base.coverage[0]} of {base.coverage[1]}"
        )
    if one.unreadable != base.unreadable:
        yield f"{one.arm} could not read {one.unreadable} videos, {base.arm} {base.unreadable}"
    if one.seeds != base.seeds and one.parameters is not None:
        yield f"{one.arm} has the seeds {one.seeds}, {base.arm} {base.seeds}"
    if one.selection != base.selection and one.parameters is not None:
        yield f"{one.arm} is scored with {one.selection}, {base.arm} {base.selection}"
    for name in one.how.keys() & base.how.keys():
        if one.how[name] != base.how[name]:
            yield (
                f"{one.arm} ran with {name} {' and '.join(one.how[name])}, {base.arm} with "
                f"{' and '.join(base.how[name])}"
            )
