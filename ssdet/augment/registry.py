"""Registry of augmentations by name."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ssdet.augment.base import Augmentation
from ssdet.augment.combine import Joint, JointSingle, NoAugmentation
from ssdet.augment.cutmix import VolumeCutMix
from ssdet.augment.freeze import VolumeFreeze
from ssdet.augment.mixup import VolumeMixUp
from ssdet.plugins import Registry, hint

Maker = TypeVar("Maker", bound=Callable[..., Augmentation])
_AUGMENTATIONS: Registry[Callable[..., Augmentation]] = Registry("augmentation")
available = _AUGMENTATIONS.available

for _name, _kind in {
    "none": NoAugmentation, "freeze": VolumeFreeze, "mixup": VolumeMixUp, "cutmix": VolumeCutMix,
    "joint_single": JointSingle, "joint": Joint,
}.items():  # fmt: skip
    _AUGMENTATIONS.add(_name, _kind, _kind.__module__)


def register(make: Maker) -> Maker:
    """Register the function ``make(*, ...) -> Augmentation`` under its own name."""
    _AUGMENTATIONS.add(make.__name__, make, make.__module__)
    return make


def create(name: str, **options: Any) -> Augmentation:
    """Create an augmentation by name (see `available`); options are the fields of its class.

    Raises ValueError for an unknown name or option, with the closest one, and for values that are
    not allowed.
    """
    make = _AUGMENTATIONS[name]
    allowed = list(inspect.signature(make).parameters)
    for option in options:
        if option not in allowed:
            raise ValueError(f"{name} has no option {option!r}{hint(option, allowed)}")
    return make(**options)
