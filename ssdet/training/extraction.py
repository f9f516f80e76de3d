"""Feature extraction: features of every clip frame by a frozen network, written to files."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ssdet.data.features import FeatureWriter
from ssdet.data.frames import FrameReader, timing
from ssdet.data.manifest import Video
from ssdet.data.video import CorruptVideo
from ssdet.models.pyramid import pyramid
from ssdet.training.inference import passes
from ssdet.training.recipe import FEATURES, ExtractRecipe, PredictRecipe

Extractor = Callable[[Tensor], Tensor | Mapping[str, Tensor]]
"""Clips [1, C, T, H, W] -> features [1, D, T] or [1, D, T, h, w], one tensor or several by name."""


def extractor(model: nn.Module, recipe: ExtractRecipe) -> Extractor:
    """What of a network a recipe keeps. AttributeError for maps of a network that has no stages."""
    if recipe.pyramid:
        return partial(pyramid, model, grid=recipe.pyramid)  # type: ignore[arg-type]
    features: Extractor = model.features  # type: ignore[assignment]
    return features


def named_rows(features: Extractor, clips_BCTHW: Tensor) -> dict[str, Tensor]:
    """Features of one clip by name, [T, D] or [T, D, h, w]."""
    found = features(clips_BCTHW)
    tensors = {FEATURES: found} if isinstance(found, Tensor) else found
    return {name: value[0].movedim(1, 0) for name, value in tensors.items()}


def video_rows(
    features: Extractor,
    video: Video,
    reader: FrameReader,
    recipe: PredictRecipe,
    device: torch.device,
) -> Iterator[tuple[range, dict[str, Tensor]]]:
    """Features of a video, pass after pass, and the numbers of the frames that their rows are of.
    Raises CorruptVideo."""
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
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Write the features of all videos that the writer has not got yet, in order; one that cannot
    be read is left out with its reason. `tell` is called after each."""
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
        tell()
