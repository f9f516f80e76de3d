"""Ablations: arms and seeds over a base experiment, and the plan of their stages."""

from typing import TYPE_CHECKING

from ssdet.system.lazy import attach

if TYPE_CHECKING:
    from ssdet.execution.runner import BudgetSpent, StagesFailed, run
    from ssdet.execution.tuning import Tuning
    from ssdet.search.space import Search
    from ssdet.store.base import Store
    from ssdet.studies.changes import (
        augmented,
        classification,
        every_nth_frame,
        finetuned_as,
        finetuning,
        from_checkpoint,
        on_features,
        pretraining,
        scaled_pretraining,
        scratch,
        two_stream,
    )
    from ssdet.studies.data import Data, Source, moving_shapes
    from ssdet.studies.experiment import Experiment
    from ssdet.studies.graph.identity import Stage
    from ssdet.studies.graph.plan import Plan, plan
    from ssdet.studies.presets import Preset, preset
    from ssdet.studies.study import Arm, Study, Table

attach(
    __name__,
    {
        "ssdet.execution.runner": ["BudgetSpent", "StagesFailed", "run"],
        "ssdet.search.space": ["Search"],
        "ssdet.execution.tuning": ["Tuning"],
        "ssdet.store.base": ["Store"],
        "ssdet.studies.changes": [
            "augmented",
            "classification",
            "every_nth_frame",
            "finetuned_as",
            "finetuning",
            "from_checkpoint",
            "on_features",
            "pretraining",
            "scaled_pretraining",
            "scratch",
            "two_stream",
        ],
        "ssdet.studies.data": ["Data", "Source", "moving_shapes"],
        "ssdet.studies.experiment": ["Experiment"],
        "ssdet.studies.graph.identity": ["Stage"],
        "ssdet.studies.graph.plan": ["Plan", "plan"],
        "ssdet.studies.presets": ["Preset", "preset"],
        "ssdet.studies.study": ["Arm", "Study", "Table"],
    },
)
