"""Tables 2a and A.1a: the number of frozen segments in Volume Freeze.

    python experiments/ablate_freeze.py

The paper has one and two segments. For the label of frozen frames see ablate_background.py.
"""

from ssdet.cli import experiment
from ssdet.studies import Arm, Study, Table, augmented, classification

STUDY = Study(
    "ablate_freeze",
    arms=(
        Arm("cls", classification, "classification"),
        Arm("det", title="detection, no augmentation"),
        Arm("one", augmented("freeze"), "Freeze, one segment"),
        Arm("two", augmented("freeze", segments=2), "Freeze, two segments"),
        Arm("three", augmented("freeze", segments=3), "Freeze, three segments"),
    ),
    table=Table(
        "Volume Freeze: number of frozen segments",
        baseline="cls",
        quoted={"cls": 17.28, "one": 18.79, "two": 18.83},
        source="Table A.1a (X3D, Kinetics-400 to Charades, dense mAP, one run each).",
    ),
)

if __name__ == "__main__":
    experiment(STUDY)
