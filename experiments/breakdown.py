"""Table A.1g: where detection pretraining helps, by acts per frame and by distance to a boundary.

    python experiments/breakdown.py

The paper reads its gain in frames of several acts as the work of the augmentations; `det`
(detection pretraining without augmentation) says how much of it they are.
"""

from rich.console import Console

from ssdet.cli import experiment
from ssdet.results.breakdown import Quote, breakdown, show_breakdown, write_breakdown
from ssdet.studies import Arm, Plan, Store, Study, Table, augmented, classification

STUDY = Study(
    "breakdown",
    arms=(
        Arm("cls", classification, "classification"),
        Arm("det", title="detection, no augmentation"),
        Arm("freeze", augmented("freeze"), "Freeze"),
        Arm("mixup", augmented("mixup"), "MixUp"),
        Arm("cutmix", augmented("cutmix", window="view"), "CutMix"),
    ),
    table=Table(
        "Where detection pretraining helps",
        baseline="cls",
        quoted={"cls": 17.28, "freeze": 18.79, "mixup": 19.18, "cutmix": 18.99},
        source="Table 2a (X3D, Kinetics-400 to Charades, dense mAP, one run each).",
    ),
)

STRATA = ("acts=1", "acts>1", "non_boundary_r3", "boundary_r3")
QUOTED = {
    "cls": Quote(value=dict(zip(STRATA, (8.63, 18.72, 17.34, 16.18), strict=True))),
    "freeze": Quote(difference=dict(zip(STRATA, (-0.14, 1.85, 1.41, 1.49), strict=True))),
    "mixup": Quote(difference=dict(zip(STRATA, (1.30, 2.06, 1.87, 1.94), strict=True))),
    "cutmix": Quote(difference=dict(zip(STRATA, (1.16, 1.86, 1.68, 1.85), strict=True))),
}
SOURCE = (
    "Table A.1g (X3D, Kinetics-400 to Charades, one run each); its dilation of 3 is read as a "
    "radius in frames."
)


def also(planned: Plan, store: Store, out: Console) -> None:
    """Print and write the breakdown of a finished study."""
    table = breakdown(planned, store, QUOTED, SOURCE)
    show_breakdown(table, out)
    write_breakdown(table, store.table_folder(table.study))


if __name__ == "__main__":
    experiment(STUDY, also=also)
