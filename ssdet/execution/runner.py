"""Running a study with Ray Tune: each stage as soon as its parents are done."""

import logging
import os
import shutil
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ssdet.execution.errors import BudgetSpent, StagesFailed
from ssdet.execution.planning.budget import TRAINING, Budget
from ssdet.execution.progress import Progress
from ssdet.execution.session import Resources, Workers, connect, plan_resources
from ssdet.store.base import Store, note_error
from ssdet.studies.data import ROLES, Data, check_decoders
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.plan import Plan, plan
from ssdet.studies.graph.record import write_record
from ssdet.studies.study import Study
from ssdet.training.loop import shares
from ssdet.training.preemption import Preempted

if TYPE_CHECKING:
    from ssdet.execution.tuner import GraphSearch
    from ssdet.stages.job import Job


def run(
    study: Study,
    store: str | os.PathLike[str] | Store,
    address: str | None = None,
    workers: int | str = 1,
    gpus_per_worker: float = 0,
    concurrent: int | None = None,
    loaders: int = 0,
    checkpoint_every: float = 20.0,
    budget: float | None = None,
    dashboard: bool = False,
    log: Sequence[str] = (),
    decoders: int = 0,
) -> Plan:
    """Run every stage of a study, and return the plan whose results are in the store.

    Finished stages are not run again and stopped stages resume, so the same call after a crash
    completes the study. Raises StagesFailed after all other stages have run; BudgetSpent where
    `budget` (GPU-hours of this call, core-hours without GPUs) ended it sooner; ValueError where one
    stage does not fit on the cluster. With `workers` "2:8" each training has as many as fit, and
    restarts when that number grows. `decoders`: decoding tasks of Ray per worker, in place of
    `loaders`. `dashboard` is for an own Ray; `log` names trackers of stages: "mlflow", "wandb".
    """
    store = store if isinstance(store, Store) else Store.open(store)
    planned, sizes = plan(study), Workers.of(workers)
    study = planned.study
    check_decoders(study.data, loaders, decoders)
    for stage in planned.stages.values():
        if stage.kind in TRAINING:
            shares(stage.recipe, sizes.low, sizes.high)
    store.refresh()
    write_record(store, planned)
    todo = {name: stage for name, stage in planned.stages.items() if store.result(name) is None}
    progress = Progress(planned, done=len(planned.stages) - len(todo))
    if not todo:
        return planned
    fill_caches(study.data, progress.count)
    from ssdet.execution.telemetry import Telemetry
    from ssdet.execution.tuner import (
        GraphSearch,
        Listener,
        PreemptionRetries,
        ProgressCallback,
        trackers,
    )

    with connect(address, dashboard=dashboard) as session:
        resources = plan_resources(
            workers, gpus_per_worker, concurrent, cluster=session.capacity, decoders=decoders
        )
        progress.start(session.summary(), resources)
        settings = {"loaders": loaders, "checkpoint_every": checkpoint_every}
        limit = None if budget is None else Budget(budget, resources.workers, gpus_per_worker)
        telemetry = Telemetry(planned, store.root / "tensorboard", bool(session.dashboard))
        listeners: list[Listener] = [progress, telemetry]
        if limit is not None:
            listeners.append(limit)
        callbacks: list[Any] = [ProgressCallback(*listeners), PreemptionRetries(progress.line)]
        callbacks += trackers(log, study.name)
        try:
            search = GraphSearch(todo, store, limit, progress)
            errors = _run_graph(search, todo, store, study, resources, settings, callbacks)
        finally:
            telemetry.close()
    progress.stop()
    if errors:
        raise StagesFailed(errors)
    return planned


def quiet_tune(**more: str) -> None:
    """Turn off Tune's console output and log files, which `Progress` and `metrics.jsonl` replace,
    and its warning about each trial without such a file; set `more` environment variables."""
    variables = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    for name, value in (variables | more).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def fill_caches(data: Data, count: Callable[[str, int, int], None]) -> None:
    """Decode the videos of both roles if the data are cached; calls count(title, done, total)."""
    for role in ROLES:
        data.reader(role, partial(count, f"decode {role}"))


def _run_graph(
    search: "GraphSearch",
    todo: Mapping[str, Stage],
    store: Store,
    study: Study,
    resources: Resources,
    settings: Mapping[str, Any],
    callbacks: list[Any],
) -> dict[str, str]:
    from ray import tune

    jobs = _jobs(todo, store, study, resources, settings)
    quiet_tune()
    name = f"{study.name}-{uuid.uuid4().hex}"

    def bundles(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([_trial_resources(config, resources)])

    trainable = tune.with_resources(tune.with_parameters(trial, jobs=jobs), bundles)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=-1,  # until the searcher is finished
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(store.root / "ray"),
            failure_config=tune.FailureConfig(max_failures=3),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    tuner.fit()
    store.refresh()
    # Studies resume from the store, so Tune's own state is deleted.
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    left = [s for s in todo.keys() - search.errors.keys() if store.result(s) is None]
    if left and search.budget is not None and search.budget.spent():
        raise BudgetSpent(
            f"{search.budget} spent, {len(left)} stages are left: the same "
            "command with another --budget goes on from here"
        )
    if left:
        raise KeyboardInterrupt  # which Tune does not pass on
    return search.errors


def _jobs(
    todo: Mapping[str, Stage],
    store: Store,
    study: Study,
    resources: Resources,
    settings: Mapping[str, Any],
) -> dict[str, "Job"]:
    """Jobs by stage, each with all that a node needs to run it."""
    from ssdet.execution.executor import RayExecutor
    from ssdet.stages.job import Job

    return {
        name: Job(
            stage,
            store.uri,
            study.data,
            executor=RayExecutor(),
            **worker_options(stage, resources),
            **settings,
        )
        for name, stage in todo.items()
    }


def worker_options(stage: Stage, resources: Resources) -> dict[str, Any]:
    """Fields of a stage's job: number and resources of its workers."""
    values: dict[str, Any] = {"worker_resources": resources.worker}
    if stage.kind in TRAINING:
        values |= {"workers": resources.workers, "decoders": resources.decoders}
        if (sizes := resources.elastic) is not None:
            values["sizes"] = tuple(shares(stage.recipe, sizes.low, sizes.high))
    return values


def _trial_resources(config: Mapping[str, Any], resources: Resources) -> dict[str, float]:
    """Resources of a trial's own process: a training of several workers only waits for them, any
    other stage runs in it, an ensemble without a GPU."""
    if str(config["stage"]).startswith("ensemble"):
        return {"CPU": resources.cpus_per_worker}
    alone = not str(config["stage"]).startswith(TRAINING)
    return resources.worker if alone else resources.trial


def trial(config: Mapping[str, Any], jobs: Mapping[str, Any]) -> None:
    """Trainable of Ray Tune that runs one stage.

    An exception of the stage's code is reported, not raised, since a retry would raise it again.
    Tune retries processes that died, and those that exit here because of preemption.
    """
    import torch
    from ray import tune

    from ssdet.stages.kinds import run_stage

    job = jobs[config["stage"]]
    try:
        result = run_stage(job, lambda metrics: tune.report(dict(metrics)), wait=False)
    except BlockingIOError:
        tune.report({"elsewhere": True})  # so that its resources are free meanwhile
        return
    except Preempted as error:
        tune.report({"preempted": str(error)})
        os._exit(1)
    except Exception as error:
        path = note_error(job.folder, traceback.format_exc())
        tune.report({"error": f"{type(error).__name__}: {error} ({path})"})
        if torch.cuda.is_initialized():
            os._exit(1)  # a broken CUDA context would fail every stage that this process gets next
        return
    tune.report({"finished": True, **{k: v for k, v in result.items() if isinstance(v, float)}})
