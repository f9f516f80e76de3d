"""The trials of a search: their record in the store, beside Optuna's own."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdet.search.space import OBJECTIVES
from ssdet.store.base import Store

if TYPE_CHECKING:
    import optuna

ENDED = ("complete", "pruned", "diverged", "failed")
"""States that count towards a search's trials. `running` and `interrupted` (its driver died; its
values are tried again under another number) do not."""

RANKED = ("complete", "diverged")
ENOUGH_FOR_IMPORTANCE = 10


@dataclass(frozen=True)
class Trial:
    """One trial as far as it got: a line of `trials.jsonl`."""

    number: int
    """Its number in the Optuna study."""
    state: str
    params: Mapping[str, Any]
    stages: Mapping[str, str]
    """Stage id by kind: the run."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By objective; a diverged training has mAP 0, the worst there is."""
    rungs: Mapping[str, float] = field(default_factory=dict)
    """mAP at each validation of fine-tuning, counted from 1."""
    error: str = ""
    again: int | None = None
    """The interrupted trial whose values are tried again."""
    ray_trial: str = ""
    started: float = 0.0
    """Epoch seconds."""
    seconds: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a search has found so far."""

    name: str
    folder: Path
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]

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
        study = optuna.load_study(study_name=self.name, storage=storage(self.folder))
        first = None if len(self.objectives) == 1 else self.objectives.index("map")
        target = None if first is None else lambda trial: float(trial.values[first])
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=sorted(shared), target=target
        )
        return dict(found)


def storage(folder: Path) -> "optuna.storages.RDBStorage":
    """Optuna's storage of a search; `optuna-dashboard` opens the same URL."""
    import optuna

    return optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'optuna.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )


def searches(store: Store) -> list[str]:
    """Names of the searches in a store."""
    return sorted(path.parent.name for path in (store.root / "searches").glob("*/search.json"))


def result(store: Store, name: str) -> SearchResult:
    """What a search has found; ValueError for an unknown name."""
    folder = store.root / "searches" / name
    if name not in (known := searches(store)):
        raise ValueError(f"no search {name!r} in {store.root}, only {', '.join(known) or 'none'}")
    declared = json.loads((folder / "search.json").read_text())
    trials = tuple(read(folder / "trials.jsonl").values())
    return SearchResult(name, folder, tuple(declared["objectives"]), trials)


def stages_in_use(store: Store) -> set[str]:
    """Ids of the stages that the trials of any search are made of."""
    return {
        stage
        for name in searches(store)
        for trial in result(store, name).trials
        for stage in trial.stages.values()
    }


def read(path: Path) -> dict[int, Trial]:
    """Trials by number; the last line of a number counts."""
    found: dict[int, Trial] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut short by a kill; Optuna knows the trial
        found[values["number"]] = Trial(**values)
    return dict(sorted(found.items()))


def append(path: Path, trial: Trial) -> None:
    """Add a line, in one write."""
    with open(path, "a+b") as file:
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        line = json.dumps(asdict(trial)).encode() + b"\n"
        file.write(b"\n" + line if torn else line)
        file.flush()
        os.fsync(file.fileno())
