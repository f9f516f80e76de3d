"""Table A.1f: pretraining schedules, from scratch and from a checkpoint.

    python experiments/ablate_schedule.py

Is detection pretraining better than classification at every length, and is a third of the schedule
from a checkpoint better than the full schedule from scratch? The checkpoint is the classification
network of the arm `cls`. With it an arm costs four thirds of a schedule, as do the two longer arms
from scratch; the paper, whose checkpoint was published, counts only the last third.
"""

from ssdet.cli import experiment
from ssdet.studies import (
    Arm,
    Study,
    Table,
    augmented,
    classification,
    from_checkpoint,
    scaled_pretraining,
)

TASKS = {"cls": classification, "det": augmented("joint_single")}
LENGTHS = {"_third": (1 / 3, "a third"), "": (1, "all"), "_longer": (4 / 3, "four thirds")}
SCRATCH = tuple(
    Arm(task + suffix, scaled_pretraining(share, change), f"{task}, {length} of the schedule")
    for suffix, (share, length) in LENGTHS.items()
    for task, change in TASKS.items()
)
CHECKPOINT = tuple(
    Arm(
        f"{task}_checkpoint",
        from_checkpoint(classification, scaled_pretraining(1 / 3, change)),
        f"{task}, a third from a checkpoint",
    )
    for task, change in TASKS.items()
)

STUDY = Study(
    "ablate_schedule",
    arms=(*SCRATCH, *CHECKPOINT),
    table=Table(
        "Pretraining schedules",
        baseline="cls",
        quoted={"cls": 16.02, "det": 17.89, "cls_checkpoint": 17.28, "det_checkpoint": 19.28},
        source="Table A.1f (X3D, Kinetics-400 to Charades, dense mAP, one run each; 300,000 "
        "iterations from scratch at 91.10 P, 100,000 from a published checkpoint at 30.36 P).",
        columns=("finetuned", "probe", "difference", "pflops", "quoted", "seeds"),
    ),
)

if __name__ == "__main__":
    experiment(STUDY)
