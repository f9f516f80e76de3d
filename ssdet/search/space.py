"""Searches: a space of changes to a base, objectives, and a number of trials."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ssdet.data.loading.recipe import DENSE
from ssdet.studies.data import Data
from ssdet.studies.experiment import Change, Experiment, unchanged
from ssdet.studies.graph.builder import StageGraph
from ssdet.studies.graph.identity import Stage, data_fingerprint
from ssdet.studies.graph.lineage import ancestry, named_stages
from ssdet.studies.presets import tiny
from ssdet.studies.study import protocol_id
from ssdet.system.recipe_json import to_json

Space = Callable[[Any], Change]
"""Define by run: asks an Optuna trial for values and returns the change that they make."""

OBJECTIVES = {"map": "max", "macs": "min"}
"""Score on the validation split under the search's protocol, and multiply-adds of the fine-tuned
network's convolutions for one clip."""

KNOBS = {
    "pretrain_lr": ("pretrain.optim.lr",),
    "finetune_lr": ("finetune.optim.lr",),
    "pretrain_steps": ("pretrain.optim.steps",),
    "finetune_steps": ("finetune.optim.steps",),
    "pretrain_weight_decay": ("pretrain.optim.weight_decay",),
    "finetune_weight_decay": ("finetune.optim.weight_decay",),
    "weight_decay": ("pretrain.optim.weight_decay", "finetune.optim.weight_decay"),
}
"""Short names for fields of an experiment."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,+._-]*")


@dataclass(frozen=True)
class Search:
    """Trials of changes to a base, each trained with one seed and scored on the validation split.

    The test split is never scored. ValueError for a name that is no folder name, unknown
    objectives, or a scheduler beside two objectives.
    """

    name: str
    space: Space | Mapping[str, Any]
    """A function of an Optuna trial that returns a change; or distributions of Optuna or Tune (a
    sequence: one of these) by name: a knob of `KNOBS` or a path such as `pretrain.optim.lr`."""
    trials: int = 20
    """Trials in all, those of earlier calls included; a larger number later goes on."""
    objectives: tuple[str, ...] = ("map",)
    """Of `OBJECTIVES`; with both the result is a Pareto set."""
    protocol: str = DENSE
    """What `map` is: name or id of a protocol, kept as its id, as in `Study`."""
    scheduler: Literal["asha", "median"] | None = None
    """Stops trials early by what fine-tuning's validations say: see `early_stopping_check`. They
    are then of the search's protocol, which the recipe's `validate_by` names."""
    seed: int = 0
    """Of the proposals and of every trial's training."""
    change: Change = unchanged
    """What all trials have in common, made before the proposed change."""
    base: Experiment | None = None
    """What is changed: of the preset that the command line names, else of `tiny`."""
    data: Any = None
    """`ssdet.studies.Data`; Moving Shapes by default."""
    first: tuple[Mapping[str, Any], ...] = ()
    """Values that are tried first, by name."""
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", protocol_id(self.protocol))
        if not NAME.fullmatch(self.name):
            raise ValueError(f"search {self.name!r}: its name is a folder's: {NAME.pattern}")
        if self.trials < 1:
            raise ValueError(f"search {self.name!r}: trials={self.trials}, expected 1 or more")
        if "map" not in self.objectives or set(self.objectives) - OBJECTIVES.keys():
            raise ValueError(
                f"search {self.name!r}: objectives {self.objectives}: expected 'map', or 'map' "
                "and 'macs'"
            )
        if self.scheduler and len(self.objectives) > 1:
            raise ValueError(
                f"search {self.name!r}: scheduler={self.scheduler!r} compares trials by mAP alone: "
                "give it one objective, or no scheduler"
            )

    @cached_property
    def distributions(self) -> dict[str, Any]:
        """Optuna distribution of each name; none where the space is a function."""
        if callable(self.space):
            return {}
        return {name: _distribution(name, values) for name, values in self.space.items()}

    def experiment(self, trial: Any) -> Experiment:
        """The experiment that an Optuna trial proposes (a `FixedTrial` for known values).

        ValueError where a scheduler would stop trials by their scores on the test split.
        """
        base = self.base or tiny().experiment
        if callable(self.space):
            change = self.space(trial)
        else:
            found = {name: suggest(trial, name, d) for name, d in self.distributions.items()}
            change = with_values(found)
        experiment = change(self.change(base)).with_seed(self.seed)
        if self.scheduler:
            experiment = experiment.validated_by(self.protocol)
        if self.scheduler and (experiment.head or experiment.finetune).validate_on == "test":
            raise ValueError(
                f"search {self.name!r}: scheduler={self.scheduler!r} would stop trials by their "
                "scores on the test split: set validate_on='val', or use no scheduler"
            )
        return experiment

    def chosen(self, params: Mapping[str, Any]) -> Change:
        """The change that a trial's values stand for, for an arm of a study."""
        if not callable(self.space):
            return with_values(params)
        from optuna.trial import FixedTrial

        return self.space(FixedTrial(dict(params)))

    def declaration(self) -> dict[str, Any]:
        """All that decides what a trial means, as JSON; how many there are does not."""
        assert self.base is not None
        return {
            "base": to_json(self.change(self.base)),
            "data": [data_fingerprint(self.data, kind) for kind in ("finetune", "pretrain")],
            "space": self._space_text(),
            "objectives": list(self.objectives),
            "protocol": self.protocol,
            "scheduler": self.scheduler,
            "seed": self.seed,
        }

    def _space_text(self) -> Any:
        if callable(self.space):
            return source_of(self.space)
        from optuna.distributions import distribution_to_json

        return {name: json.loads(distribution_to_json(d)) for name, d in self.distributions.items()}


@dataclass(frozen=True)
class Chain:
    """The stages of one trial, parents first; the last one scores."""

    stages: tuple[Stage, ...]

    def __repr__(self) -> str:
        return f"{len(self.stages)} stages"  # Tune makes folder names of it

    @property
    def ids(self) -> dict[str, str]:
        """Stage id by part of the run (`graph.lineage`), such as `start` or `validate`; none
        for a trial that could not be built."""
        named = named_stages(self.stages[-1]) if self.stages else {}
        return {name: stage.id for name, stage in named.items()}


def chain(experiment: Experiment, data: Data) -> Chain:
    """From clips to a score on the validation split: the stages of an arm with this experiment, but
    that the last one scores no test video."""
    end = StageGraph(data).scoring(experiment, "validate")
    return Chain(tuple({stage.id: stage for stage in ancestry(end)}.values()))


def with_values(values: Mapping[str, Any]) -> Change:
    """Set fields of an experiment by knob or by path ("finetune.optim.lr").

    The change raises ValueError for a path that the experiment does not have.
    """

    def change(experiment: Experiment) -> Experiment:
        for name, value in values.items():
            paths = KNOBS.get(name, (name,))
            if name == "weight_decay" and experiment.pretrain is None:
                paths = paths[1:]
            for path in paths:
                experiment = _replaced(experiment, path.split("."), value, path)
        return experiment

    return change


def _replaced(part: Any, steps: list[str], value: Any, path: str) -> Any:
    if not steps:
        return value
    first, *rest = steps
    if isinstance(part, Mapping):
        return {**part, first: _replaced(part.get(first), rest, value, path)}
    known = [field.name for field in fields(part)] if is_dataclass(part) else []
    if first not in known:
        have = f"it has {', '.join(known)}" if known else f"there is {part!r}"
        raise ValueError(f"{path!r}: no field {first!r} in this experiment, {have}")
    return replace(part, **{first: _replaced(getattr(part, first), rest, value, path)})


def suggest(trial: Any, name: str, distribution: Any) -> Any:
    """Ask an Optuna trial for a value of a distribution."""
    kind = type(distribution).__name__
    if kind == "CategoricalDistribution":
        return trial.suggest_categorical(name, distribution.choices)
    low, high, log = distribution.low, distribution.high, distribution.log
    if kind == "IntDistribution":
        return trial.suggest_int(name, low, high, step=distribution.step, log=log)
    return trial.suggest_float(name, low, high, step=distribution.step, log=log)


def _distribution(name: str, values: Any) -> Any:
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    if isinstance(values, BaseDistribution):
        return values
    if isinstance(values, list | tuple):
        return CategoricalDistribution(values)
    if not type(values).__module__.startswith("ray.tune."):
        raise ValueError(
            f"space: {name!r} is {values!r}: expected a distribution of Optuna or of Ray Tune, or "
            "a sequence of choices; a grid is a study with an arm for each of its cells"
        )
    return _from_tune(name, values)


def _from_tune(name: str, domain: Any) -> Any:
    """Optuna's distribution for a domain of Ray Tune, from its attributes: Ray is not imported."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sampler = domain.get_sampler()
    step = getattr(sampler, "q", None)
    kind, law = type(domain).__name__, type(sampler.get_sampler() if step else sampler).__name__
    log = law == "_LogUniform"
    if not log and law != "_Uniform":
        raise ValueError(f"space: {name!r} is {domain!r}: Optuna samples uniformly or in the log")
    if kind == "Categorical":
        return CategoricalDistribution(domain.categories)
    if kind == "Float":
        return FloatDistribution(domain.lower, domain.upper, log=log, step=None if log else step)
    # Ray excludes the upper bound of integers, except of those with a step.
    upper = domain.upper - (log or not step)
    return IntDistribution(domain.lower, upper, log=log, step=1 if log else step or 1)


def source_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function says: its syntax tree (comments and layout do not count), and the plain
    values that it takes from outside. ValueError where its source cannot be read."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
        outside = inspect.getclosurevars(function)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"space {function!r}: its source cannot be read ({error}), so that a later call could "
            "not tell whether it changed: write it as a function in a file"
        ) from error
    try:
        text = ast.dump(ast.parse(text))
    except SyntaxError:  # a lambda amid an expression
        text = " ".join(text.split())
    values = {**outside.globals, **outside.nonlocals}
    return {"code": text, "values": {k: repr(v) for k, v in sorted(values.items()) if _plain(v)}}


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_plain, value))
    if isinstance(value, Mapping):
        return all(map(_plain, [*value, *value.values()]))
    return isinstance(value, str | int | float | bool | None)


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Where two JSON values differ: path, old and new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(new.keys() - old.keys())]:
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        shown = "its code" if at.endswith("code") else f"{old!r} there, {new!r} now"
        yield f"{at}: {shown}"
