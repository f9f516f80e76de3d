"""Linear probe: logistic regression per frame on frozen features."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.loading.frame_readers import FrameReader, dense_targets
from ssdet.data.loading.recipe import FEATURES
from ssdet.data.video.reader import CorruptVideo
from ssdet.inference.extraction import video_rows
from ssdet.inference.recipe import PredictRecipe
from ssdet.inference.scoring import Network
from ssdet.training.recipe import ProbeRecipe


@dataclass
class Probe:
    """Clips [1, C, T, H, W] -> logits [1, K, T]: standardised frozen features, linear layer."""

    features: Network
    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor

    def __call__(self, clips_BCTHW: Tensor) -> Tensor:
        inputs_BTD = (self.features(clips_BCTHW).mT - self.mean_D) * self.scale_D
        return F.linear(inputs_BTD, self.weight_KD, self.bias_K).mT


@torch.inference_mode()
def extract(
    features: Network,
    manifest: Manifest,
    reader: FrameReader,
    recipe: PredictRecipe,
    device: torch.device,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Features [N, D] and labels [N, K] of every clip frame, and reasons of unreadable videos.

    Raises ValueError if no video can be read.
    """
    inputs, labels, broken = [], [], {}
    for video in manifest.videos:
        try:
            dense_KF = dense_targets(manifest, video, reader)
            rows = [
                (tensors[FEATURES], torch.from_numpy(dense_KF[:, np.asarray(steps)].T))
                for steps, tensors in video_rows(features, video, reader, recipe, device)
            ]
        except CorruptVideo as error:
            broken[video.id] = error.reason
            continue
        inputs += [features_ND for features_ND, _ in rows]
        labels += [labels_NK for _, labels_NK in rows]
    if not inputs:
        raise ValueError(f"data set {manifest.name!r}: none of its videos can be read: {broken}")
    return torch.cat(inputs), torch.cat(labels).to(device, torch.float32), broken


def fit(features: Network, inputs_ND: Tensor, labels_NK: Tensor, recipe: ProbeRecipe) -> Probe:
    """Minimise BCE + l2/2 |w|² with L-BFGS, from zeros: convex, so without randomness."""
    inputs_ND, labels_NK = inputs_ND.double(), labels_NK.double()  # float32 stops too early
    mean_D, scale_D = inputs_ND.mean(0), 1 / (inputs_ND.std(0) + 1e-6)
    rows = (inputs_ND - mean_D) * scale_D
    layer = nn.Linear(rows.shape[1], labels_NK.shape[1], device=rows.device, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=recipe.iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(layer(rows), labels_NK, reduction="none")
        total = loss.sum(1).mean() + recipe.l2 / 2 * layer.weight.square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    fitted = (mean_D, scale_D, layer.weight.detach(), layer.bias.detach())
    return Probe(features, *(values.float() for values in fitted))
