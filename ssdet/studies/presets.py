"""Bases that arms change: network, clips and schedules that belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.inference.recipe import PredictRecipe
from ssdet.studies.data import moving_shapes
from ssdet.studies.experiment import Experiment, Kit
from ssdet.studies.study import Study
from ssdet.training.pretrained_weights import NORMALISATION
from ssdet.training.recipe import ModelRecipe, OptimRecipe, ProbeRecipe, TrainRecipe

if TYPE_CHECKING:
    from ssdet.data.datasets.moving_shapes import Config as MovingShapes

KINETICS_MEAN, KINETICS_STD = NORMALISATION["facebook"]
HEADS = OptimRecipe(
    steps=400, batch=16, lr=3e-3, optimizer="adamw", weight_decay=0.0, schedule="onecycle"
)
"""Models of features at sizes that nobody has published a schedule for."""
SMALL_HEADS: Mapping[str, Mapping[str, Any]] = {
    "pdan": {"width": 128},
    "ms_tct": {"dims": (32, 48, 72, 108), "heads": 4, "final": 64},
}
"""As wide for the 144 channels of `x3d_tiny` as the published ones for theirs."""
ONE_PASS = 512
"""Clip frames of the longest pass over a video: all of any video of Charades."""


@dataclass(frozen=True)
class Preset:
    """A base experiment and what it costs to read its data."""

    experiment: Experiment
    shapes: "MovingShapes"
    """The embedded data set that goes with it."""
    decode_size: int | None
    cache: bool
    fps: float = 0.0
    """Rate at which the untrimmed videos are read (`Data.fps`)."""


def _shapes(**changed: int) -> "MovingShapes":
    """The embedded data set, with these fields changed."""
    from ssdet.data.datasets.moving_shapes import Config

    return Config(**changed)


def completed(study: Study) -> Study:
    """The study, with the base of `tiny` and Moving Shapes where it names none."""
    chosen = tiny()
    base = study.base or chosen.experiment
    data = study.data or moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    return replace(study, base=base, data=data)


def preset(name: str, data: str = "charades", weights: str = "") -> Preset:
    """Preset by name; ValueError for an unknown one.

    data: format of the untrimmed videos. weights: what pretraining starts from, a published name
    or the path of a checkpoint. Both concern `paper` and `released` alone.
    """
    own = {"smoke": smoke, "tiny": tiny, "science": science, "small": small}
    published = {"paper": paper, "released": released}
    if name in published:
        return published[name](data, weights)
    if name not in own:
        raise ValueError(f"preset {name!r}: choose one of {', '.join([*own, *published])}")
    if weights:
        raise ValueError(f"preset {name!r} starts from fresh weights: weights go with "
                         f"{' or '.join(published)}")  # fmt: skip
    return own[name]()


def _experiment(
    model: ModelRecipe, clip: ClipRecipe, stride: int, pretrain: OptimRecipe, finetune: OptimRecipe
) -> Experiment:
    """`clip` is pretraining's; fine-tuning and scoring differ from it in stride alone."""
    downstream = replace(clip, stride=stride)
    predict = PredictRecipe(replace(downstream, short_side=(clip.size, clip.size), flip=0.0))
    return Experiment(
        finetune=TrainRecipe("finetune", model, downstream, finetune),
        pretrain=TrainRecipe("pretrain", model, clip, pretrain),
        predict=predict,
        probe=ProbeRecipe(predict),
        kit=Kit(head_optim=HEADS, head_options=SMALL_HEADS, grid=3),
    )


def tiny() -> Preset:
    """Moving Shapes in minutes on two cores: 24 px, 16 frames, a three-stage X3D."""
    return Preset(
        _experiment(
            ModelRecipe("x3d_tiny", {"dropout": 0.0}),
            ClipRecipe(frames=16, stride=1, size=24, short_side=(24, 24)),
            1,
            OptimRecipe(steps=500, batch=32, lr=0.1, schedule="onecycle"),
            # 0.4 was the best of 0.02 … 0.4 on the validation split, over three arms.
            OptimRecipe(steps=300, batch=16, lr=0.4, schedule="onecycle", weight_decay=1e-5),
        ),
        _shapes(),
        decode_size=None,
        cache=True,
    )


def science() -> Preset:
    """The same experiment, long: what the tables in docs/ are made with.

    On the validation split, with a seed that is in no table, CutMix pretrained for 1,200 steps was
    far from what it reaches after 3,600.
    """
    base = tiny()
    experiment = base.experiment
    assert experiment.pretrain is not None
    long = replace(experiment.pretrain.optim, steps=3600)
    longer = replace(experiment.finetune.optim, steps=400)
    return replace(
        base,
        experiment=replace(
            experiment,
            pretrain=replace(experiment.pretrain, optim=long),
            finetune=replace(experiment.finetune, optim=longer),
        ),
    )


def smoke() -> Preset:
    """Everything that `tiny` does, a few steps of it: for tests, its numbers mean nothing."""
    base = tiny()
    experiment = base.experiment
    assert experiment.pretrain is not None
    few = OptimRecipe(steps=4, batch=24, lr=0.05, schedule="onecycle")
    return replace(
        base,
        experiment=replace(
            experiment,
            pretrain=replace(experiment.pretrain, optim=few),
            finetune=replace(experiment.finetune, optim=few),
        ),
        shapes=_shapes(upstream=60, train=8, val=4, test=8),
    )


def small() -> Preset:
    """Own videos on a laptop: 64 px, 16 frames at stride 4 (pretraining) and 8."""
    return Preset(
        _experiment(
            ModelRecipe("x3d_tiny", {"dropout": 0.2}),
            ClipRecipe(16, 4, 64, (72, 90), 0.5, KINETICS_MEAN, KINETICS_STD),
            8,
            OptimRecipe(steps=400, batch=16, lr=0.05, schedule="onecycle"),
            OptimRecipe(steps=200, batch=16, lr=0.05, schedule="onecycle", weight_decay=1e-5),
        ),
        _shapes(),
        decode_size=90,
        cache=True,
    )


@dataclass(frozen=True)
class Downstream:
    """What fine-tuning depends on in a data set: its size and the rate that it is read at."""

    videos: int
    """Training videos: an epoch shows a clip of each."""
    fps: float
    """Of the grid that frames, labels and scores are on; 0 for that of each file."""
    stride: int
    """Grid frames from one clip frame to the next."""


DOWNSTREAM = {
    "charades": Downstream(videos=7985, fps=24, stride=10),
    # 16 frames over the same 6.4 to 6.7 seconds, on the grid that its labels are scored on.
    "multithumos": Downstream(videos=200, fps=10, stride=4),
}
OTHER = Downstream(videos=7985, fps=0, stride=10)


def paper(data: str = "charades", weights: str = "") -> Preset:
    """X3D-M at 224 px as the paper trains it (docs/recipes.md): 100,000 iterations of batch 64 from
    published weights, 300,000 from fresh ones (Table A.1f); 100 epochs of fine-tuning at batch 16.

    Needs GPUs: some 30 or 91 PFLOPs of pretraining an arm and seed.
    """
    known = DOWNSTREAM.get(data, OTHER)
    clip = ClipRecipe(16, 5, 224, (256, 320), 0.5, KINETICS_MEAN, KINETICS_STD)
    model = ModelRecipe("x3d_m", {"dropout": 0.5})
    steps = 100_000 if weights else 300_000
    epochs = 100 * known.videos // 16
    base = _experiment(
        model,
        clip,
        known.stride,
        OptimRecipe(steps=steps, batch=64, lr=0.05, milestones=(0.8,)),
        OptimRecipe(steps=epochs, batch=16, lr=0.02, milestones=(0.8,), weight_decay=1e-5),
    )
    assert base.pretrain is not None
    started = replace(base.pretrain, model=replace(model, weights=weights), validation_clips=3)
    whole = replace(base.predict, window=ONE_PASS)
    experiment = replace(
        base, pretrain=started, predict=whole, probe=ProbeRecipe(whole), kit=_kit(base, known)
    )
    return Preset(experiment, _shapes(), decode_size=320, cache=False, fps=known.fps)


def _kit(base: Experiment, data: Downstream) -> Kit:
    """Coarse-Fine Networks' clips and second stage (MODELS.md 5.6): 80 epochs at batch 6, the
    fusion at ten times the rate of the rest."""
    return Kit(
        data.videos,
        stream=replace(base.finetune.clip, frames=64),
        fusion=OptimRecipe(
            steps=80 * data.videos // 6, batch=6, lr=0.2, head_lr_mult=10, weight_decay=1e-5,
            milestones=(0.375, 0.625, 0.875),
        ),
    )  # fmt: skip


def released(data: str = "charades", weights: str = "") -> Preset:
    """The same as the published code has it, where that differs (docs/recipes.md).

    Augmentations of its arms stay those of the paper unless they ask for compat="released".
    """
    base = paper(data, weights)
    pretrain, tuned = base.experiment.pretrain, base.experiment.finetune
    assert pretrain is not None
    mean, std = NORMALISATION["ssdet_kinetics"]
    scales = (224 / 256,) if weights else (224 / 256, 224 / 320)
    clip = replace(pretrain.clip, mean=mean, std=std, scales=scales, window=81,
                   short_videos="drop")  # fmt: skip
    optim = replace(pretrain.optim, warmup=8000, head_lr_mult=10, milestones=(0.025, 0.075, 0.6))
    pretrain = replace(
        pretrain, clip=clip, optim=optim, loss="released", background="class0", constants="own",
        model=replace(pretrain.model, norm_group=16),
    )  # fmt: skip
    mean, std = NORMALISATION["charades"]
    stretch = tuned.clip.frames * tuned.clip.stride + 2
    clip = replace(tuned.clip, mean=mean, std=std, scales=(224 / 256,), window=stretch,
                   short_videos="drop")  # fmt: skip
    tuned = replace(
        tuned, clip=clip, constants="own", validations=50, validate_on="test",
        model=replace(tuned.model, norm_start="pooled"),
        optim=replace(tuned.optim, schedule="plateau", patience=10),
    )  # fmt: skip
    predict = replace(
        base.experiment.predict, clip=replace(base.experiment.predict.clip, mean=mean, std=std)
    )
    # A probe reads the pretrained network, which is used to the pictures of pretraining.
    seen = replace(
        predict, clip=replace(predict.clip, mean=pretrain.clip.mean, std=pretrain.clip.std)
    )
    experiment = replace(
        base.experiment, finetune=tuned, pretrain=pretrain, predict=predict, probe=ProbeRecipe(seen)
    )
    return replace(base, experiment=experiment)
