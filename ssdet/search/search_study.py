"""The Optuna study of a search, which is its only record, as the drivers of the search use it."""

import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ssdet.data.loading.sampling import generator_for
from ssdet.search.space import OBJECTIVES, Search, differences
from ssdet.search.trials import (
    DATABASE,
    ENDED,
    SearchResult,
    result_of,
    storage_at,
)
from ssdet.store.base import Store
from ssdet.store.local import live_drivers
from ssdet.system.safe_files import file_lock


class SearchStudy:
    """A search's Optuna study in the hands of one driver, a process that runs trials.

    Every trial that runs names its driver (user attribute `driver`), and a driver holds the lock
    `drivers/ID.lock` for as long as it lives: a running trial whose driver's lock is free was left
    by a kill. It goes back to Optuna's queue under its own number, with what was drawn and
    validated, so that a search that was killed has the trials of one that was not.
    """

    def __init__(self, search: Search, store: Store, folder: Path, driver: str) -> None:
        self.search, self.store, self.folder, self.driver = search, store, folder, driver
        self.storage = storage_at(folder / DATABASE)
        self.study = optuna.load_study(
            study_name=search.name,
            storage=self.storage,
            sampler=TrialSeededSampler(search.seed),
            pruner=_pruner(search.scheduler),
        )

    @property
    def left(self) -> int:
        """Trials that are still to end, those of other drivers included."""
        return self.search.trials - sum(t.state in ENDED for t in self.result().trials)

    def ask(self) -> optuna.Trial | None:
        """The next trial: one that a dead driver left, else a new one; None where all are begun."""
        with file_lock(self.folder / "lock"):
            self.requeue_abandoned()
            trials = self.study.get_trials(deepcopy=False)
            if sum(t.state != TrialState.WAITING for t in trials) >= self.search.trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr("driver", self.driver)
            return trial

    def requeue_abandoned(self) -> None:
        """Put trials whose drivers are dead back into the queue; the caller holds the lock."""
        live = live_drivers(self.folder)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("driver") not in live:
                self.storage.set_trial_state_values(self._id(trial.number), TrialState.WAITING)

    def report(self, trial: optuna.Trial, rung: int, value: float) -> None:
        """Record the mAP of a validation. (`Trial.report` refuses studies of two objectives.)"""
        self.storage.set_trial_intermediate_value(self._id(trial.number), rung, value)

    def should_prune(self, trial: optuna.Trial) -> bool:
        """Whether the pruner would stop a trial after its last validation."""
        recorded = self.study.get_trials(deepcopy=False)[trial.number]
        return self.study.pruner.prune(self.study, recorded)

    def end(
        self, trial: optuna.Trial, state: TrialState, values: list[float] | None, **notes: str
    ) -> None:
        """Record how a trial ended, with user attributes `notes` that say why."""
        for name, value in notes.items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, values, state)
        self.store.publish_files(self.folder / DATABASE)

    def result(self) -> SearchResult:
        """What the search has found so far."""
        return result_of(self.study, self.folder)

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.search.name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)


@contextmanager
def open_study(search: Search, store: Store) -> Iterator[SearchStudy]:
    """A search's Optuna study, created where there is none, for one more driver.

    In a folder several drivers may share a search; a remote store takes one at a time. ValueError
    where the name belongs to another declaration, or a remote store's search has a driver.
    """
    folder, driver = store.search_folder(search.name), uuid.uuid4().hex
    (folder / "drivers").mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for every trial
    try:
        with store.drive_search(search.name), _driver(folder, driver):
            with file_lock(folder / "lock"):
                _remove_dead_drivers(folder)
                store.refresh()
                if not (folder / DATABASE).is_file():
                    _create(search, folder)
                record = SearchStudy(search, store, folder, driver)
                _check_declaration(record)
                record.requeue_abandoned()
            yield record
            store.publish_files(folder / DATABASE)
    except BlockingIOError as error:
        raise ValueError(
            f"search {search.name!r}: another process is at work on it in {store.uri}: wait for it"
        ) from error


@contextmanager
def _driver(folder: Path, driver: str) -> Iterator[None]:
    """Show that a driver lives while the block lasts."""
    lock = folder / "drivers" / f"{driver}.lock"
    with file_lock(lock):
        try:
            yield
        finally:
            lock.unlink()


def _remove_dead_drivers(folder: Path) -> None:
    """Remove the locks and Tune's notes of drivers that were killed."""
    live = live_drivers(folder)
    for path in (folder / "drivers").iterdir():
        if path.stem not in live:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _create(search: Search, folder: Path) -> None:
    """Create the study's file, which is there with all that the study begins with or not at all."""
    for path in folder.glob(f"{DATABASE}.partial*"):  # a kill may have left a SQLite journal, too
        path.unlink()
    work = folder / f"{DATABASE}.partial"
    storage = storage_at(work)
    directions = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    study = optuna.create_study(
        storage=storage,
        study_name=search.name,
        directions=[directions[OBJECTIVES[name]] for name in search.objectives],
    )
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(list(search.objectives))
    study.set_user_attr("declaration", search.declaration())
    for values in search.first:
        study.enqueue_trial(dict(values))
    storage.engine.dispose()
    os.replace(work, folder / DATABASE)


def _check_declaration(record: SearchStudy) -> None:
    declared = json.loads(json.dumps(record.search.declaration()))
    if changed := list(differences(record.study.user_attrs["declaration"], declared)):
        raise ValueError(
            f"search {record.search.name!r} was declared otherwise in {record.folder}: "
            f"{'; '.join(changed[:3])}{' …' if changed[3:] else ''}. Give it another name, or "
            "remove the folder; trained stages stay and are shared"
        )


class TrialSeededSampler(BaseSampler):
    """Optuna's TPE, seeded anew for every trial by the search's seed and the trial's number.

    What is drawn for a trial follows from these and the trials that ended before it, not from how
    many draws this process has made: a search that is killed proposes what it would have, and no
    two drivers draw the same numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Names that are drawn jointly."""
        return self._tpe(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw these names jointly."""
        return self._tpe(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one name, whichever were drawn before it."""
        tpe = self._tpe(trial, param_name)
        return tpe.sample_independent(study, trial, param_name, param_distribution)

    def _tpe(self, trial: FrozenTrial, *name: str) -> TPESampler:
        seed = generator_for(self.seed, "search", trial.number, *name).initial_seed() % 2**32
        return TPESampler(seed=seed)


class HalvingPruner(BasePruner):
    """Asynchronous successive halving (Li et al., 2020): after validations 1, 2, 4 … a trial goes
    on if it is among the better half of those that got there.

    It decides from the recorded validations alone. Optuna's `SuccessiveHalvingPruner` notes in the
    trial that a validation was judged, not what came of it: after a kill in between, a trial that
    was to be stopped would go on.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial (of a study that maximises) after its last validation."""
        rung = trial.last_step
        if rung is None or rung & (rung - 1):
            return False
        reached = [
            other.intermediate_values[rung]
            for other in study.get_trials(deepcopy=False)
            if rung in other.intermediate_values
        ]
        better = sorted(reached, reverse=True)[: max(1, len(reached) // 2)]
        return trial.intermediate_values[rung] < better[-1]


def _pruner(scheduler: str | None) -> BasePruner:
    """Stopping rules decided from what is in the database, so that a resumed search goes on with
    all that was seen."""
    if scheduler == "asha":
        return HalvingPruner()
    return MedianPruner() if scheduler == "median" else NopPruner()
