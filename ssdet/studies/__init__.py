"""Ablations: arms and seeds, the graph of their stages, and the runner that finishes it."""

from typing import TYPE_CHECKING

from ssdet.lazy import attach

if TYPE_CHECKING:
    from ssdet.studies.changes import (
        augmented,
        classification,
        coarser,
        finetuned_as,
        from_checkpoint,
        lasting,
        on_features,
        pretraining,
        scratch,
        two_stream,
    )
    from ssdet.studies.data import Data, Source
    from ssdet.studies.experiment import Experiment
    from ssdet.studies.plan import Plan, Stage, plan
    from ssdet.studies.presets import Preset, preset
    from ssdet.studies.runner import BudgetSpent, StagesFailed, run
    from ssdet.studies.search import Search
    from ssdet.studies.store import Store
    from ssdet.studies.study import Arm, Study, Table
    from ssdet.studies.tuning import Tuning

attach(
    __name__,
    {
        "changes": [
            "augmented",
            "classification",
            "coarser",
            "finetuned_as",
            "from_checkpoint",
            "lasting",
            "on_features",
            "pretraining",
            "scratch",
            "two_stream",
        ],
        "data": ["Data", "Source"],
        "experiment": ["Experiment"],
        "plan": ["Plan", "Stage", "plan"],
        "presets": ["Preset", "preset"],
        "runner": ["BudgetSpent", "StagesFailed", "run"],
        "search": ["Search"],
        "store": ["Store"],
        "study": ["Arm", "Study", "Table"],
        "tuning": ["Tuning"],
    },
)
