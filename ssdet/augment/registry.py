"""Augmentations by name: the function that makes an augmentation carries its name."""

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

_OWN: dict[str, type[Augmentation]] = {
    "none": NoAugmentation,
    "freeze": VolumeFreeze,
    "mixup": VolumeMixUp,
    "cutmix": VolumeCutMix,
    "joint_single": JointSingle,
    "joint": Joint,
}
for _name, _kind in _OWN.items():
    _AUGMENTATIONS.add(_name, _kind, _kind.__module__)


def register(make: Maker) -> Maker:
    """Make ``make(*, ...) -> Augmentation`` available under its function name."""
    _AUGMENTATIONS.add(make.__name__, make, make.__module__)
    return make


def create(name: str, **options: Any) -> Augmentation:
    """An augmentation by name: `available()` lists them.

    Options are the fields of its class. Raises ValueError naming the nearest known name or
    option where one is unknown, or where an option's value is not allowed.
    """
    make = _AUGMENTATIONS[name]
    known = list(inspect.signature(make).parameters)
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(
                f"{name} has no option {option!r} (it has: {listed}){hint(option, known)}"
            )
    return make(**options)
