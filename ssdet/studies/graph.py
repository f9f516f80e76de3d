"""A plan's stages as trials of Ray Tune: a searcher that proposes what is ready."""

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from ssdet.studies.plan import Stage
from ssdet.studies.progress import Progress


class GraphSearch(Searcher):
    """Proposes stages whose parents are done, in the plan's order.

    `errors` maps stages to why they failed; what depends on them is not run.
    """

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}
        self._waiting = dict(stages)
        self._running: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """Next stage as a trial's configuration; None while all that is left has to wait."""
        open_stages = {*self._waiting, *self._running.values()}
        for name, stage in self._waiting.items():
            if not any(parent.id in open_stages for parent in stage.parents):
                del self._waiting[name]
                self._running[trial_id] = name
                return {"stage": name}
        return None if self._running else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of a stage's end; a failed one takes along what depends on it."""
        name = self._running.pop(trial_id)
        reason = (result or {}).get("error")
        if error or result is None or reason:
            self._fail(name, reason or "its process died again and again")

    def _fail(self, name: str, reason: str) -> None:
        self.errors[name] = reason
        for child, stage in list(self._waiting.items()):
            if any(parent.id == name for parent in stage.parents):
                del self._waiting[child]
                self._fail(child, f"needs {name}, which failed")

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the store says what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a study is resumed from its store."""


class ProgressCallback(tune.Callback):
    """Tells the user what trials report."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks to a file for restoring, which is never done: see the store."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A stage reported progress, its end, or its failure."""
        self.progress.update(trial.config["stage"], result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A stage's process died for good."""
        self.progress.update(trial.config["stage"], {"error": "its process died"})
