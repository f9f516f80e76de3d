"""Real videos end to end: I3D from its Kinetics-400 weights, at small size.

    ssdet weights get i3d-kinetics400
    python experiments/real_end_to_end.py --preset small --data segments \\
        --upstream clips.csv --upstream-videos ut-interaction \\
        --downstream fir-action/annotations.json --downstream-videos fir-action

Clips of 32 frames of 64 pixels, which give the network three steps in time. A training step takes
about 14 G multiply-adds per clip, so use a GPU or few steps (--pretrain-steps, --finetune-steps).
docs/real_video.md has results.
"""

from dataclasses import replace

from ssdet.cli import experiment
from ssdet.data.loading.recipe import ClipRecipe
from ssdet.studies import Arm, Study, Table, augmented, classification, scratch
from ssdet.studies.experiment import Change, Experiment, declared, declaring, unchanged
from ssdet.training.recipe import ModelRecipe, TrainRecipe

WEIGHTS = "i3d-kinetics400"
HALF = (0.5, 0.5, 0.5)


def from_kinetics(change: Change = unchanged) -> Change:
    """The change on I3D, whose first training starts from the published weights."""

    def clip(given: ClipRecipe, stride: int) -> ClipRecipe:
        return replace(given, frames=32, stride=stride, mean=HALF, std=HALF)

    def training(recipe: TrainRecipe, stride: int, weights: str) -> TrainRecipe:
        optim = replace(recipe.optim, batch=8, lr=0.05, amp="bf16", head_lr_mult=5.0)
        model = ModelRecipe("i3d", {"norm_momentum": 0.1}, weights=weights)
        return replace(recipe, model=model, clip=clip(recipe.clip, stride), optim=optim)

    @declaring("finetune.model.weights", *declared(change))
    def changed(base: Experiment) -> Experiment:
        base = change(base)
        pretrain = base.pretrain and training(base.pretrain, 2, WEIGHTS)
        finetune = training(base.finetune, 4, "" if pretrain else WEIGHTS)
        predict = replace(base.predict, clip=clip(base.predict.clip, 4))
        return replace(base, pretrain=pretrain, finetune=finetune, predict=predict, probe=None)

    return changed


STUDY = Study(
    "real_end_to_end",
    arms=(
        Arm("kinetics", from_kinetics(scratch), "Kinetics weights alone"),
        Arm("cls", from_kinetics(classification), "then classification"),
        Arm("det", from_kinetics(), "then detection, no augmentation"),
        Arm("mixup", from_kinetics(augmented("mixup")), "then detection, MixUp"),
    ),
    table=Table("I3D end to end on real videos", baseline="cls"),
)

if __name__ == "__main__":
    experiment(STUDY)
