"""Optuna as Ray Tune's searcher and scheduler: proposed trials, early stopping."""

import math
import time
from collections.abc import Mapping
from typing import Any

from optuna import Trial
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ssdet.search.progress import SearchConsole
from ssdet.search.search_study import SearchStudy
from ssdet.search.space import Chain, chain

LOOK_AGAIN = 2.0
"""Seconds between two looks at trials that other drivers run."""


class OptunaSearcher(Searcher):
    """Proposes the trials of an Optuna study and records in it what becomes of them.

    Ray's `OptunaSearch` records a trial that was stopped early as complete or not at all, has none
    of two objectives' validations, and cannot share a study. `lines` are told of trials that end.
    """

    def __init__(self, record: SearchStudy, lines: SearchConsole | None = None) -> None:
        super().__init__()
        self.record, self.search, self.lines = record, record.search, lines
        self.trials: dict[str, Trial] = {}
        """Optuna trials that run, by Ray trial."""
        self.pruned: set[str] = set()
        self._next_look = 0.0

    def suggest(self, trial_id: str) -> Any:
        """The next trial's stages; None while all that is left is run by others."""
        if time.monotonic() < self._next_look:
            return None
        trial = self.record.ask()
        if trial is None:
            self._next_look = time.monotonic() + LOOK_AGAIN
            return None if self.record.left > 0 else Searcher.FINISHED
        self.trials[trial_id] = trial
        proposed, error = Chain(()), ""
        try:
            proposed = chain(self.search.experiment(trial), self.search.data)
        except Exception as reason:  # the space is the user's code: this trial fails, not the rest
            error = f"{type(reason).__name__}: {reason}"
        trial.set_user_attr("stages", proposed.ids)
        trial.set_user_attr("ray_trial", trial_id)
        return {"chain": proposed, "error": error}

    def should_stop(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Record a validation's mAP; whether the trial is to be stopped for it."""
        trial, rung, value = self.trials[trial_id], result["rung"], result["map"]
        if not math.isfinite(value):
            return False
        self.record.report(trial, rung, value)
        last = rung >= result["rungs"]  # nothing is left to be saved
        if last or self.search.scheduler is None or rung <= trial.user_attrs.get("passed", 0):
            return False
        if self.record.should_prune(trial):
            self.pruned.add(trial_id)
            return True
        trial.set_user_attr("passed", rung)
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler has seen it."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended; one that somebody stopped from outside stays open for the next call."""
        state, values, notes = self._outcome(trial_id, result or {}, error)
        if trial_id not in self.trials or state is None:
            return
        self.record.end(self.trials.pop(trial_id), state, values, **notes)
        self._next_look = 0.0
        if self.lines is not None:
            self.lines.ended(self.record.result().trials)

    def _outcome(
        self, trial_id: str, result: Mapping[str, Any], error: bool
    ) -> tuple[TrialState | None, list[float] | None, dict[str, str]]:
        """State, values of the objectives, and why it failed or diverged."""
        if trial_id in self.pruned:
            return TrialState.PRUNED, None, {}
        if error or "error" in result:
            reason = result.get("error", "its process died again and again")
            return TrialState.FAIL, None, {"error": reason}
        if "finished" not in result:
            return None, None, {}
        values = {name: float(result.get(name, math.nan)) for name in self.search.objectives}
        if bad := [f"{name} is {v}" for name, v in values.items() if not math.isfinite(v)]:
            return TrialState.FAIL, None, {"error": f"{', '.join(bad)}: expected a number"}
        notes = {"diverged": result["diverged"]} if "diverged" in result else {}
        return TrialState.COMPLETE, list(values.values()), notes

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher to a file for restoring, which is never done."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: Optuna has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search is resumed from its Optuna study."""


class PrunerScheduler(FIFOScheduler):
    """Stops a trial at a validation where the study's pruner says so."""

    def __init__(self, searcher: OptunaSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE; the stage that is stopped keeps its checkpoint."""
        stop = "rung" in result and self.searcher.should_stop(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
