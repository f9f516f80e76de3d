"""Arms of the paper's comparison of detectors, with classification and detection pretraining."""

from collections.abc import Callable, Mapping

from ssdet.studies.changes import augmented, classification, on_features, two_stream
from ssdet.studies.experiment import Change
from ssdet.studies.study import Arm, Table

PRETRAININGS: dict[str, tuple[str, Change]] = {
    "cls": ("classification", classification),
    "joint": ("joint, one per clip", augmented("joint_single")),
    "freeze": ("Freeze", augmented("freeze")),
    "mixup": ("MixUp", augmented("mixup")),
    "cutmix": ("CutMix", augmented("cutmix", window="view")),
}
DETECTORS: dict[str, tuple[str, Callable[[Change], Change]]] = {
    "x3d": ("X3D", lambda change: change),
    "se": ("Super-Events", lambda change: on_features("super_events", change)),
    "tgm": ("TGM + SE", lambda change: on_features("tgm_super_events", change)),
    "pdan": ("PDAN", lambda change: on_features("pdan", change)),
    "slowfast": ("SlowFast_det", lambda change: two_stream("slowfast_det", change, change)),
    # The paper's appendix recommends classification pretraining for the fine stream.
    "cf": ("Coarse-Fine", lambda change: two_stream("coarse_fine", change, classification)),
}
"""Title of each detector, and how its change is made from that of a pretraining."""
MEMBERS = ("freeze", "mixup", "cutmix")
"""Pretrainings whose detectors make up an ensemble."""


def detector(name: str) -> tuple[Arm, ...]:
    """Arms of a detector: `<name>_<pretraining>` for each of `PRETRAININGS`, and
    `<name>_ensemble` of the three augmentations (Table 1)."""
    title, detector_change = DETECTORS[name]
    arms = tuple(
        Arm(f"{name}_{pretraining}", detector_change(change), f"{title}, {label}")
        for pretraining, (label, change) in PRETRAININGS.items()
    )
    members = tuple(f"{name}_{pretraining}" for pretraining in MEMBERS)
    return *arms, Arm(f"{name}_ensemble", title=f"{title}, ensemble", members=members)


def comparison(
    quoted: Mapping[str, tuple[float, float, float]], title: str, source: str
) -> tuple[tuple[Arm, ...], Table]:
    """Arms of several detectors and the layout of their table.

    quoted: the paper's scores by detector, in percent: classification, joint, ensemble.
    """
    rows = (*PRETRAININGS, "ensemble")
    scores = {
        f"{name}_{row}": value
        for name, values in quoted.items()
        for row, value in zip(("cls", "joint", "ensemble"), values, strict=True)
    }
    table = Table(
        title,
        baseline=f"{next(iter(quoted))}_cls",
        quoted=scores,
        source=source,
        columns=("finetuned", "difference", "parameters", "macs", "quoted", "seeds"),
        groups={DETECTORS[name][0]: tuple(f"{name}_{row}" for row in rows) for name in quoted},
        against={f"{name}_{row}": f"{name}_cls" for name in quoted for row in rows if row != "cls"},
    )
    return tuple(arm for name in quoted for arm in detector(name)), table
