"""`ssdet extract`: features of whole videos from any network, into files that map into memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from ssdet.data.loading.recipe import ClipRecipe, Dtype
from ssdet.execution.session import Session, connect
from ssdet.inference.recipe import PredictRecipe
from ssdet.store.base import Store
from ssdet.studies.data import Data, Source
from ssdet.studies.presets import DOWNSTREAM
from ssdet.training.pretrained_weights import normalisation_of
from ssdet.training.recipe import ExtractRecipe, ModelRecipe, TrainRecipe

if TYPE_CHECKING:
    from ssdet.stages.job import Job, Result
    from ssdet.studies.graph.plan import Stage


@dataclass(frozen=True)
class Options:
    """Write the features of whole videos. The same command goes on where it was stopped."""

    path: Annotated[str, tyro.conf.Positional]
    """Annotation of the videos, as `--downstream` of an experiment."""
    videos: str
    """Folder of the videos."""
    format: str
    """Format of the annotation: segments, charades, multithumos, activitynet, kinetics, or a
    plugin's."""
    run: str = ""
    """A training stage, or a scored run, of the store: its network gives the features."""
    checkpoint: str = ""
    """Instead: a checkpoint file, or a name of `ssdet weights ls`."""
    model: str = "x3d_m"
    """Network of the checkpoint."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Store of the run (SSDET_STORE)."""
    out: str | None = None
    """Store that the features are written to; by default that of the run."""
    size: int | None = None
    """Side of the square that the network sees; by default the run's, else 224 pixels."""
    stride: int | None = None
    """Frames from one step to the next; by default the run's, else the data set's recipe."""
    fps: float | None = None
    """Rate at which videos are read; by default that of the data set's recipe, 0 is their own."""
    window: int = 512
    """Most steps in one pass."""
    decode_size: int | None = 320
    """Short side in pixels at which frames are decoded."""
    dtype: Dtype = "float16"
    """How features are kept."""
    ray: bool = False
    """Use Ray Data, on an own Ray or on the cluster of --address or RAY_ADDRESS."""
    address: str | None = None
    """Ray cluster; implies --ray."""
    actors: int | None = None
    """Processes that run the network; by default one a GPU, else one for every two cores."""
    decoders: int | None = None
    """Processes that decode; by default the other cores."""


def command(arguments: list[str]) -> int:
    """Exit status 0 where features of all readable videos are written, 1 where that failed, 2 for
    wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet extract", config=config)
    from ssdet.stages.job import FEATURES, Job

    try:
        if options.ray or options.address:
            from ssdet.execution.session import folder_for_ray

            folder_for_ray(options.address)
        data = data_of(options)
        job = Job(stage_of(options, data), str(target(options).root), data)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        result = run(job, options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    told = f"{result['videos']} of {result['videos_expected']} videos"
    for video, reason in result["unreadable"].items():
        print(f"not read: {video}: {reason}", file=sys.stderr)
    print(f"{told} written to {job.folder / FEATURES}")
    return 0


def run(job: Job, options: Options) -> Result:
    """The extraction in this process, or on Ray."""
    from ssdet.stages.features import StreamJob
    from ssdet.stages.kinds import run_stage

    if not (options.ray or options.address):
        return run_stage(job, told)
    from ssdet.execution.executor import RayExecutor

    with connect(options.address) as session:
        print(session.summary(), file=sys.stderr)
        actors, decoders, gpus = shares(session, options)
        streamed = StreamJob(
            job.stage,
            job.store,
            job.data,
            executor=RayExecutor(),
            actors=actors,
            decoders=decoders,
            gpus_per_actor=gpus,
        )
        return run_stage(streamed, told)


def told(metrics: Mapping[str, float]) -> None:
    """Progress: a line that is rewritten on a terminal, ten lines elsewhere."""
    done, total = int(metrics["step"]), int(metrics["steps"])
    line = f"extract: {done} of {total} videos"
    if sys.stderr.isatty():
        print(line, end="\n" if done == total else "\r", file=sys.stderr)
    elif done % max(1, total // 10) == 0 or done == total:
        print(line, file=sys.stderr, flush=True)


def shares(session: Session, options: Options) -> tuple[int, int, float]:
    """Actors, decoders, and GPUs of an actor."""
    cpus = int(sum(node.get("CPU", 0) for node in session.nodes))
    gpus = int(sum(node.get("GPU", 0) for node in session.nodes))
    actors = options.actors or gpus or max(1, cpus // 2)
    decoders = options.decoders or max(1, cpus - actors)
    return actors, decoders, 1.0 if gpus >= actors else 0.0


def target(options: Options) -> Store:
    """The store to write to."""
    return Store.open(options.out or options.store)


def data_of(options: Options) -> Data:
    """The videos, on the grid of their data set's recipe."""
    source = Source(options.format, options.path, options.videos)
    known = DOWNSTREAM.get(options.format)
    fps = options.fps if options.fps is not None else (known.fps if known else 0.0)
    return Data(source, source, options.decode_size, cache=False, fps=fps)


def stage_of(options: Options, data: Data) -> Stage:
    """The extraction. ValueError for options that do not go together."""
    from ssdet.stages.job import LAST
    from ssdet.studies.graph.builder import StageGraph
    from ssdet.studies.graph.identity import stored_stage

    if bool(options.run) == bool(options.checkpoint):
        raise ValueError("give --run (of --store), or --checkpoint: one of them")
    if options.checkpoint:
        return StageGraph(data).features(_foreign(options))
    store = Store.open(options.store)
    trained = stored_stage(store.fetch, options.run)
    while trained.kind not in ("pretrain", "finetune"):
        if len(trained.parents) != 1:
            raise ValueError(f"run {options.run!r} has no network of its own: name one with one")
        trained = trained.parents[0]
    recipe: TrainRecipe = trained.recipe
    predict = _predict(recipe.clip, options)
    if target(options).root == store.root:
        return StageGraph(data).features(ExtractRecipe(predict, options.dtype), trained)
    # Another store does not have the stage: there its weights are a file.
    path = store.fetch(trained.id, LAST) / LAST
    fresh = replace(recipe, model=replace(recipe.model, weights=str(path)), clip=predict.clip)
    return StageGraph(data).features(ExtractRecipe(predict, options.dtype, fresh))


def _foreign(options: Options) -> ExtractRecipe:
    """The recipe of a network that no stage has trained, on pictures that it is used to."""
    model = ModelRecipe(options.model, weights=options.checkpoint)
    known = DOWNSTREAM.get(options.format)
    stride, size = known.stride if known else 1, options.size or 224
    clip = ClipRecipe(stride=stride, size=size, short_side=(size, size))
    found = normalisation_of(TrainRecipe("finetune", model, clip))
    if found is None:
        raise ValueError(
            f"checkpoint {options.checkpoint!r}: nothing tells how its pictures were normalised; "
            "use `ssdet.inference.extraction` from Python, with a clip recipe of your own"
        )
    predict = _predict(replace(clip, mean=found[0], std=found[1]), options)
    return ExtractRecipe(predict, options.dtype, TrainRecipe("finetune", model, predict.clip))


def _predict(clip: ClipRecipe, options: Options) -> PredictRecipe:
    """Whole videos as the clips of training were, without draws."""
    size, stride = options.size or clip.size, options.stride or clip.stride
    plain = ClipRecipe(clip.frames, stride, size, (size, size), mean=clip.mean, std=clip.std)
    return PredictRecipe(plain, options.window)
