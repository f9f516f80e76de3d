"""Extraction of the features of every clip frame by a frozen network, into files."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ssdet.data.datasets.manifest import Video
from ssdet.data.features.shards import FeatureWriter
from ssdet.data.loading.frame_readers import FrameReader, timing
from ssdet.data.loading.recipe import FEATURES
from ssdet.data.video.reader import CorruptVideo
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import passes
from ssdet.models.networks.pyramid import pyramid

Extractor = Callable[[Tensor], Tensor | Mapping[str, Tensor]]
"""Clips [1, C, T, H, W] -> features [1, D, T] or [1, D, T, h, w], one tensor or several by name."""


def extractor(model: nn.Module, grid: int = 0) -> Extractor:
    """Features of a network or, with `grid`, its feature pyramid of grid x grid cells.

    AttributeError for the pyramid of a network without stages.
    """
    if grid:
        return partial(pyramid, model, grid=grid)  # type: ignore[arg-type]
    features: Extractor = model.features  # type: ignore[assignment]
    return features


def named_rows(features: Extractor, clips_BCTHW: Tensor) -> dict[str, Tensor]:
    """Features of one clip by name, [T, D] or [T, D, h, w]."""
    output = features(clips_BCTHW)
    tensors = {FEATURES: output} if isinstance(output, Tensor) else output
    return {name: value[0].movedim(1, 0) for name, value in tensors.items()}


def video_rows(
    features: Extractor,
    video: Video,
    reader: FrameReader,
    recipe: PredictRecipe,
    device: torch.device,
) -> Iterator[tuple[range, dict[str, Tensor]]]:
    """Yield, for each pass over a video, the frame indices and the features at them.

    Raises CorruptVideo.
    """
    for steps, clips in passes(video, reader, recipe, device):
        yield steps, named_rows(features, clips)


@torch.inference_mode()
def write_features(
    features: Extractor,
    videos: Iterable[Video],
    reader: FrameReader,
    recipe: PredictRecipe,
    writer: FeatureWriter,
    device: torch.device,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write the features of all videos that the writer lacks, in order, and call `progress` after
    each; unreadable videos are recorded with the reason."""
    for video in videos:
        if video.id in writer.done:
            continue
        try:
            frames, timed = reader.frames(video), timing(reader, video)
            writer.begin(video.id, frames, timed, recipe.clip.stride)
            for _, rows in video_rows(features, video, reader, recipe, device):
                writer.add(rows)
            writer.commit()
        except CorruptVideo as error:
            writer.leave_out(video.id, error.reason)
        progress()
