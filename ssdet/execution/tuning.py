"""Nuisance knobs (learning rate, weight decay, steps), tuned for each arm with the same budget, so
that no arm wins because the defaults happen to suit it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from typing import Any, Literal

from ssdet.search.space import KNOBS, Search, with_values
from ssdet.search.trials import SearchResult
from ssdet.store.base import Store
from ssdet.studies.experiment import Change, Experiment
from ssdet.studies.graph.plan import plan
from ssdet.studies.presets import with_defaults
from ssdet.studies.study import Arm, Study
from ssdet.system.safe_files import write_json

SUFFIX = ", tuned"


@dataclass(frozen=True)
class Tuning:
    """What is tuned for each arm, on the validation split, and for how many trials.

    ValueError for an unknown knob.
    """

    knobs: Mapping[str, Any] = field(default_factory=dict)
    """Distributions by knob (`ssdet.search.space.KNOBS`); `default_knobs` where empty. Those of
    pretraining are left out for an arm that has none."""
    trials: int = 10
    """Of each arm; the first is the arm as it is."""
    seed: int = 1000
    """Of proposals and of training in the trials; must not be one of the study's seeds."""
    scheduler: Literal["asha", "median"] | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.knobs) - KNOBS.keys():
            raise ValueError(f"tuning: no knob {sorted(unknown)}, choose from {', '.join(KNOBS)}")


@dataclass(frozen=True)
class Choice:
    """What the tuning of one arm chose, and what it cost."""

    arm: str
    search: str
    params: Mapping[str, Any]
    map: float
    """Of the chosen trial, on the validation split."""
    untuned_map: float | None
    """Of the arm as it is, with the same seed; None where that trial did not finish."""
    trials: Mapping[str, int]
    """By state."""
    steps: int
    """Training steps of the finished stages of these trials, each stage counted once."""
    seconds: float
    """Their time; stages that were there already are counted with what they took."""


def default_knobs(base: Experiment) -> dict[str, Any]:
    """Learning rate and weight decay of fine-tuning, and half to twice the pretraining steps."""
    from optuna.distributions import FloatDistribution

    rate = base.finetune.optim.lr
    knobs: dict[str, Any] = {
        "finetune_lr": FloatDistribution(rate / 10, rate * 4, log=True),
        "finetune_weight_decay": FloatDistribution(1e-6, 1e-3, log=True),
    }
    if base.pretrain is not None:
        steps = base.pretrain.optim.steps
        knobs["pretrain_steps"] = (max(1, steps // 2), steps, steps * 2)
    return knobs


def tuned(study: Study, store: Store, tuning: Tuning, **how: Any) -> Study:
    """Tune every arm of a study, and return the study with an arm "X, tuned" behind each arm X.

    Arms that wait for a network are left as they are; ensembles get a counterpart of tuned members.
    `how`: keywords of `ssdet.execution.search_driver.run_search`. What was chosen is kept in
    `tables/STUDY_tuned/tuning.json`. Finished trials are kept, so the same call after a crash goes
    on. ValueError where the tuning seed is one of the study's, or no trial of an arm finished.
    """
    from ssdet.execution.search_driver import run_search

    study = with_defaults(study)
    if tuning.seed in study.seeds:
        raise ValueError(
            f"study {study.name!r}: tuning seed {tuning.seed} is one of its seeds {study.seeds}: "
            "what is tuned on a seed fits that seed; choose another"
        )
    choices: dict[str, Choice] = {}
    for arm in study.arms:
        single = not arm.members and not arm.seeds_of and study.can_run(arm)
        if single and (search := search_of(study, arm, tuning)):
            choices[arm.name] = _choice(arm, search, run_search(search, store, **how), store)
    result = with_choices(study, {name: choice.params for name, choice in choices.items()})
    path = store.table_folder(result.name) / "tuning.json"
    write_json(path, {"tuning_seed": tuning.seed, "arms": [asdict(c) for c in choices.values()]})
    store.publish_files(path)
    return result


def choices(store: Store, study: str) -> list[Choice]:
    """What the tuning of a study chose. FileNotFoundError where it was not tuned to the end."""
    path = store.table_folder(f"{study}_tuned") / "tuning.json"
    return [Choice(**values) for values in json.loads(path.read_text())["arms"]]


def search_of(study: Study, arm: Arm, tuning: Tuning) -> Search | None:
    """The search that tunes one arm; None where none of the knobs applies to it."""
    assert study.base is not None
    experiment = arm.change(study.base)
    offered = tuning.knobs or default_knobs(study.base)
    knobs = {name: d for name, d in offered.items() if _applies(name, experiment)}
    if not knobs:
        return None
    search = Search(
        f"{study.name}-tune-{arm.name}",
        knobs,
        trials=tuning.trials,
        protocol=study.protocol,
        scheduler=tuning.scheduler,
        seed=tuning.seed,
        base=experiment,
        data=study.data,
        title=f"{arm.label}: nuisance knobs",
    )
    return replace(search, first=_as_it_is(search, experiment))


def _applies(knob: str, experiment: Experiment) -> bool:
    """Whether the experiment has what a knob turns; plain `weight_decay` turns what there is."""
    return experiment.pretrain is not None or not knob.startswith("pretrain")


def _as_it_is(search: Search, experiment: Experiment) -> tuple[Mapping[str, Any], ...]:
    """The arm's own values, where the distributions hold them."""
    values = {name: _value(experiment, KNOBS[name][-1]) for name in search.distributions}
    inside = [_holds(d, values[name]) for name, d in search.distributions.items()]
    return (values,) if all(inside) else ()


def _value(experiment: Experiment, path: str) -> Any:
    return reduce(getattr, path.split("."), experiment)


def _holds(distribution: Any, value: Any) -> bool:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return value in choices
    return distribution.low <= value <= distribution.high


def _choice(arm: Arm, search: Search, result: SearchResult, store: Store) -> Choice:
    best = result.best()
    untuned = next((t for t in result.ranked() if dict(t.params) in map(dict, search.first)), None)
    stages = {stage for trial in result.trials for stage in trial.stages.values()}
    done = [(stage, found) for stage in stages if (found := store.result(stage)) is not None]
    how = [json.loads((store.folder(stage) / "provenance.json").read_text()) for stage, _ in done]
    return Choice(
        arm.name,
        search.name,
        dict(best.params),
        best.values["map"],
        untuned.values["map"] if untuned else None,
        result.counts(),
        sum(int(found.get("steps", 0)) for _, found in done),
        sum(float(values["seconds"]) for values in how),
    )


def with_choices(study: Study, chosen: Mapping[str, Mapping[str, Any]]) -> Study:
    """The study, named STUDY_tuned, with a tuned arm behind each arm that has chosen values, and
    behind each ensemble all of whose members have.

    A tuned arm is compared with the tuned counterpart of what the arm is compared with, or with
    that one itself where it has none; the tuned baseline with the baseline as it is.
    """
    counterpart = {name: f"{name}{SUFFIX}" for name in chosen}
    for arm in study.arms:
        parts = (*arm.members, *([arm.seeds_of] if arm.seeds_of else []))
        if parts and all(part in counterpart for part in parts):
            counterpart[arm.name] = f"{arm.name}{SUFFIX}"
    arms: list[Arm] = []
    for arm in study.arms:
        arms.append(arm)
        if arm.name in counterpart:
            arms.append(_tuned_arm(arm, counterpart, chosen.get(arm.name, {})))
    groups = {
        heading: tuple(n for name in names for n in (name, counterpart.get(name, "")) if n)
        for heading, names in study.table.groups.items()
    }
    tuned_against = {
        counterpart[arm]: counterpart.get(other, other)
        for arm in counterpart
        if (other := study.baseline_of(arm))
    }
    table = replace(
        study.table,
        title=f"{study.table.title or study.name}, nuisance knobs tuned for each arm",
        baseline=study.baseline,
        against={**study.table.against, **tuned_against},
        groups=groups,
    )
    result = replace(study, name=f"{study.name}_tuned", arms=tuple(arms), table=table)
    plan(result)  # a choice that an arm cannot take is refused here, not in the middle of a run
    return result


def _tuned_arm(arm: Arm, counterpart: Mapping[str, str], params: Mapping[str, Any]) -> Arm:
    paths = (path for name in params for path in KNOBS[name])
    return replace(
        arm,
        name=counterpart[arm.name],
        title=f"{arm.label}{SUFFIX}",
        change=_then(arm.change, with_values(params)),
        members=tuple(counterpart[member] for member in arm.members),
        seeds_of=counterpart[arm.seeds_of] if arm.seeds_of else "",
        declares=(*arm.declared, *paths),
    )


def _then(first: Change, second: Change) -> Change:
    return lambda experiment: second(first(experiment))
