"""Optuna's sampler and pruner for searches: suggested parameters, early stopping."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from ssdet.data.loading.sampling import generator_for
from ssdet.search.ledger import Ledger
from ssdet.search.space import OBJECTIVES, Chain, Search, chain


class Proposals(OptunaSearch):
    """OptunaSearch that keeps a ledger, tells Optuna of pruned and failed trials as such, and
    never leaves a trial open because its value is not a number."""

    def __init__(self, search: Search, ledger: Ledger) -> None:
        modes = [OBJECTIVES[name] for name in search.objectives]
        single = len(modes) == 1
        self.search, self.ledger = search, ledger
        self.names: Any = search.objectives[0] if single else list(search.objectives)
        self.asked: dict[str, Any] = {}
        self.pruned: set[str] = set()
        self.stages = partial(chain, data=search.data)
        super().__init__(
            self._propose,
            metric=self.names,
            mode=modes[0] if single else modes,
            sampler=_sampler(search.seed, len(ledger.study.trials)),
            study_name=search.name,
            storage=ledger.storage,
        )

    def _propose(self, asked: Any) -> dict[str, Any]:
        found, error = Chain(()), ""
        try:
            found = self.stages(self.search.experiment(asked))
        except Exception as reason:  # the space is the user's code: this trial fails, not the rest
            error = f"{type(reason).__name__}: {reason}"
        asked.set_user_attr("stages", found.ids)
        return {"chain": found, "error": error, "asked": asked}

    def suggest(self, trial_id: str) -> Any:
        """Next trial's stages; a trial is in the ledger before it runs."""
        proposed = super().suggest(trial_id) or {}
        asked = self.asked[trial_id] = proposed["asked"]
        asked.set_user_attr("ray_trial", trial_id)
        self.ledger.begin(asked.number, asked.params, proposed["chain"], trial_id)
        return {key: proposed[key] for key in ("chain", "error")}

    def stops(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take note of a validation's mAP; whether the trial is to be stopped for it."""
        number, rung, value = self.asked[trial_id].number, result["rung"], result["map"]
        if not math.isfinite(value) or not self.ledger.rung(number, rung, value):
            return False
        super().on_trial_result(trial_id, {"map": value, TRAINING_ITERATION: rung})
        study = self.ledger.study
        if rung >= result["rungs"] or self.search.scheduler is None:
            return False  # nothing is left to be saved
        known = study.get_trials(deepcopy=False)[number]
        if study.pruner.prune(study, known):
            self.pruned.add(trial_id)
        return trial_id in self.pruned

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: `stops` has seen it."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended; one that somebody stopped from outside stays open for the next call."""
        state, values, reason = self._outcome(trial_id, result or {}, error)
        if trial_id not in self.asked or not state:
            return
        asked = self.asked.pop(trial_id)
        asked.set_user_attr("state", state)
        if reason:
            asked.set_user_attr("error", reason)
        self.ledger.end(asked.number, state, values, reason)
        super().on_trial_complete(trial_id, dict(values) or None, error=state == "failed")

    def _outcome(
        self, trial_id: str, result: Mapping[str, Any], error: bool
    ) -> tuple[str, dict[str, float], str]:
        """State, values and reason."""
        if trial_id in self.pruned:
            return "pruned", {}, ""
        if error or "error" in result:
            return "failed", {}, result.get("error", "its process died again and again")
        if "finished" not in result:
            return "", {}, ""
        values = {name: float(result.get(name, math.nan)) for name in self.search.objectives}
        if bad := [f"{name} is {v}" for name, v in values.items() if not math.isfinite(v)]:
            return "failed", {}, f"{', '.join(bad)}: expected a number"
        return (
            "diverged" if "diverged" in result else "complete",
            values,
            result.get("diverged", ""),
        )

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search is resumed from its ledger."""


class Stopping(FIFOScheduler):
    """Stops a trial at a validation where the search's rule says so."""

    def __init__(self, proposals: Proposals) -> None:
        super().__init__()
        self.proposals = proposals

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE; the stage that is stopped keeps its checkpoint."""
        stop = "rung" in result and self.proposals.stops(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


def from_tune(name: str, domain: Any) -> Any:
    """Optuna's distribution for one of Tune; ValueError for a grid or a value."""
    grid = isinstance(domain, Mapping) and "grid_search" in domain
    found = {} if grid else OptunaSearch.convert_search_space({name: domain})
    if name not in found:
        raise ValueError(
            f"space: {name!r} is {domain!r}: expected a distribution of Optuna or of Ray Tune, or "
            "a sequence of choices; a grid is a study with an arm for each of its cells"
        )
    return found[name]


def _sampler(seed: int, known: int) -> Any:
    """A seed of its own for every start: the first draws of a resumed search would else be those
    of its first trials again."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=generator_for(seed, "search", known).initial_seed() % 2**32)
