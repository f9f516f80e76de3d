"""Volume augmentations: freeze, MixUp, CutMix and their combinations, on clips and frame labels."""

from ssdet.augment.base import Augmentation, Components
from ssdet.augment.combine import Joint, JointDraws, JointSingle, NoAugmentation
from ssdet.augment.cutmix import ViewDraws, VolumeCutMix
from ssdet.augment.freeze import FreezeDraws, VolumeFreeze, freeze
from ssdet.augment.manifold import draw_level, manifold, mixed_at
from ssdet.augment.masks import spatial_window, temporal_alpha
from ssdet.augment.mixup import OverlapDraws, VolumeMixUp, WindowDraws
from ssdet.augment.registry import available, create

__all__ = [
    "Augmentation",
    "Components",
    "FreezeDraws",
    "Joint",
    "JointDraws",
    "JointSingle",
    "NoAugmentation",
    "OverlapDraws",
    "ViewDraws",
    "VolumeCutMix",
    "VolumeFreeze",
    "VolumeMixUp",
    "WindowDraws",
    "available",
    "create",
    "draw_level",
    "freeze",
    "manifold",
    "mixed_at",
    "spatial_window",
    "temporal_alpha",
]
