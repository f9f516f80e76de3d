"""Presets: base experiments (network, clips, schedules) and the data settings for them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.inference.recipe import PredictRecipe
from ssdet.studies.data import moving_shapes
from ssdet.studies.experiment import Experiment, SecondNetworkDefaults
from ssdet.studies.study import Study
from ssdet.training.pretrained_weights import NORMALISATION
from ssdet.training.recipe import ModelRecipe, OptimRecipe, ProbeRecipe, TrainRecipe

if TYPE_CHECKING:
    from ssdet.data.datasets.moving_shapes import Config as MovingShapes

KINETICS_MEAN, KINETICS_STD = NORMALISATION["facebook"]
HEAD_OPTIM = OptimRecipe(
    steps=400, batch=16, lr=3e-3, optimizer="adamw", weight_decay=0.0, schedule="onecycle"
)
"""Schedule of heads at the sizes of `tiny` and `small`, for which none is published."""
HEAD_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "pdan": {"width": 128},
    "ms_tct": {"dims": (32, 48, 72, 108), "heads": 4, "final": 64},
}
"""Widths of heads in proportion to the 144 channels of `x3d_tiny`, as the published heads are to
the channels of their backbones."""
WHOLE_VIDEO = 512
"""Window of scoring in clip frames; no video of Charades has more."""


@dataclass(frozen=True)
class Preset:
    """A base experiment and how its data are read."""

    experiment: Experiment
    shapes: "MovingShapes"
    """Configuration of the embedded data set."""
    decode_size: int | None
    cache: bool
    fps: float = 0.0
    """Frames per second at which the untrimmed videos are read (`Data.fps`)."""


def _moving_shapes_config(**fields: int) -> "MovingShapes":
    from ssdet.data.datasets.moving_shapes import Config

    return Config(**fields)


def with_defaults(study: Study) -> Study:
    """The study; a missing base or data set is that of `tiny` (Moving Shapes)."""
    chosen = tiny()
    base = study.base or chosen.experiment
    data = study.data or moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    return replace(study, base=base, data=data)


def preset(name: str, data: str = "charades", weights: str = "") -> Preset:
    """Preset by name; ValueError for an unknown one.

    data: format of the untrimmed videos. weights: initial weights of pretraining, a published name
    or the path of a checkpoint. Only `paper` and `released` use the two.
    """
    small_scale = {"smoke": smoke, "tiny": tiny, "science": science, "small": small}
    full_scale = {"paper": paper, "released": released}
    if name in full_scale:
        return full_scale[name](data, weights)
    if name not in small_scale:
        raise ValueError(f"preset {name!r}: choose one of {', '.join([*small_scale, *full_scale])}")
    if weights:
        raise ValueError(
            f"preset {name!r} starts from fresh weights: leave out weights={weights!r}, or choose "
            f"{' or '.join(full_scale)}"
        )
    return small_scale[name]()


def _experiment(
    model: ModelRecipe, clip: ClipRecipe, stride: int, pretrain: OptimRecipe, finetune: OptimRecipe
) -> Experiment:
    """Experiment on `clip`; fine-tuning and scoring differ from pretraining in `stride` only."""
    downstream = replace(clip, stride=stride)
    predict = PredictRecipe(replace(downstream, short_side=(clip.size, clip.size), flip=0.0))
    return Experiment(
        finetune=TrainRecipe("finetune", model, downstream, finetune),
        pretrain=TrainRecipe("pretrain", model, clip, pretrain),
        predict=predict,
        probe=ProbeRecipe(predict),
        second_network=SecondNetworkDefaults(
            head_optim=HEAD_OPTIM, head_options=HEAD_OPTIONS, grid=3
        ),
    )


def _with_schedules(base: Preset, pretrain: OptimRecipe, finetune: OptimRecipe) -> Preset:
    experiment = base.experiment
    assert experiment.pretrain is not None
    experiment = replace(
        experiment,
        pretrain=replace(experiment.pretrain, optim=pretrain),
        finetune=replace(experiment.finetune, optim=finetune),
    )
    return replace(base, experiment=experiment)


def tiny() -> Preset:
    """Moving Shapes, minutes on two cores: 24 px, 16 frames, a three-stage X3D."""
    return Preset(
        _experiment(
            ModelRecipe("x3d_tiny", {"dropout": 0.0}),
            ClipRecipe(frames=16, stride=1, size=24, short_side=(24, 24)),
            1,
            OptimRecipe(steps=500, batch=32, lr=0.1, schedule="onecycle"),
            # Of 0.02, 0.05, 0.1, 0.2, 0.4 the best on the validation split (docs/science.md).
            OptimRecipe(steps=300, batch=16, lr=0.4, schedule="onecycle", weight_decay=1e-5),
        ),
        _moving_shapes_config(),
        decode_size=None,
        cache=True,
    )


def science() -> Preset:
    """`tiny` with the longer schedules of the tables in docs/science.md, which gives the reason:
    detection pretraining has not converged after 1,200 steps.
    """
    base = tiny()
    assert base.experiment.pretrain is not None
    pretrain, finetune = base.experiment.pretrain.optim, base.experiment.finetune.optim
    return _with_schedules(base, replace(pretrain, steps=3600), replace(finetune, steps=400))


def smoke() -> Preset:
    """`tiny` with four steps per training and few videos: for tests, its scores mean nothing."""
    optim = OptimRecipe(steps=4, batch=24, lr=0.05, schedule="onecycle")
    shapes = _moving_shapes_config(upstream=60, train=8, val=4, test=8)
    return replace(_with_schedules(tiny(), optim, optim), shapes=shapes)


def small() -> Preset:
    """Own videos on a laptop: 64 px, 16 frames at stride 4 (pretraining) and 8 (fine-tuning)."""
    return Preset(
        _experiment(
            ModelRecipe("x3d_tiny", {"dropout": 0.2}),
            ClipRecipe(16, 4, 64, (72, 90), 0.5, KINETICS_MEAN, KINETICS_STD),
            8,
            OptimRecipe(steps=400, batch=16, lr=0.05, schedule="onecycle"),
            OptimRecipe(steps=200, batch=16, lr=0.05, schedule="onecycle", weight_decay=1e-5),
        ),
        _moving_shapes_config(),
        decode_size=90,
        cache=True,
    )


@dataclass(frozen=True)
class Downstream:
    """Properties of a data set that the schedule and the clips of fine-tuning depend on."""

    videos: int
    """Training videos; an epoch has one clip of each."""
    fps: float
    """Frames per second at which videos are read, labelled and scored; 0: the rate of each file."""
    stride: int
    """Frames, at this rate, from one clip frame to the next."""


DOWNSTREAM = {
    "charades": Downstream(videos=7985, fps=24, stride=10),
    # The paper follows Charades' recipe: clips as long (6.4 s, 6.7 s), at the rate of the protocol.
    "multithumos": Downstream(videos=200, fps=10, stride=4),
}
OTHER_DOWNSTREAM = Downstream(videos=7985, fps=0, stride=10)


def paper(data: str = "charades", weights: str = "") -> Preset:
    """X3D-M at 224 px as the paper trains it (docs/recipes.md): 100,000 iterations of batch 64 from
    published weights, 300,000 from fresh ones (Table A.1f); 100 epochs of fine-tuning at batch 16.

    Needs GPUs: pretraining takes 30 or 91 PFLOPs per arm and seed (`pretraining_pflops`).
    """
    downstream = DOWNSTREAM.get(data, OTHER_DOWNSTREAM)
    clip = ClipRecipe(16, 5, 224, (256, 320), 0.5, KINETICS_MEAN, KINETICS_STD)
    model = ModelRecipe("x3d_m", {"dropout": 0.5})
    steps = 100_000 if weights else 300_000
    finetune_steps = 100 * downstream.videos // 16
    base = _experiment(
        model,
        clip,
        downstream.stride,
        OptimRecipe(steps=steps, batch=64, lr=0.05, milestones=(0.8,)),
        OptimRecipe(steps=finetune_steps, batch=16, lr=0.02, milestones=(0.8,), weight_decay=1e-5),
    )
    assert base.pretrain is not None
    predict = replace(base.predict, window=WHOLE_VIDEO)
    experiment = replace(
        base,
        pretrain=replace(base.pretrain, model=replace(model, weights=weights), validation_clips=3),
        predict=predict,
        probe=ProbeRecipe(predict),
        # Second stage of Coarse-Fine Networks as in the published code: clips of 64 frames, 80
        # epochs at batch 6, the fusion at ten times the learning rate of the rest.
        second_network=SecondNetworkDefaults(
            downstream.videos,
            stream_clip=replace(base.finetune.clip, frames=64),
            fusion_optim=OptimRecipe(
                steps=80 * downstream.videos // 6, batch=6, lr=0.2, head_lr_mult=10,
                weight_decay=1e-5, milestones=(0.375, 0.625, 0.875),
            ),
        ),
    )  # fmt: skip
    shapes = _moving_shapes_config()
    return Preset(experiment, shapes, decode_size=320, cache=False, fps=downstream.fps)


def released(data: str = "charades", weights: str = "") -> Preset:
    """`paper` with the values of the published code where the two differ (docs/recipes.md).

    Arms use the paper's augmentations unless they set the option compat="released".
    """
    base = paper(data, weights)
    pretrain, finetune = base.experiment.pretrain, base.experiment.finetune
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
    window = finetune.clip.frames * finetune.clip.stride + 2
    clip = replace(finetune.clip, mean=mean, std=std, scales=(224 / 256,), window=window,
                   short_videos="drop")  # fmt: skip
    finetune = replace(
        finetune, clip=clip, constants="own", validations=50, validate_on="test",
        model=replace(finetune.model, norm_start="pooled"),
        optim=replace(finetune.optim, schedule="plateau", patience=10),
    )  # fmt: skip
    predict = replace(
        base.experiment.predict, clip=replace(base.experiment.predict.clip, mean=mean, std=std)
    )
    # A probe reads the pretrained network, so its frames are normalised as those of pretraining.
    probed = replace(
        predict, clip=replace(predict.clip, mean=pretrain.clip.mean, std=pretrain.clip.std)
    )
    experiment = replace(
        base.experiment,
        finetune=finetune,
        pretrain=pretrain,
        predict=predict,
        probe=ProbeRecipe(probed),
    )
    return replace(base, experiment=experiment)
