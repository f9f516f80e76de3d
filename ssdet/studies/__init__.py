"""Ablations: arms and seeds, the graph of their stages, and the runner that finishes it."""

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
from ssdet.studies.identity import Stage
from ssdet.studies.plan import Plan, plan
from ssdet.studies.presets import Preset, preset
from ssdet.studies.runner import BudgetSpent, StagesFailed, run
from ssdet.studies.search import Search
from ssdet.studies.store import Store
from ssdet.studies.study import Arm, Study, Table
from ssdet.studies.tuning import Tuning

__all__ = [
    "Arm", "BudgetSpent", "Data", "Experiment", "Plan", "Preset", "Search", "Source", "Stage",
    "StagesFailed", "Store", "Study", "Table", "Tuning", "augmented", "classification", "coarser",
    "finetuned_as", "from_checkpoint", "lasting", "on_features", "plan", "preset", "pretraining",
    "run", "scratch", "two_stream",
]  # fmt: skip
