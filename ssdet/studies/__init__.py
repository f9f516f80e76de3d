"""Ablations: arms and seeds, the graph of their stages, and the runner that finishes it."""

from ssdet.studies.data import Data, Source
from ssdet.studies.plan import Plan, Stage, plan
from ssdet.studies.presets import Preset, preset
from ssdet.studies.runner import StagesFailed, run
from ssdet.studies.store import Store
from ssdet.studies.study import (
    Arm,
    Experiment,
    Study,
    Table,
    augmented,
    classification,
    pretraining,
    scratch,
)

__all__ = [
    "Arm", "Data", "Experiment", "Plan", "Preset", "Source", "Stage", "StagesFailed", "Store",
    "Study", "Table", "augmented", "classification", "plan", "preset", "pretraining", "run",
    "scratch",
]  # fmt: skip
