"""Search over augmentations for your videos: kind, options, and learning rate of pretraining.

    python experiments/search_augmentation.py --trials 30 --scheduler none
    ssdet search show search_augmentation

Options of an augmentation are suggested only where it is chosen. Trials are scored on the
validation split with one seed; compare the best few as arms of a study with several seeds.
"""

from dataclasses import replace
from typing import Any

from ssdet.cli.search import search_experiment
from ssdet.search.space import Search
from ssdet.studies.changes import pretraining
from ssdet.studies.experiment import Change, Experiment


def space(trial: Any) -> Change:
    """Kind of augmentation, its options, and a factor on the preset's pretraining learning rate."""
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
    factor = trial.suggest_float("lr_times", 0.25, 4.0, log=True)

    def change(experiment: Experiment) -> Experiment:
        assert experiment.pretrain is not None
        optim = experiment.pretrain.optim
        scaled = replace(optim, lr=optim.lr * factor)
        return pretraining(optim=scaled, augment=kind, augment_options=options)(experiment)

    return change


SEARCH = Search(
    "search_augmentation",
    space,
    trials=30,
    title="Augmentation, its options and the learning rate of pretraining",
)

if __name__ == "__main__":
    search_experiment(SEARCH)
