"""Table A.1h: fine-tuning at a quarter of the temporal resolution of pretraining.

    python experiments/ablate_resolution.py

Is a pretraining as good when the downstream network reads every fourth frame? The paper tests the
Coarse stream of Coarse-Fine and the Slow stream of SlowFast; `…_x4` is X3D itself on every fourth
frame of the clips. Each is compared with X3D after the same pretraining.
"""

from ssdet.cli import experiment
from ssdet.studies import (
    Arm,
    Study,
    Table,
    augmented,
    classification,
    every_nth_frame,
    finetuned_as,
)

PRETRAINED = {
    "cls": (classification, "classification"),
    "freeze": (augmented("freeze"), "Freeze"),
    "mixup": (augmented("mixup"), "MixUp"),
    "cutmix": (augmented("cutmix"), "CutMix"),
}
FINE = tuple(Arm(name, change, title) for name, (change, title) in PRETRAINED.items())
QUARTER = tuple(
    Arm(f"{name}_x4", every_nth_frame(4, change), f"{title}, every 4th frame")
    for name, (change, title) in PRETRAINED.items()
)
STREAMS = tuple(
    Arm(f"{name}_{stream}", finetuned_as(stream, change), f"{title}, {stream}")
    for stream in ("coarse", "slow")
    for name, (change, title) in PRETRAINED.items()
)

STUDY = Study(
    "ablate_resolution",
    arms=(*FINE, *QUARTER, *STREAMS),
    table=Table(
        "Temporal resolution",
        baseline="cls",
        quoted={
            "cls": 17.28, "freeze": 18.79, "mixup": 19.18, "cutmix": 18.99,
            "cls_coarse": 18.13, "freeze_coarse": 18.52, "mixup_coarse": 19.30,
            "cutmix_coarse": 18.85, "cls_slow": 17.49, "freeze_slow": 18.52,
            "mixup_slow": 19.17, "cutmix_slow": 18.60,
        },
        against={
            f"{name}_{way}": name for name in PRETRAINED for way in ("x4", "coarse", "slow")
            if name != "cls"
        },
        source="Table A.1h, its differences added to its first column (X3D, Kinetics-400 to "
        "Charades, dense mAP, one run each).",
    ),
)  # fmt: skip

if __name__ == "__main__":
    experiment(STUDY)
