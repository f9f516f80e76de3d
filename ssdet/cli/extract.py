"""`ssdet extract`: features of whole videos from any network, in memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ssdet.cli import shared
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
    """Write the features of whole videos. The same command resumes after a stop."""

    path: shared.Name
    """Annotation of the videos, as `--downstream` of an experiment."""
    videos: str
    """Folder of the videos."""
    format: str
    """Format of the annotation: segments, charades, multithumos, activitynet, kinetics, or a
    plugin's."""
    run: str = ""
    """Id of a training stage or a scored run of the store, whose network is used."""
    checkpoint: str = ""
    """Instead: a checkpoint file, or a name of `ssdet weights ls`."""
    model: str = "x3d_m"
    """Network of the checkpoint."""
    store: shared.StoreOption = field(default_factory=shared.default_store)
    out: str | None = None
    """Store to write the features to; by default --store."""
    size: int | None = None
    """Side of the network's square input in pixels; by default the run's, else 224."""
    stride: int | None = None
    """Frames from one step to the next; by default the run's, else the data set's recipe."""
    fps: float | None = None
    """Frame rate at which videos are read; by default the data set's recipe's; 0: their own."""
    window: int = 512
    """Maximum steps per pass."""
    decode_size: int | None = 320
    """Short side in pixels at which frames are decoded."""
    dtype: Dtype = "float16"
    """Number type of the stored features."""
    ray: bool = False
    """Use Ray Data, on an own Ray or on the cluster of --address or RAY_ADDRESS."""
    address: str | None = None
    """Ray cluster; implies --ray."""
    actors: int | None = None
    """Processes that run the network; by default one a GPU, else one for every two cores."""
    decoders: int | None = None
    """Processes that decode; by default the other cores."""


@shared.report_errors(ImportError, interrupted=shared.RESUMABLE)
def command(arguments: list[str]) -> None:
    """Write the features of all readable videos."""
    options = shared.parse(Options, arguments, "ssdet extract")
    from ssdet.stages.job import FEATURES, Job

    with shared.wrong_usage():
        if options.ray or options.address:
            from ssdet.execution.session import folder_for_ray

            folder_for_ray(options.address)
        data = data_of(options)
        job = Job(stage_of(options, data), str(target(options).root), data)
    result = run(job, options)
    for video, reason in result["unreadable"].items():
        shared.note(f"not read: {video}: {reason}")
    written = f"{result['videos']} of {result['videos_expected']} videos"
    print(f"{written} written to {job.folder / FEATURES}")


def run(job: Job, options: Options) -> Result:
    """Extract in this process, or on Ray."""
    from ssdet.stages.features import StreamJob
    from ssdet.stages.kinds import run_stage

    with shared.Progress("extract:", " videos") as progress:

        def report(metrics: Mapping[str, float]) -> None:
            progress(metrics["step"], metrics["steps"])

        if not (options.ray or options.address):
            return run_stage(job, report)
        from ssdet.execution.executor import RayExecutor

        with connect(options.address) as session:
            shared.note(session.summary())
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
            return run_stage(streamed, report)


def shares(session: Session, options: Options) -> tuple[int, int, float]:
    """Numbers of actors and decoders, and GPUs per actor."""
    cpus = int(sum(node.get("CPU", 0) for node in session.nodes))
    gpus = int(sum(node.get("GPU", 0) for node in session.nodes))
    actors = options.actors or gpus or max(1, cpus // 2)
    decoders = options.decoders or max(1, cpus - actors)
    return actors, decoders, 1.0 if gpus >= actors else 0.0


def target(options: Options) -> Store:
    """The store to write to."""
    return Store.open(options.out or options.store)


def data_of(options: Options) -> Data:
    """The videos, read at the frame rate of the options or of their data set's recipe."""
    source = Source(options.format, options.path, options.videos)
    recipe = DOWNSTREAM.get(options.format)
    fps = options.fps if options.fps is not None else (recipe.fps if recipe else 0.0)
    return Data(source, source, options.decode_size, cache=False, fps=fps)


def stage_of(options: Options, data: Data) -> Stage:
    """The extraction stage. ValueError for options that exclude each other."""
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
            raise ValueError(
                f"run {options.run!r} has no network of its own: give a training stage"
            )
        trained = trained.parents[0]
    recipe: TrainRecipe = trained.recipe
    predict = _predict(recipe.clip, options)
    if target(options).root == store.root:
        return StageGraph(data).features(ExtractRecipe(predict, options.dtype), trained)
    # Another store lacks the training stage, so the recipe names its weights as a file.
    path = store.fetch(trained.id, LAST) / LAST
    fresh = replace(recipe, model=replace(recipe.model, weights=str(path)), clip=predict.clip)
    return StageGraph(data).features(ExtractRecipe(predict, options.dtype, fresh))


def _foreign(options: Options) -> ExtractRecipe:
    """Recipe of a network that no stage has trained, with the normalisation of its weights."""
    model = ModelRecipe(options.model, weights=options.checkpoint)
    downstream = DOWNSTREAM.get(options.format)
    stride, size = downstream.stride if downstream else 1, options.size or 224
    clip = ClipRecipe(stride=stride, size=size, short_side=(size, size))
    normalisation = normalisation_of(TrainRecipe("finetune", model, clip))
    if normalisation is None:
        raise ValueError(
            f"checkpoint {options.checkpoint!r}: the normalisation of its pictures is unknown: "
            "use `ssdet.inference.extraction` from Python, with a clip recipe of your own"
        )
    mean, std = normalisation
    predict = _predict(replace(clip, mean=mean, std=std), options)
    return ExtractRecipe(predict, options.dtype, TrainRecipe("finetune", model, predict.clip))


def _predict(clip: ClipRecipe, options: Options) -> PredictRecipe:
    """Whole videos, preprocessed as the clips of training but without random crops."""
    size, stride = options.size or clip.size, options.stride or clip.stride
    plain = ClipRecipe(clip.frames, stride, size, (size, size), mean=clip.mean, std=clip.std)
    return PredictRecipe(plain, options.window)
