"""Feature extraction by Ray Data: CPU tasks decode videos for actors that run the network.

Rows are passes over videos, in order, so that memory holds only a few passes at a time.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssdet.data.datasets.manifest import Video
from ssdet.data.features.shards import FeatureWriter
from ssdet.data.loading.clips import normalise
from ssdet.data.loading.frame_readers import FrameReader, timing
from ssdet.data.video.clock import Clock
from ssdet.data.video.reader import CorruptVideo
from ssdet.inference.extraction import extractor, named_rows
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import passes
from ssdet.studies.data import Data
from ssdet.training.context import default_device
from ssdet.training.recipe import ExtractRecipe

if TYPE_CHECKING:
    from ssdet.stages.features import StreamJob

ACTOR_CPU = 0.5
"""CPUs of an actor: not the decoders' number, with which Ray Data would fuse the two steps."""

BLOCK_BYTES = 1 << 24
"""Target size of a block, unless one pass over a video is larger; Ray Data's default of 128 MiB
does not fit the memory of an own Ray on this machine."""

Batch = dict[str, np.ndarray]
"""One row of Ray Data: columns of one value each."""


def stream_features(job: "StreamJob", writer: FeatureWriter, progress: Callable[[], None]) -> None:
    """Write the features of all videos that the writer lacks, in the manifest's order; `progress`
    is called after each video.

    Must be called where Ray is initialised; the files are those of an extraction in one process.
    Every node must have access to the store and the videos.
    """
    import ray

    recipe: ExtractRecipe = job.stage.recipe
    videos = [v for v in job.data.manifests["downstream"].videos if v.id not in writer.done]
    if not videos:
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    rows = [
        {"id": v.id, "path": v.path, "split": v.split, "duration": v.duration or 0.0}
        for v in videos
    ]
    passed = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            partial(decode, data=replace(job.data), recipe=recipe.predict),
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(job.decoders),
            num_cpus=1,
        )
        .map_batches(
            Scorer,
            batch_size=1,
            # Without the network: an object too large for a message is lost when an actor restarts.
            fn_constructor_kwargs={"job": replace(job, data=replace(job.data))},
            compute=ray.data.ActorPoolStrategy(size=job.actors),
            num_cpus=ACTOR_CPU,
            num_gpus=job.gpus_per_actor,
        )
    )
    for row in passed.iter_rows():
        _write(row, writer, recipe.predict.clip.stride, progress)


def _write(
    row: Mapping[str, Any], writer: FeatureWriter, stride: int, progress: Callable[[], None]
) -> None:
    if row["reason"]:
        writer.leave_out(row["id"], row["reason"])
        progress()
    elif row["first"]:
        times = json.loads(str(row["times"]))
        timed = Clock.from_json(times) if times else float(row["fps"])
        writer.begin(row["id"], int(row["frames"]), timed, stride)
    elif row["last"]:
        writer.commit()
        progress()
    else:
        writer.add(_unpacked(row))


def decode(batch: Batch, data: Data, recipe: PredictRecipe) -> Iterator[Batch]:
    """Rows of one video: first its frames and times, then the pictures of each pass, then the end,
    or in its place the reason why the video cannot be read."""
    name, path, split = (str(batch[column][0]) for column in ("id", "path", "split"))
    video = Video(name, path, split, duration=float(batch["duration"][0]) or None)
    reader = _reader(data)
    # Values of 0 to 255, which the actor normalises.
    plain = replace(recipe.clip, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    try:
        timed = timing(reader, video)
        times = timed.to_json() if isinstance(timed, Clock) else None
        frames, fps = reader.frames(video), reader.fps(video)
        yield _row(video.id, first=True, frames=frames, fps=fps, times=json.dumps(times))
        for _, clips in passes(video, reader, replace(recipe, clip=plain), torch.device("cpu")):
            pictures_THWC = clips[0].movedim(0, 3).round().to(torch.uint8).contiguous()
            yield _row(video.id, {"pictures": pictures_THWC.numpy()})
        yield _row(video.id, last=True)
    except CorruptVideo as error:
        yield _row(video.id, reason=error.reason)


@lru_cache(maxsize=1)
def _reader(data: Data) -> FrameReader:
    return data.reader("downstream")


class Scorer:
    """Actor that runs the network: replaces pictures by features."""

    def __init__(self, job: "StreamJob") -> None:
        from ssdet.stages.features import backbone

        torch.set_num_threads(job.threads)
        self.clip, self.device = job.stage.recipe.predict.clip, default_device()
        self.features = extractor(backbone(job).to(self.device), job.stage.recipe.pyramid)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        row = {name: values[0] for name, values in batch.items()}
        if not row["names"]:
            return batch
        pictures_THWC = _unpacked(row)["pictures"]
        clips = normalise(pictures_THWC[None], self.clip, self.device)
        features = named_rows(self.features, clips)
        return _row(str(row["id"]), {name: value.cpu().numpy() for name, value in features.items()})


def _row(
    video: str,
    tensors: Mapping[str, np.ndarray] | None = None,
    first: bool = False,
    last: bool = False,
    frames: int = 0,
    fps: float = 0.0,
    times: str = "null",
    reason: str = "",
) -> Batch:
    tensors = tensors or {}
    names = ",".join(
        f"{name}:{array.dtype.str}:{'x'.join(map(str, array.shape))}"
        for name, array in tensors.items()
    )
    data = b"".join(array.tobytes() for array in tensors.values())
    values = {
        "id": video, "first": first, "last": last, "frames": frames, "fps": fps, "reason": reason,
        "names": names, "times": times,
    }  # fmt: skip
    packed = np.empty(1, object)
    packed[0] = data
    return {**{name: np.array([value]) for name, value in values.items()}, "data": packed}


def _unpacked(row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    tensors, data = {}, memoryview(row["data"])
    for part in str(row["names"]).split(","):
        name, kind, text = part.split(":")
        shape = tuple(map(int, text.split("x")))
        array = np.frombuffer(data, kind, int(np.prod(shape))).reshape(shape)
        tensors[name] = torch.from_numpy(array.copy())
        data = data[array.nbytes :]
    return tensors
