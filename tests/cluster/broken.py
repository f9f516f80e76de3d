"""A study with two arms that cannot succeed: one diverges, one (`dies`) is killed by the test."""

from dataclasses import replace

from ssdet.cli import experiment
from ssdet.studies import Arm, Study, Table, classification
from ssdet.studies.changes import pretraining
from ssdet.studies.experiment import Change, Experiment, declaring

STEPS_OF_THE_DYING = 121


def optimised(**fields: float) -> Change:
    @declaring(*(f"pretrain.optim.{name}" for name in fields))
    def change(base: Experiment) -> Experiment:
        return pretraining(optim=replace(base.pretrain.optim, **fields))(base)

    return change


STUDY = Study(
    "broken",
    arms=(
        Arm("cls", classification, "classification"),
        Arm("det", title="detection"),
        Arm("diverges", optimised(lr=1e12), "a learning rate that cannot work"),
        Arm("dies", optimised(steps=STEPS_OF_THE_DYING), "its process is killed every time"),
    ),
    table=Table("Two arms that fail", baseline="cls"),
)

if __name__ == "__main__":
    experiment(STUDY)
