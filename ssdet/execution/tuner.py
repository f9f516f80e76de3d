"""A plan's stages as trials of Ray Tune: a searcher that proposes what is ready."""

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

LOOK_AGAIN = 2.0
"""Seconds between two looks at a stage that another process works on."""


class Listener(Protocol):
    """Who wants to know what stages report."""

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage reported: its end ("finished"), an error, or a step."""


class GraphSearch(Searcher):
    """Proposes stages whose parents are done, in the plan's order.

    A stage that another process works on is looked at again later, and not run if that one
    finishes it. `errors` maps stages to why they failed; what depends on them is not run.
    `budget`: device hours after which nothing more is started; what runs comes to its end.
    `listener` is told of what others finished.
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
        self._looked: dict[str, float] = {}

    def suggest(self, trial_id: str) -> Any:
        """Next stage as a trial's configuration; None while all that is left has to wait."""
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
        """Whether another process runs the stage, looked up every few seconds at most; what it
        has finished is waited for no more."""
        now = time.monotonic()
        if now - self._looked.get(name, -LOOK_AGAIN) < LOOK_AGAIN:
            return name in self._looked
        if self._store.result(name) is not None:
            del self._waiting[name]
            if self._listener is not None:
                self._listener.update(name, {"finished": True})
            return True
        if self._store.busy(name):
            self._looked[name] = now
            return True
        self._looked.pop(name, None)
        return False

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of a stage's end; a failed one takes along what depends on it."""
        name = self._running.pop(trial_id)
        if self.budget is not None:
            self.budget.stop(name)
        if (result or {}).get("elsewhere"):
            self._looked[name] = time.monotonic()
            self._waiting[name] = self._stages[name]
            return
        reason = (result or {}).get("error")
        if error or result is None or reason:
            self._fail(name, reason or self._dead(name))

    def _dead(self, name: str) -> str:
        """Note what nobody was left to note: that Ray gave a stage up."""
        why = "its process died again and again: killed, out of memory, or its machine went away"
        note_error(self._store.folder(name), why + "\n")
        return why

    def _fail(self, name: str, reason: str) -> None:
        self.errors[name] = reason
        for child, stage in list(self._waiting.items()):
            if any(parent.id == name for parent in stage.parents):
                del self._waiting[child]
                self._fail(child, f"needs {name}, which failed")

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher to a file for restoring, which is never done: see the store."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the store says what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a study is resumed from its store."""


class ProgressCallback(tune.Callback):
    """Passes on what trials report."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks to a file for restoring, which is never done: see the store."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A stage begins; scoring reports nothing before its end."""
        for listener in self.listeners:
            listener.update(trial.config["stage"], {})

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A stage reported progress, its end, or its failure."""
        for listener in self.listeners:
            listener.update(trial.config["stage"], result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A stage's process died for good."""
        for listener in self.listeners:
            listener.update(trial.config["stage"], {"error": "its process died"})


class PreemptionRetries(tune.Callback):
    """Retry preempted trials without counting a failure; at most
    `MAX_PREEMPTION_RESTARTS` times."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._moves: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks to a file for restoring, which is never done: see the store."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A trial reported, perhaps that its process ends now."""
        if "preempted" not in result:
            return
        self.tell(f"{trial.config.get('stage', trial.trial_id)}: {result['preempted']}")
        self._moves[trial.trial_id] += 1
        if self._moves[trial.trial_id] <= MAX_PREEMPTION_RESTARTS:
            trial.max_failures += 1


def trackers(names: Sequence[str], study: str) -> list[tune.Callback]:
    """Ray's own loggers for MLflow and Weights & Biases; each stage becomes a run of theirs.

    They read their usual environment variables. ValueError for an unknown name, ImportError with
    the way out where the tracker's package is not installed.
    """
    made: list[tune.Callback] = []
    for name in names:
        if name == "mlflow":
            _demand("mlflow", name)
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            made.append(MLflowLoggerCallback(experiment_name=study))
        elif name == "wandb":
            _demand("wandb", name)
            from ray.air.integrations.wandb import WandbLoggerCallback

            made.append(WandbLoggerCallback(project="ssdet", group=study))
        else:
            raise ValueError(f"log {name!r}: choose mlflow or wandb")
    return made


def _demand(package: str, name: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f"log {name!r} needs its package: pip install {package}")
