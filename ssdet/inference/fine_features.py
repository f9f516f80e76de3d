"""Reads stored fine-stream features of the video that each coarse-stream clip comes from."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssdet.data.features.shards import FeatureSet
from ssdet.models.networks.pyramid import FineFeatures


class FineFeatureReader:
    """Maps of a fine stream for the first `steps` clip frames of each video (Coarse-Fine Networks,
    second stage of training).

    ValueError for features that are not maps.
    """

    def __init__(self, features: FeatureSet, steps: int) -> None:
        if flat := [name for name, shape in features.shapes.items() if len(shape) != 3]:
            raise ValueError(
                f"{features.folder}: {', '.join(flat)} are no maps: extract those of a fine stream "
                "with ExtractRecipe(pyramid=…)"
            )
        self.features, self.steps = features, steps

    def __call__(self, videos: Sequence[str], frames_B: Tensor) -> FineFeatures:
        """Maps of the videos of B clips that begin at `frames_B`, padded to the longest.

        KeyError for a video without features.
        """
        rows = [self.features[video] for video in videos]
        strides_B = torch.tensor([self.features.entries[video].stride for video in videos])
        lengths = [min(self.steps, len(next(iter(row.values())))) for row in rows]
        mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        levels = {}
        for name, shape in self.features.shapes.items():
            maps_BTDHW = torch.zeros(len(rows), max(lengths), *shape)
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                maps_BTDHW[i, :length] = torch.from_numpy(row[name][:length].astype(np.float32))
            levels[name] = maps_BTDHW.transpose(1, 2)
        return FineFeatures(levels, mask_BT, frames_B / strides_B)
