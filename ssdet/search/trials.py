"""Trials of searches, read from the Optuna studies that record them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdet.data.loading.recipe import DENSE
from ssdet.search.space import OBJECTIVES
from ssdet.store.base import Store

if TYPE_CHECKING:
    import optuna

DATABASE = "optuna.db"
"""SQLite file of a search's Optuna study, in the search's folder."""

ENDED = ("complete", "pruned", "diverged", "failed")
"""States of a trial that is over, whatever came of it; the others are `running` and `waiting`."""

RANKED = ("complete", "diverged")
ENOUGH_FOR_IMPORTANCE = 10


@dataclass(frozen=True)
class Trial:
    """One Optuna trial as far as it got."""

    number: int
    state: str
    params: Mapping[str, Any]
    stages: Mapping[str, str]
    """Stage id by kind: the run."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By objective; a diverged training has mAP 0, the worst there is."""
    rungs: Mapping[int, float] = field(default_factory=dict)
    """mAP at each validation of fine-tuning, counted from 1: Optuna's intermediate values."""
    error: str = ""
    """Why it failed or diverged."""
    ray_trial: str = ""
    seconds: float = 0.0
    """From its (last) start to its end."""

    @classmethod
    def of(cls, trial: "optuna.trial.FrozenTrial", objectives: tuple[str, ...]) -> "Trial":
        """What an Optuna trial records."""
        notes, state = trial.user_attrs, trial.state.name.lower()
        complete = state == "complete"
        reason = notes.get({"complete": "diverged", "fail": "error"}.get(state, ""), "")
        return cls(
            trial.number,
            {"complete": "diverged" if reason else state, "fail": "failed"}.get(state, state),
            trial.params,
            notes.get("stages", {}),
            dict(zip(objectives, trial.values, strict=True)) if complete else {},
            dict(sorted(trial.intermediate_values.items())),
            reason,
            notes.get("ray_trial", ""),
            trial.duration.total_seconds() if trial.duration else 0.0,
        )


@dataclass(frozen=True)
class SearchResult:
    """What a search has found so far."""

    name: str
    folder: Path
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    protocol: str = DENSE
    """Of the objective `map`, on the validation split."""

    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return dict(Counter(trial.state for trial in self.trials))

    def ranked(self) -> list[Trial]:
        """Finished trials, the highest mAP first, of equal ones the earlier."""
        done = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(done, key=lambda trial: (-trial.values["map"], trial.number))

    def best(self) -> Trial:
        """The trial with the highest mAP; ValueError where none has finished."""
        if not (ranked := self.ranked()):
            raise ValueError(f"search {self.name!r}: no trial has finished: {self.counts()}")
        return ranked[0]

    def pareto(self) -> list[Trial]:
        """Finished trials that no other beats in one objective without losing in another."""
        signs = {name: 1 if OBJECTIVES[name] == "max" else -1 for name in self.objectives}

        def score(trial: Trial) -> list[float]:
            return [sign * trial.values[name] for name, sign in signs.items()]

        def beaten(mine: list[float], other: list[float]) -> bool:
            return mine != other and all(o >= m for m, o in zip(mine, other, strict=True))

        done = self.ranked()
        return [t for t in done if not any(beaten(score(t), score(other)) for other in done)]

    def importance(self) -> dict[str, float]:
        """Share of the mAP's variance by name (fANOVA), for names that every trial has.

        Empty with fewer than ten finished trials, or where none of them differ.
        """
        import optuna

        ranked = [trial for trial in self.trials if trial.state in RANKED]
        shared = set.intersection(*(set(trial.params) for trial in ranked)) if ranked else set()
        varied = len({trial.values["map"] for trial in ranked}) > 1
        if len(ranked) < ENOUGH_FOR_IMPORTANCE or not shared or not varied:
            return {}
        first = None if len(self.objectives) == 1 else self.objectives.index("map")
        target = None if first is None else lambda trial: float(trial.values[first])
        return dict(
            optuna.importance.get_param_importances(
                load_study(self.folder),
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                params=sorted(shared),
                target=target,
            )
        )


def storage_at(path: Path) -> "optuna.storages.RDBStorage":
    """Optuna's storage in a SQLite file."""
    import optuna

    return optuna.storages.RDBStorage(
        f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}
    )


def load_study(folder: Path) -> "optuna.Study":
    """The Optuna study of a search, by the search's folder."""
    import optuna

    return optuna.load_study(study_name=folder.name, storage=storage_at(folder / DATABASE))


def searches(store: Store) -> list[str]:
    """Names of the searches in a store."""
    return sorted(path.parent.name for path in (store.root / "searches").glob(f"*/{DATABASE}"))


def result(store: Store, name: str) -> SearchResult:
    """What a search has found; ValueError for an unknown name."""
    if name not in (names := searches(store)):
        raise ValueError(f"no search {name!r} in {store.root}, only {', '.join(names) or 'none'}")
    folder = store.root / "searches" / name
    return result_of(load_study(folder), folder)


def result_of(study: "optuna.Study", folder: Path) -> SearchResult:
    """What the Optuna study of a search has found."""
    objectives = tuple(study.metric_names or ())
    trials = tuple(Trial.of(trial, objectives) for trial in study.get_trials(deepcopy=False))
    protocol = study.user_attrs["declaration"]["protocol"]
    return SearchResult(study.study_name, folder, objectives, trials, protocol)


def stages_in_use(store: Store) -> set[str]:
    """Ids of the stages that the trials of any search are made of."""
    return {
        stage
        for name in searches(store)
        for trial in result(store, name).trials
        for stage in trial.stages.values()
    }
