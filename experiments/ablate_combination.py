"""Table A.1d: the three augmentations in one training, or in an ensemble of three networks.

    python experiments/ablate_combination.py

The last row is the control of the ensemble: as many networks with one augmentation that differ only
in their seed.
"""

from ssdet.cli import experiment
from ssdet.studies import Arm, Study, Table, augmented, classification

STUDY = Study(
    "ablate_combination",
    arms=(
        Arm("cls", classification, "classification"),
        Arm("freeze", augmented("freeze"), "Freeze"),
        Arm("mixup", augmented("mixup"), "MixUp"),
        Arm("cutmix", augmented("cutmix", window="view"), "CutMix"),
        Arm("joint_single", augmented("joint_single"), "joint, one per clip"),
        Arm("joint", augmented("joint"), "joint"),
        Arm("ensemble", title="ensemble of the three", members=("freeze", "mixup", "cutmix")),
        Arm("control", title="ensemble of three MixUp seeds", seeds_of="mixup", size=3),
    ),
    table=Table(
        "Combining augmentations",
        baseline="cls",
        quoted={
            "cls": 17.28, "freeze": 18.79, "mixup": 19.18, "cutmix": 18.99,
            "joint_single": 19.28, "joint": 19.11, "ensemble": 20.50,
        },
        source="Tables 2a and A.1d (X3D, Kinetics-400 to Charades, dense mAP, one run each).",
    ),
)  # fmt: skip

if __name__ == "__main__":
    experiment(STUDY)
