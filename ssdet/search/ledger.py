"""Exclusive writer of a search's folder, which repairs the folder first."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdet.search.space import OBJECTIVES, Chain, Search, differences
from ssdet.search.trials import ENDED, RANKED, SearchResult, Trial, append, read, storage
from ssdet.store.base import Store
from ssdet.system.safe_files import write_json

if TYPE_CHECKING:
    import optuna


class Ledger:
    """The one writer of a search's folder: `search.json`, `trials.jsonl` and, with Optuna,
    `optuna.db`. What ends is written here first and told to Optuna then; `open_ledger` makes the
    two agree after a kill."""

    def __init__(self, search: Search, store: Store, folder: Path) -> None:
        import optuna

        self.search, self.store, self.folder = search, store, folder
        self.trials = read(folder / "trials.jsonl")
        self.storage = storage(folder)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=search.name,
            directions=[
                "maximize" if OBJECTIVES[name] == "max" else "minimize"
                for name in search.objectives
            ],
            pruner=_pruner(search.scheduler),
            load_if_exists=True,
        )

    @property
    def left(self) -> int:
        """Trials that are still to end."""
        return self.search.trials - sum(t.state in ENDED for t in self.trials.values())

    def begin(self, number: int, params: Mapping[str, Any], chain: Chain, ray_trial: str) -> None:
        """A trial was proposed."""
        again = self.study.get_trials(deepcopy=False)[number].user_attrs.get("again")
        self.keep(
            Trial(number, "running", dict(params), chain.ids, {}, {}, "", again, ray_trial,
                  time.time())
        )  # fmt: skip

    def rung(self, number: int, rung: int, value: float) -> bool:
        """Note the mAP of a validation; False where it is known already."""
        trial = self.trials[number]
        if str(rung) in trial.rungs:
            return False
        self.keep(replace(trial, rungs={**trial.rungs, str(rung): value}))
        return True

    def end(self, number: int, state: str, values: Mapping[str, float], error: str = "") -> Trial:
        """A trial came to an end."""
        trial = self.trials[number]
        seconds = time.time() - trial.started
        self.keep(replace(trial, state=state, values=dict(values), error=error, seconds=seconds))
        self.store.publish_files(self.folder)
        return self.trials[number]

    def keep(self, trial: Trial) -> None:
        """Write a trial down."""
        self.trials[trial.number] = trial
        append(self.folder / "trials.jsonl", trial)

    def result(self) -> SearchResult:
        """What has been found so far."""
        trials = tuple(self.trials.values())
        return SearchResult(self.search.name, self.folder, self.search.objectives, trials)


@contextmanager
def open_ledger(search: Search, store: Store) -> Iterator[Ledger]:
    """A search's ledger, put in order after whatever stopped it, for this process alone.

    ValueError where the name belongs to another declaration, or another process is at work on it.
    """
    import optuna

    folder = store.search_folder(search.name)
    try:
        with store.search_lock(search.name):
            store.refresh()
            _check_declaration(search, folder)
            optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for every trial
            ledger = Ledger(search, store, folder)
            _settle(ledger)
            yield ledger
            store.publish_files(folder)
    except BlockingIOError as error:
        raise ValueError(
            f"search {search.name!r}: another process is at work on {folder}: wait for it"
        ) from error


def _check_declaration(search: Search, folder: Path) -> None:
    path, declared = folder / "search.json", json.loads(json.dumps(search.declaration()))
    if not path.is_file():
        write_json(path, declared)
    elif changed := list(differences(json.loads(path.read_text()), declared)):
        raise ValueError(
            f"search {search.name!r} was declared otherwise in {folder}: {'; '.join(changed[:3])}"
            f"{' …' if changed[3:] else ''}. Give it another name, or remove the folder; trained "
            "stages stay and are shared"
        )


def _settle(ledger: Ledger) -> None:
    """Make record and Optuna agree: trials that nobody works on any more are failed, and their
    values come first among the next ones."""
    from optuna.trial import TrialState

    known = ledger.study.trials
    if len(known) <= max(ledger.trials, default=-1):
        raise ValueError(
            f"{ledger.folder}: trials.jsonl knows more trials than optuna.db: restore the "
            "database, or remove the folder; trained stages stay and are shared"
        )
    if not known:
        for values in ledger.search.first:
            ledger.study.enqueue_trial(dict(values))
    for theirs in known:
        ours = ledger.trials.get(theirs.number)
        if theirs.state == TrialState.RUNNING:
            _end_orphan(ledger, theirs, ours)
        elif theirs.state.is_finished() and (ours is None or ours.state == "running"):
            ledger.keep(_from_optuna(theirs, ours, ledger.search.objectives))


def _end_orphan(ledger: Ledger, theirs: "optuna.trial.FrozenTrial", ours: Trial | None) -> None:
    from optuna.trial import TrialState

    if ours is not None and ours.state in RANKED:
        ledger.study.tell(theirs.number, [ours.values[n] for n in ledger.search.objectives])
    elif ours is not None and ours.state in ENDED:
        state = TrialState.PRUNED if ours.state == "pruned" else TrialState.FAIL
        ledger.study.tell(theirs.number, state=state)
    else:
        # It may be that Optuna was asked and nothing was written down yet.
        stages = theirs.user_attrs.get("stages", {})
        ours = ours or Trial(theirs.number, "running", theirs.params, stages)
        ledger.keep(replace(ours, state="interrupted"))
        ledger.storage.set_trial_user_attr(theirs._trial_id, "state", "interrupted")
        ledger.study.tell(theirs.number, state=TrialState.FAIL)
        if theirs.params:
            ledger.study.enqueue_trial(theirs.params, user_attrs={"again": theirs.number})


def _from_optuna(
    theirs: "optuna.trial.FrozenTrial", ours: Trial | None, objectives: tuple[str, ...]
) -> Trial:
    """What Optuna knows of a trial whose last line was lost."""
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = theirs.user_attrs.get("state", names[theirs.state.name])
    values = dict(zip(objectives, theirs.values or (), strict=False)) if state in RANKED else {}
    stages = theirs.user_attrs.get("stages", {})
    trial = ours or Trial(theirs.number, state, theirs.params, stages)
    return replace(trial, state=state, values=values)


def _pruner(scheduler: str | None) -> "optuna.pruners.BasePruner":
    """Stopping rules decided from what is in the database, so that a resumed search goes on with
    all that was seen."""
    import optuna

    if scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    if scheduler == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.NopPruner()
