"""Table A.1c: the windowing strategies of Volume CutMix, and three controls.

    python experiments/ablate_cutmix.py

The paper compares with classification pretraining only. `scratch` and `det` (detection pretraining
without augmentation) separate the gain of pretraining and of the task from that of the
augmentation.
"""

from ssdet.cli import experiment
from ssdet.studies import Arm, Study, Table, augmented, classification, scratch

STUDY = Study(
    "ablate_cutmix",
    arms=(
        Arm("scratch", scratch, "no pretraining"),
        Arm("cls", classification, "classification"),
        Arm("det", title="detection, no augmentation"),
        Arm("window", augmented("cutmix", window="transient"), "CutMix, transient window"),
        Arm("view", augmented("cutmix", window="view"), "CutMix, transient view"),
    ),
    table=Table(
        "Volume CutMix: windowing strategies",
        baseline="cls",
        quoted={"cls": 17.28, "window": 18.89, "view": 18.99},
        source="Table A.1c (X3D, Kinetics-400 to Charades, dense mAP, one run each).",
    ),
)

if __name__ == "__main__":
    experiment(STUDY)
