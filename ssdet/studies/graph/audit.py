"""Audit of a study: differences between arms that the arms do not declare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssdet.store.base import Store
from ssdet.studies.graph.lineage import ancestry, experiment_of, named_stages
from ssdet.studies.graph.plan import Plan, Run
from ssdet.studies.network_costs import macs, parameter_count
from ssdet.studies.study import Arm, Study
from ssdet.system.recipe_json import to_json

EXECUTION = ("revision", "packages", "processor", "gpu", "workers", "threads")
"""Fields of a stage's provenance, outside its recipe, that should be equal in all arms."""


@dataclass(frozen=True)
class Difference:
    """A field of the recipes in which an arm differs from the arm that it is compared with."""

    arm: str
    field: str
    """Dotted path that begins with `start`, `pretrain`, `finetune`, `predict` or `probe`."""
    baseline: Any
    value: Any
    declared: bool
    against: str
    """The arm that it is compared with."""


@dataclass(frozen=True)
class Facts:
    """Training, coverage and cost of an arm over all its seeds."""

    arm: str
    iterations: Mapping[str, int]
    """Optimiser steps by stage, pretraining first."""
    batch: Mapping[str, int]
    """Samples per optimiser step, by stage."""
    seeds: tuple[int, ...]
    selection: str
    """Weights that are scored: of the last step, or a moving average."""
    coverage: tuple[int, int]
    """Videos scored and expected, for the seed with the fewest; (0, 0) before scoring."""
    unreadable: int
    """Number of videos that at least one stage of the arm could not read."""
    parameters: int | None = None
    """Learnable weights of the fine-tuned network; None for an ensemble."""
    macs: int | None = None
    """Multiply-adds of its convolutions on one clip of fine-tuning; None for an ensemble."""
    execution: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Distinct values of each field of `EXECUTION` over the stages of the arm."""


@dataclass(frozen=True)
class Audit:
    """Differences between arms and the arms that they are compared with."""

    baseline: str
    facts: tuple[Facts, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """One sentence for each undeclared inequality; empty where the comparison is fair."""

    @property
    def fair(self) -> bool:
        return not self.notes


def audit(plan: Plan, store: Store | None = None) -> Audit:
    """Compare the recipes of all arms and, given a store, the execution of their stages.

    An arm may differ from the arm that it is compared with in the fields that either of them
    declares (`Arm.declared`). Of an ensemble the members are compared; an arm that is compared with
    an ensemble is checked against the recipe of the study's baseline.
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
    notes += [
        f"{arm.name}: its seeds differ in {name}"
        for arm in single
        for name in _unequal_between_seeds(plan.of(arm.name))
    ]
    pairs = [(facts[a], facts[base]) for a in facts if (base := study.baseline_of(a)) in facts]
    notes += sorted(note for pair in pairs for note in _unequal_facts(*pair))
    return Audit(study.baseline, tuple(facts.values()), differences, tuple(notes))


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
    recipes = {name: stage.recipe for name, stage in named_stages(run.predict).items()}
    if run.probe is not None:
        recipes["probe"] = run.probe.recipe.probe
    recipes.pop("features", None)  # its fields are those of the head and of scoring
    flat = [field for name, recipe in recipes.items() for field in _flat(to_json(recipe), name)]
    return {key: value for key, value in flat if not key.endswith(".seed")}


def _flat(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def _unequal(base: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ; a stage that only one of the two has is one difference."""
    base_stages, own_stages = ({key.partition(".")[0] for key in side} for side in (base, own))
    one_sided = base_stages ^ own_stages
    for stage in sorted(one_sided):
        yield (stage, "absent", "present") if stage in own_stages else (stage, "present", "absent")
    for key in sorted({*base, *own}):
        if key.partition(".")[0] not in one_sided and base.get(key) != own.get(key):
            yield key, base.get(key), own.get(key)


def _covers(declared: set[str], name: str) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in declared)


def _unequal_between_seeds(runs: list[Run]) -> list[str]:
    """Fields in which the seeds of one arm differ."""
    first = _recipes(runs[0])
    return sorted({name for run in runs[1:] for name, _, _ in _unequal(first, _recipes(run))})


def _facts(arm: str, plan: Plan, store: Store | None) -> Facts:
    runs = plan.of(arm)
    stages = {name: stage.recipe for name, stage in named_stages(runs[0].predict).items()}
    recipes = {name: recipe for name, recipe in stages.items() if hasattr(recipe, "optim")}
    averaged = any(recipe.optim.ema for recipe in recipes.values())
    results = [store.result(run.predict.id) for run in runs] if store is not None else []
    scores = [result["scores"]["test"] for result in results if result is not None]
    coverage = [(score["videos_scored"], score["videos_expected"]) for score in scores]
    unreadable, execution = _executed(runs, store) if store is not None else (set[str](), {})
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
        min(coverage, default=(0, 0)),
        len(unreadable),
        *size,
        execution,
    )


def _executed(runs: list[Run], store: Store) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """Unreadable videos over all stages, and the values of each field of `EXECUTION`."""
    unreadable: set[str] = set()
    execution: dict[str, set[str]] = {}
    for stage in {stage.id for run in runs for stage in ancestry(run.predict)}:
        result = store.result(stage) or {}
        for name in ("replaced", "unreadable", "unreadable_train"):
            unreadable |= {*result.get(name, {})}
        provenance = store.provenance(stage) or {}
        for name in EXECUTION:
            if name in provenance:
                execution.setdefault(name, set()).add(str(provenance[name]))
    return unreadable, {name: tuple(sorted(values)) for name, values in execution.items()}


def _unequal_facts(one: Facts, base: Facts) -> Iterator[str]:
    """Sentences on coverage, seeds, weights and execution that differ between two arms."""
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
    for name in one.execution.keys() & base.execution.keys():
        values, base_values = one.execution[name], base.execution[name]
        if values != base_values:
            yield (
                f"{one.arm} ran with {name} {' and '.join(values)}, {base.arm} with "
                f"{' and '.join(base_values)}"
            )
