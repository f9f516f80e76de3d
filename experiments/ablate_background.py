"""Beyond the paper: the label of frozen frames in pretraining.

    python experiments/ablate_background.py

The paper's text introduces a background label, its formula has a zero label, and its published code
uses the first action class. `class` is a separate class, `zero` no class (such frames have no
gradient under cross entropy), `class0` the published code's. Tested with Freeze alone and in joint
training, where other augmentations mix frozen frames in.
"""

from ssdet.cli import experiment
from ssdet.studies import Arm, Study, Table, classification, pretraining

LABELS = {
    "class": "a class of its own",
    "zero": "no class",
    "class0": "the first action (released)",
}

STUDY = Study(
    "ablate_background",
    arms=(
        Arm("cls", classification, "classification"),
        *(
            Arm(
                f"{name}_{label}",
                pretraining(augment=name, background=label),
                f"{title}, {meaning}",
            )
            for name, title in (("freeze", "Freeze"), ("joint", "joint"))
            for label, meaning in LABELS.items()
        ),
    ),
    table=Table(
        "Background label of frozen frames",
        baseline="cls",
        quoted={"cls": 17.28},
        source="Table A.1a (X3D, Kinetics-400 to Charades, dense mAP, one run). The paper does not "
        "say which label its other numbers were obtained with.",
    ),
)

if __name__ == "__main__":
    experiment(STUDY)
