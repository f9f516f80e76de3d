"""Ray Tune searcher that runs the stages of a plan as trials, and callbacks for their reports."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from ssdet.execution.planning.budget import Budget
from ssdet.execution.workers import MAX_PREEMPTION_RESTARTS
from ssdet.store.base import Store, note_error
from ssdet.studies.graph.identity import Stage

POLL_SECONDS = 2.0
"""Seconds between two checks of a stage that another process runs."""


class Listener(Protocol):
    """Receiver of the reports of stages."""

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage reported: its end ("finished"), an error, or a step."""


class GraphSearch(Searcher):
    """Proposes stages whose parents are done, in the plan's order.

    A stage that another process runs is checked again later, and skipped if that process finishes
    it. `errors` maps failed stages to the reasons; stages that depend on them are not run.
    `budget`: device hours after which no stage is started; running ones are finished. `listener`
    also gets the stages that other processes finished.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        store: Store,
        budget: Budget | None = None,
        listener: Listener | None = None,
    ) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}
        self.budget = budget
        self._store, self._listener = store, listener
        self._stages = dict(stages)
        self._waiting = dict(stages)
        self._running: dict[str, str] = {}
        self._checked: dict[str, float] = {}

    def suggest(self, trial_id: str) -> Any:
        """Next stage as a trial's configuration; None while all remaining stages have to wait."""
        if self.budget is not None and self.budget.spent():
            return None if self._running else Searcher.FINISHED
        for name, stage in list(self._waiting.items()):
            open_stages = {*self._waiting, *self._running.values()}
            if any(parent.id in open_stages for parent in stage.parents) or self._elsewhere(name):
                continue
            del self._waiting[name]
            self._running[trial_id] = name
            if self.budget is not None:
                self.budget.start(stage)
            return {"stage": name}
        return None if self._running or self._waiting else Searcher.FINISHED

    def _elsewhere(self, name: str) -> bool:
        """Whether another process runs the stage, or has finished it; checked every
        `POLL_SECONDS` at most."""
        now = time.monotonic()
        if now - self._checked.get(name, -POLL_SECONDS) < POLL_SECONDS:
            return name in self._checked
        if self._store.result(name) is not None:
            del self._waiting[name]
            if self._listener is not None:
                self._listener.update(name, {"finished": True})
            return True
        if self._store.busy(name):
            self._checked[name] = now
            return True
        self._checked.pop(name, None)
        return False

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end of a stage; the stages that depend on a failed one fail too."""
        name = self._running.pop(trial_id)
        if self.budget is not None:
            self.budget.stop(name)
        if (result or {}).get("elsewhere"):
            self._checked[name] = time.monotonic()
            self._waiting[name] = self._stages[name]
            return
        reason = (result or {}).get("error")
        if error or result is None or reason:
            self._fail(name, reason or self._record_death(name))

    def _record_death(self, name: str) -> str:
        """Write the reason to the folder of a stage whose process died for good; return it."""
        reason = "its process died again and again: killed, out of memory, or its machine went away"
        note_error(self._store.folder(name), reason + "\n")
        return reason

    def _fail(self, name: str, reason: str) -> None:
        self.errors[name] = reason
        for child, stage in list(self._waiting.items()):
            if any(parent.id == name for parent in stage.parents):
                del self._waiting[child]
                self._fail(child, f"needs {name}, which failed")

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its searcher, but a study resumes from its store."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a study resumes from its store."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a study resumes from its store."""


class StatelessCallback(tune.Callback):
    """A callback without state: Tune pickles its callbacks, but a study resumes from its store."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class ProgressCallback(StatelessCallback):
    """Passes the reports of trials to listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def _update(self, trial: Any, metrics: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.update(trial.config["stage"], metrics)

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A stage begins; scoring reports nothing before its end."""
        self._update(trial, {})

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A stage reported progress, its end, or its failure."""
        self._update(trial, result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A stage's process died for good."""
        self._update(trial, {"error": "its process died"})


class PreemptionRetries(StatelessCallback):
    """Retry preempted trials without counting a failure; at most `MAX_PREEMPTION_RESTARTS` times.

    log: called with the reason of each preemption.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self._retries: Counter[str] = Counter()

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A trial reported, perhaps that its process ends because of preemption."""
        if "preempted" not in result:
            return
        self.log(f"{trial.config.get('stage', trial.trial_id)}: {result['preempted']}")
        self._retries[trial.trial_id] += 1
        if self._retries[trial.trial_id] <= MAX_PREEMPTION_RESTARTS:
            trial.max_failures += 1


def trackers(names: Sequence[str], study: str) -> list[tune.Callback]:
    """Ray's own loggers for MLflow and Weights & Biases, with one run per stage.

    They read their usual environment variables. ValueError for an unknown name, ImportError with
    the way out where the tracker's package is not installed.
    """
    callbacks: list[tune.Callback] = []
    for name in names:
        if name not in ("mlflow", "wandb"):
            raise ValueError(f"log {name!r}: choose mlflow or wandb")
        if find_spec(name) is None:
            raise ImportError(f"log {name!r} needs its package: pip install {name}")
        if name == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            callbacks.append(MLflowLoggerCallback(experiment_name=study))
        else:
            from ray.air.integrations.wandb import WandbLoggerCallback

            callbacks.append(WandbLoggerCallback(project="ssdet", group=study))
    return callbacks
