"""Figure 2: score of detectors against their multiply-adds, by pretraining.

    python experiments/tradeoff.py

The stages are shared with `detectors_charades.py`. For each detector an arrow goes from
classification pretraining to detection pretraining (joint, one augmentation per clip), and from
there to the ensemble of three. The paper does not print the values of its points, so none are
quoted.
"""

from rich.console import Console

from ssdet.cli import experiment
from ssdet.studies import Plan, Store, Study, Table
from ssdet.studies.paper_detectors import DETECTORS, detector

SHOWN = ("x3d", "slowfast", "cf")
ARMS = tuple(arm for name in SHOWN for arm in detector(name))

STUDY = Study(
    "tradeoff",
    arms=ARMS,
    table=Table(
        "Score against cost",
        baseline="x3d_cls",
        columns=("finetuned", "difference", "macs", "seeds"),
        against={arm.name: f"{arm.name.split('_')[0]}_cls" for arm in ARMS
                 if not arm.name.endswith("_cls")},
    ),
)  # fmt: skip


def also(planned: Plan, store: Store, out: Console) -> None:
    """Draw the finished study's detectors."""
    from ssdet.results.figures.figure_data import track
    from ssdet.results.figures.study_figures import write_tradeoff
    from ssdet.results.tables.result_table import result_table

    table = result_table(planned, store)
    tracks = [
        track(table, DETECTORS[name][0], [f"{name}_{how}" for how in ("cls", "joint", "ensemble")])
        for name in SHOWN
    ]
    path = store.table_folder(table.study) / "tradeoff.png"
    out.print(f"figure: {write_tradeoff(tracks, path, STUDY.table.title)}")


if __name__ == "__main__":
    experiment(STUDY, also=also)
