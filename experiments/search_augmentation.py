"""Which augmentation suits your videos: its kind, how often, how soft, and the learning rate.

    python experiments/search_augmentation.py --trials 30 --scheduler none
    ssdet search show search_augmentation

Knobs that belong to one augmentation are only there where it is chosen. Trials are scored on the
validation split with one seed; run the best few as arms of a study before believing an order.
"""

from dataclasses import replace
from typing import Any

from ssdet.cli.search import search_experiment
from ssdet.search.space import Search
from ssdet.studies.changes import pretraining
from ssdet.studies.experiment import Change, Experiment


def space(trial: Any) -> Change:
    """Kind, its own options, and the learning rate of pretraining over that of the preset."""
    kinds = ["none", "freeze", "mixup", "cutmix", "joint_single", "joint"]
    kind = trial.suggest_categorical("augment", kinds)
    joint = kind.startswith("joint")
    options: dict[str, Any] = {}
    if kind == "freeze" or joint:
        options["segments"] = trial.suggest_int("segments", 1, 3)
    if kind == "mixup" or joint:
        mask = trial.suggest_categorical("mask", ["seamless", "half"])
        options["mask"] = mask
        if mask == "seamless":  # a ramp of width 0 is the step
            options["ramp"] = trial.suggest_float("ramp", 0.0, 1.0, step=0.125)
    if kind == "cutmix" or joint:
        options["window"] = trial.suggest_categorical("window", ["view", "transient"])
    if kind == "joint":
        options["p"] = trial.suggest_float("p", 0.25, 1.0, step=0.125)
    times = trial.suggest_float("lr_times", 0.25, 4.0, log=True)

    def change(experiment: Experiment) -> Experiment:
        assert experiment.pretrain is not None
        optim = experiment.pretrain.optim
        faster = pretraining(optim=replace(optim, lr=optim.lr * times))(experiment)
        return pretraining(augment=kind, augment_options=options)(faster)

    return change


SEARCH = Search(
    "search_augmentation",
    space,
    trials=30,
    title="Augmentation, its options and the learning rate of pretraining",
)

if __name__ == "__main__":
    search_experiment(SEARCH)
