"""Runs a plan's stages with Ray Tune, each as soon as its parents are done."""

import os
import shutil
import traceback
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from ssdet.studies.data import ROLES, Data
from ssdet.studies.plan import Plan, Stage, plan
from ssdet.studies.progress import Progress
from ssdet.studies.session import Resources, connect, plan_resources
from ssdet.studies.store import Store
from ssdet.studies.study import Study
from ssdet.training.loop import share

TRAINING = ("pretrain", "finetune")
QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
"""Tune's own console and log files, which `Progress` and `metrics.jsonl` take the place of."""


class StagesFailed(RuntimeError):
    """Some stages failed; `errors` maps their ids to what was raised."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{stage}: {error}" for stage, error in errors.items()))
        self.errors = dict(errors)


def run(
    study: Study,
    store: str | os.PathLike[str] | Store,
    address: str | None = None,
    workers: int = 1,
    gpus_per_worker: float = 0,
    concurrent: int | None = None,
    loaders: int = 0,
    checkpoint_every: float = 20.0,
) -> Plan:
    """Bring every stage of a study to its end, and return the plan whose results are in the store.

    Stages that are done are not run again, and stages that were stopped go on, so the same call
    after a crash finishes what is left. Raises StagesFailed after all that could run has run;
    ValueError where the cluster cannot hold one stage.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    planned = plan(study)
    study = planned.study
    for stage in planned.stages.values():
        if stage.kind in TRAINING:
            share(stage.recipe, workers)
    todo = {name: stage for name, stage in planned.stages.items() if store.result(name) is None}
    progress = Progress(planned, done=len(planned.stages) - len(todo))
    if not todo:
        return planned
    _fill_caches(study.data, progress)
    with connect(address) as session:
        resources = plan_resources(workers, gpus_per_worker, concurrent, cluster=session.capacity)
        progress.start(session.summary(), resources)
        settings = {"loaders": loaders, "checkpoint_every": checkpoint_every}
        errors = _run_graph(todo, store, study, resources, settings, progress)
    progress.stop()
    if errors:
        raise StagesFailed(errors)
    return planned


def _fill_caches(data: Data, progress: Progress) -> None:
    for role in ROLES:
        data.reader(role, partial(progress.count, f"decode {role}"))


def _run_graph(
    todo: Mapping[str, Stage],
    store: Store,
    study: Study,
    resources: Resources,
    settings: Mapping[str, Any],
    progress: Progress,
) -> dict[str, str]:
    from ray import tune

    from ssdet.studies.graph import GraphSearch, ProgressCallback
    from ssdet.studies.stages import Job

    jobs = {
        name: Job(
            stage,
            str(store.root),
            study.data,
            workers=resources.workers if stage.kind in TRAINING else 1,
            worker_resources=resources.worker,
            **settings,
        )
        for name, stage in todo.items()
    }
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    search = GraphSearch(todo)
    name = f"{study.name}-{uuid.uuid4().hex}"

    def asked(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([_trial_resources(config, resources)])

    trainable = tune.with_resources(tune.with_parameters(trial, jobs=jobs), asked)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=len(todo),
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(store.root / "ray"),
            failure_config=tune.FailureConfig(max_failures=3),
            callbacks=[ProgressCallback(progress)],
            verbose=0,
        ),
    )
    tuner.fit()
    # Tune's notes for a resume that is never asked for.
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    if any(store.result(stage) is None for stage in todo.keys() - search.errors.keys()):
        raise KeyboardInterrupt  # Tune stops quietly
    return search.errors


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
    raise it again. What Tune tries again is a process that died.
    """
    import torch
    from ray import tune

    from ssdet.studies.stages import run_stage

    job = jobs[config["stage"]]
    try:
        result = run_stage(job, lambda metrics: tune.report(dict(metrics)))
    except Exception as error:
        path = job.folder / "error.txt"
        path.write_text(traceback.format_exc())
        tune.report({"error": f"{type(error).__name__}: {error} (traceback in {path})"})
        if torch.cuda.is_initialized():
            os._exit(1)  # a broken CUDA context would fail every stage that this process gets next
        return
    tune.report({"finished": True, **{k: v for k, v in result.items() if isinstance(v, float)}})
