"""Table A.1g: where detection pretraining helps, by acts per frame and by distance to a boundary.

    python experiments/breakdown.py

The paper attributes its gain in frames with several acts to the augmentations; `det` (detection
pretraining without augmentation) separates their part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from ssdet.cli import experiment
from ssdet.studies import Arm, Plan, Store, Study, Table, augmented, classification

if TYPE_CHECKING:
    from ssdet.results.figures.breakdown import Quote

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
BASELINE = {"cls": (8.63, 18.72, 17.34, 16.18)}
DIFFERENCES = {
    "freeze": (-0.14, 1.85, 1.41, 1.49),
    "mixup": (1.30, 2.06, 1.87, 1.94),
    "cutmix": (1.16, 1.86, 1.68, 1.85),
}
SOURCE = (
    "Table A.1g (X3D, Kinetics-400 to Charades, one run each); its dilation of 3 is read as a "
    "radius in frames."
)


def quoted() -> dict[str, Quote]:
    """Scores and differences quoted from the paper, by arm."""
    from ssdet.results.figures.breakdown import Quote

    return {
        **{k: Quote(value=dict(zip(STRATA, v, strict=True))) for k, v in BASELINE.items()},
        **{k: Quote(difference=dict(zip(STRATA, v, strict=True))) for k, v in DIFFERENCES.items()},
    }


def also(planned: Plan, store: Store, out: Console) -> None:
    """Print and write the breakdown of a finished study."""
    from ssdet.results.figures.breakdown import breakdown, show_breakdown, write_breakdown

    table = breakdown(planned, store, quoted(), SOURCE)
    show_breakdown(table, out)
    write_breakdown(table, store.table_folder(table.study))


if __name__ == "__main__":
    experiment(STUDY, also=also)
