"""Runs a plan's stages with Ray Tune, each as soon as its parents are done."""

import logging
import os
import shutil
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ssdet.execution.errors import BudgetSpent, StagesFailed
from ssdet.execution.planning.budget import Budget
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

TRAINING = ("pretrain", "finetune")


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
    """Bring every stage of a study to its end, and return the plan whose results are in the store.

    Stages that are done are not run again, and stages that were stopped go on, so the same call
    after a crash finishes what is left. Raises StagesFailed after all that could run has run;
    BudgetSpent where `budget` (GPU-hours of this call, core-hours without GPUs) ended it sooner;
    ValueError where the cluster cannot hold one stage. With `workers` "2:8" each training has as
    many as there is room for, and starts again with others when that changes. `decoders` tasks of
    Ray decode for each worker, in place of `loaders`. `dashboard` is for an own Ray, `log` names
    trackers that are told of stages as well: "mlflow", "wandb".
    """
    store = store if isinstance(store, Store) else Store.open(store)
    planned, asked = plan(study), Workers.of(workers)
    study = planned.study
    check_decoders(study.data, loaders, decoders)
    for stage in planned.stages.values():
        if stage.kind in TRAINING:
            shares(stage.recipe, asked.low, asked.high)
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
        callbacks = [ProgressCallback(*listeners), PreemptionRetries(progress.line)]
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
    """Switch off Tune's own console and log files, which `Progress` and `metrics.jsonl` take the
    place of, and its warning of every trial that has no such file; set `more` variables."""
    quiet = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    for name, value in (quiet | more).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def fill_caches(data: Data, count: Callable[[str, int, int], None]) -> None:
    """Decode the videos of both roles, where they are kept decoded; tells what, done and total."""
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

    def asked(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([_trial_resources(config, resources)])

    trainable = tune.with_resources(tune.with_parameters(trial, jobs=jobs), asked)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=-1,  # the searcher says when it is finished
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
    # Tune's notes for a resume that is never asked for.
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    left = [s for s in todo.keys() - search.errors.keys() if store.result(s) is None]
    if left and search.budget is not None and search.budget.spent():
        raise BudgetSpent(
            f"{search.budget} spent, {len(left)} stages are left: the same "
            "command with another --budget goes on from here"
        )
    if left:
        raise KeyboardInterrupt  # Tune stops quietly
    return search.errors


def _jobs(
    todo: Mapping[str, Stage],
    store: Store,
    study: Study,
    resources: Resources,
    settings: Mapping[str, Any],
) -> dict[str, "Job"]:
    """Each stage with all that it needs to run anywhere."""
    from ssdet.execution.executor import RayExecutor
    from ssdet.stages.job import Job

    return {
        name: Job(
            stage,
            store.uri,
            study.data,
            executor=RayExecutor(),
            **members(stage, resources),
            **settings,
        )
        for name, stage in todo.items()
    }


def members(stage: Stage, resources: Resources) -> dict[str, Any]:
    """How many workers a stage's job has, and what each asks for."""
    found: dict[str, Any] = {"worker_resources": resources.worker}
    if stage.kind in TRAINING:
        found |= {"workers": resources.workers, "decoders": resources.decoders}
        if (asked := resources.elastic) is not None:
            found["sizes"] = tuple(shares(stage.recipe, asked.low, asked.high))
    return found


def _trial_resources(config: Mapping[str, Any], resources: Resources) -> dict[str, float]:
    """A training stage of several workers only drives them; any other does its work itself, an
    ensemble without a GPU."""
    if str(config["stage"]).startswith("ensemble"):
        return {"CPU": resources.cpus_per_worker}
    alone = not str(config["stage"]).startswith(TRAINING)
    return resources.worker if alone else resources.trial


def trial(config: Mapping[str, Any], jobs: Mapping[str, Any]) -> None:
    """Ray Tune's trainable: one stage.

    An exception of the stage's own code is reported, not raised: to run the stage again would
    raise it again. What Tune tries again is a process that died, also of its own will where it was
    told to leave its machine.
    """
    import torch
    from ray import tune

    from ssdet.stages.kinds import run_stage

    job = jobs[config["stage"]]
    try:
        result = run_stage(job, lambda metrics: tune.report(dict(metrics)), wait=False)
    except BlockingIOError:
        tune.report({"elsewhere": True})  # nobody waits for it holding what it may need
        return
    except Preempted as error:
        tune.report({"preempted": str(error)})
        os._exit(1)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        tune.report({"error": f"{told} ({note_error(job.folder, traceback.format_exc())})"})
        if torch.cuda.is_initialized():
            os._exit(1)  # a broken CUDA context would fail every stage that this process gets next
        return
    tune.report({"finished": True, **{k: v for k, v in result.items() if isinstance(v, float)}})
