"""Runs a search: trials of Ray Tune, proposed by its OptunaSearch, each a chain of stages."""

import os
import shutil
import traceback
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray import tune

from ssdet.execution.executor import RayExecutor
from ssdet.execution.runner import TRAINING, fill_caches, quiet_tune, worker_options
from ssdet.execution.searcher import OptunaSearcher, PrunerScheduler
from ssdet.execution.session import Resources, connect, plan_resources
from ssdet.execution.tuner import PreemptionRetries
from ssdet.search.progress import SearchConsole
from ssdet.search.search_study import SearchStudy, open_study
from ssdet.search.space import Chain, Search
from ssdet.search.trials import SearchResult
from ssdet.stages.job import Job, with_rungs
from ssdet.stages.kinds import run_stage
from ssdet.store.base import Store
from ssdet.studies.data import Data, check_decoders
from ssdet.studies.graph.lineage import experiment_of, network_stage
from ssdet.studies.network_costs import macs
from ssdet.studies.presets import with_defaults
from ssdet.studies.scoring import Scoring, check_protocol
from ssdet.studies.study import Arm, Study
from ssdet.training.context import Report
from ssdet.training.preemption import Preempted

Evaluate = Callable[[Chain, Report], Mapping[str, Any]]
"""Values of a trial's objectives, and the reason as `diverged` where training came to nothing. It
may report `rung` (from 1), `rungs` (how many) and `map`."""


def run_search(
    search: Search,
    store: str | os.PathLike[str] | Store,
    address: str | None = None,
    workers: int | str = 1,
    gpus_per_worker: float = 0,
    concurrent: int | None = None,
    loaders: int = 0,
    checkpoint_every: float = 20.0,
    evaluate: Evaluate | None = None,
    decoders: int = 0,
) -> SearchResult:
    """Bring a search to its number of trials, and return what it found.

    The same call after a crash goes on: trials that ended are kept, those that were under way run
    again under their numbers, and find their stages where they stopped. The same call while
    another one runs shares the search, and ends when all trials have; of a remote store ValueError
    is raised instead. A trial that fails is recorded and counted, and stops no other. Raises
    ValueError for a name that belongs to another declaration, data without a validation split or
    that the search's protocol cannot score, or a cluster that cannot hold one trial. `evaluate`
    takes the place of training.
    """
    store = Store.open(store)
    study = with_defaults(Study(search.name, (Arm("base"),), base=search.base, data=search.data))
    search = replace(search, base=study.base, data=study.data)
    check_decoders(study.data, loaders, decoders)
    if not study.data.split("downstream", "val").videos:
        raise ValueError(
            f"search {search.name!r}: the untrimmed videos have no validation split ('val') to "
            "score trials on: give some of the training videos that split"
        )
    check_protocol(search.protocol, study.data, "val")
    with open_study(search, store) as record:
        lines = SearchConsole(search, record.result().trials)
        if record.left <= 0:
            return record.result()
        if evaluate is None:
            fill_caches(search.data, lines.count)
        with connect(address) as session:
            cluster = session.capacity
            resources = plan_resources(
                workers, gpus_per_worker, concurrent, cluster=cluster, decoders=decoders
            )
            lines.start(session.summary(), resources.concurrent)
            settings = TrialSettings(
                store.uri, search.data, resources, loaders, checkpoint_every,
                "macs" in search.objectives, search.protocol,
            )  # fmt: skip
            _fit(record, resources, evaluate or partial(run_chain, settings), lines)
        return record.result()


@dataclass(frozen=True)
class TrialSettings:
    """How trials run their stages."""

    store: str
    data: Data
    resources: Resources
    loaders: int
    checkpoint_every: float
    macs: bool
    """Whether multiply-adds are an objective."""
    protocol: str


def run_chain(settings: TrialSettings, stages: Chain, report: Report) -> dict[str, Any]:
    """Run the stages of a trial, or take what the store has of them, and return its values.

    A training that diverged has mAP 0, the worst there is, so that the sampler keeps away.
    """
    costs = cost(settings, stages)
    try:
        return {"map": _map(settings, stages, report), **costs}
    except FloatingPointError as error:
        return {"map": 0.0, **costs, "diverged": str(error)}


def _map(settings: TrialSettings, stages: Chain, report: Report) -> float:
    report = each_validation_once(report)
    last = network_stage(stages.stages[-1])
    for stage in stages.stages:
        training = stage.kind in TRAINING
        job = Job(
            stage,
            settings.store,
            settings.data,
            **worker_options(stage, settings.resources),
            loaders=settings.loaders,
            checkpoint_every=settings.checkpoint_every,
            protocol=settings.protocol,
            executor=RayExecutor(),
            ranked=stage.id == last.id,
        )
        alone = training or not settings.resources.drives
        report_validations(job, report)
        run_stage(job, report) if alone else _elsewhere(job)
        report_validations(job, report)
    scoring = Scoring.of(Store.open(settings.store), settings.data, settings.protocol)
    return scoring.value(stages.stages[-1].id, "val")


def report_validations(job: Job, report: Report) -> None:
    """Report the validations that the store has of a training by which trials are compared: those
    before a kill, which the search may not have seen, and those of a stage that was done before."""
    if job.ranked:
        for step, score in Store.open(job.store).validations(job.stage.id).items():
            with_rungs(job, report)({"step": step, "validation": score})


def each_validation_once(report: Report) -> Report:
    """A report that leaves out validations (`rung`) that it has reported already."""
    reported: set[float] = set()

    def once(metrics: Mapping[str, float]) -> None:
        if metrics.get("rung") not in reported:
            report(metrics)
        reported.update([metrics["rung"]] if "rung" in metrics else [])

    return once


def _elsewhere(job: Job) -> None:
    """Run a stage outside the trial's process, which has nothing to compute with where it only
    drives several workers; they have ended, so there is room."""
    from ray import get, remote

    asked = job.worker_resources
    options = {"num_cpus": asked["CPU"], "num_gpus": asked.get("GPU", 0)}
    # Else the task would have to fit into the trial's own share.
    task = remote(run_stage).options(scheduling_strategy="DEFAULT", **options)
    get(task.remote(job))


def cost(settings: TrialSettings, stages: Chain) -> dict[str, float]:
    """Multiply-adds of all that scores a clip, where they are an objective."""
    experiment = experiment_of(stages.stages[-1]) if settings.macs else None
    if experiment is None:
        return {}
    return {"macs": float(macs(experiment, settings.data.manifests["downstream"].num_classes))}


def trial(config: Mapping[str, Any], evaluate: Evaluate) -> None:
    """Ray Tune's trainable: one trial. What its own code raises is reported, not raised: see
    `ssdet.execution.runner.trial`."""
    import torch

    if config["error"]:
        tune.report({"error": config["error"]})
        return
    try:
        values = evaluate(config["chain"], lambda metrics: tune.report(dict(metrics)))
    except Preempted as error:
        tune.report({"preempted": str(error)})
        os._exit(1)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        tune.report({"error": reason})
        if torch.cuda.is_initialized():
            os._exit(1)  # a broken CUDA context would fail every trial that this process gets next
    else:
        tune.report({"finished": True, **values})


def _fit(
    record: SearchStudy, resources: Resources, evaluate: Evaluate, lines: SearchConsole
) -> None:
    quiet_tune(TUNE_DISABLE_STRICT_METRIC_CHECKING="1")
    searcher = OptunaSearcher(record, lines)
    asked = tune.PlacementGroupFactory([resources.trial])
    # Tune's notes for a resume that is never asked for; a killed driver leaves its own.
    notes = record.folder / "drivers" / record.driver
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, evaluate=evaluate), asked),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=PrunerScheduler(searcher),
            num_samples=-1,  # the searcher says when it is finished
            max_concurrent_trials=resources.concurrent,
            # A trial that only drives workers is not at an end before they are.
            reuse_actors=not resources.drives,
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(notes),
            failure_config=tune.FailureConfig(max_failures=3),
            callbacks=[SearchProgressCallback(searcher, lines), PreemptionRetries(lines.line)],
            verbose=0,
        ),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        tuner.fit()
    shutil.rmtree(notes, ignore_errors=True)
    lines.ended(record.result().trials)
    lines.stop()
    if record.left > 0:
        raise KeyboardInterrupt  # Tune stops quietly


class SearchProgressCallback(tune.Callback):
    """Shows the user the steps of training that trials report."""

    def __init__(self, searcher: OptunaSearcher, lines: SearchConsole) -> None:
        self.searcher, self.lines = searcher, lines

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks to a file for restoring, which is never done."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A trial reported, perhaps a step."""
        if "loss" in result and trial.trial_id in self.searcher.trials:
            self.lines.step(self.searcher.trials[trial.trial_id].number, result)
