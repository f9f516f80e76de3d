"""Losses and targets of pretraining, fine-tuning and heads on features."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssdet.augment import Components
from ssdet.models.layers.resampling import interpolate


def pretrain_targets(
    labels_BK: Tensor, frames: int, background: Literal["class", "zero", "class0"]
) -> Tensor:
    """Pseudo labels [B, K or K + 1, T]: a clip's label at every frame (paper, "Frame-level Pseudo
    Labels"). With background="class", class 0 is the background and actions count from 1."""
    if background == "class":
        labels_BK = F.pad(labels_BK, (1, 0))
    return labels_BK.unsqueeze(2).repeat(1, 1, frames)


def soft_cross_entropy(logits_BKT: Tensor, targets_BKT: Tensor) -> Tensor:
    """Cross entropy with soft labels, mean over clips and frames; also for [B, K].

    A frame whose target is all zero contributes nothing.
    """
    return -(targets_BKT * F.log_softmax(logits_BKT, 1)).sum(1).mean()


def released_loss(logits_BKT: Tensor, components: Components) -> Tensor:
    """Loss of the published code: each component's weighted cross entropy over the number of
    frames of the batch in which it is visible, summed over components.

    With several workers each normalises by its own part of the batch.
    """
    log_BKT = F.log_softmax(logits_BKT, 1)
    entropy_MBT = -(components.labels * log_BKT).sum(2)
    total_M = (components.weights * entropy_MBT).sum((1, 2))
    visible_M = components.visible.to(total_M.dtype).sum((1, 2))
    return (total_M / visible_M.clamp(min=1)).sum()


def localisation_loss(
    logits_BKT: Tensor, targets_BKF: Tensor, mask_BF: Tensor, align_corners: bool = False
) -> Tensor:
    """½ (BCE of the clip's maximum + BCE of the frames), without frames that do not exist.

    Logits at the network's rate are interpolated to the F video frames (paper, "Charades
    Evaluation"). Each worker divides by its own number of frames: with videos shorter than a clip,
    several workers weigh frames a little differently than one.
    """
    logits_BKF = interpolate(logits_BKT, targets_BKF.shape[2], align_corners)
    absent = ~mask_BF.unsqueeze(1)
    clip = F.binary_cross_entropy_with_logits(
        logits_BKF.masked_fill(absent, -torch.inf).amax(2),
        targets_BKF.masked_fill(absent, 0).amax(2),
    )
    frame = F.binary_cross_entropy_with_logits(logits_BKF, targets_BKF, reduction="none")
    frames = mask_BF.sum() * logits_BKT.shape[1]
    return 0.5 * (clip + frame.masked_fill(absent, 0).sum() / frames)


def masked_localisation_loss(
    logits_BKT: Tensor, targets_BKF: Tensor, mask_BF: Tensor, align_corners: bool = False
) -> Tensor:
    """`localisation_loss` as in Coarse-Fine Networks' code: probabilities of missing frames are 0,
    and the sum of the frames' losses is divided by the number of existing frames and classes."""
    logits_BKF = interpolate(logits_BKT, targets_BKF.shape[2], align_corners)
    mask_B1F = mask_BF.unsqueeze(1).to(logits_BKF.dtype)
    probs_BKF, targets_BKF = logits_BKF.sigmoid() * mask_B1F, targets_BKF * mask_B1F
    with torch.autocast(
        logits_BKT.device.type, enabled=False
    ):  # BCE of probabilities is not allowed there
        probs_BKF, targets_BKF = probs_BKF.float(), targets_BKF.float()
        clip = F.binary_cross_entropy(probs_BKF.amax(2), targets_BKF.amax(2))
        frames = F.binary_cross_entropy(probs_BKF, targets_BKF, reduction="sum")
    return 0.5 * (clip + frames / (mask_BF.sum() * logits_BKT.shape[1]))


def head_loss(
    logits_BKT: Tensor, targets_BKT: Tensor, mask_BT: Tensor, padding: Literal["masked", "counted"]
) -> Tensor:
    """Sum of BCE over steps and classes, divided by the number of existing steps.

    padding="counted": padded steps, whose targets must be 0, add to the sum, as in the published
    code of Super-Events.
    """
    loss_BKT = F.binary_cross_entropy_with_logits(logits_BKT, targets_BKT, reduction="none")
    if padding == "masked":
        loss_BKT = loss_BKT.masked_fill(~mask_BT.unsqueeze(1), 0)
    return loss_BKT.sum() / mask_BT.sum()
