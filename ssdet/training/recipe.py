"""Training recipes: frozen dataclasses that are also stored as JSON and hashed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ssdet.data.loading.recipe import DENSE, FEATURES, ClipRecipe, Dtype
from ssdet.inference.recipe import PredictRecipe
from ssdet.system.recipe_json import named_by
from ssdet.training.weights_source import fingerprint


@dataclass(frozen=True)
class ModelRecipe:
    """A registered network and its options."""

    name: str = "x3d_tiny"
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_group: int = 8
    """Samples that share batch statistics, for any batch size and number of workers."""
    norm_start: Literal["running", "pooled"] = "running"
    """Initial statistics of each group: the running ones or, as in the published code, these
    stretched over all groups by adaptive pooling, which mixes neighbouring channels."""
    weights: str = field(default="", metadata=named_by(fingerprint))
    """Initial weights of a network without an earlier training stage: a published or imported name,
    or the path of a checkpoint; empty for fresh weights."""


@dataclass(frozen=True)
class OptimRecipe:
    """Optimiser, schedule and batch."""

    steps: int = 100
    batch: int = 16
    """Samples per optimiser step, over all workers and accumulation steps."""
    lr: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-5
    schedule: Literal["step", "cosine", "onecycle", "constant", "plateau"] = "step"
    """`plateau` (published fine-tuning) lowers the rate when the validation loss stops falling."""
    milestones: tuple[float, ...] = (0.8,)
    """Fractions of all steps at which `step` multiplies the learning rate by `decay`."""
    decay: float = 0.1
    patience: int = 10
    """Validations without a lower loss after which `plateau` multiplies by `decay`."""
    warmup: int = 0
    """Steps of linear warm-up."""
    head_lr_mult: float = 1.0
    """Learning rate of the head divided by that of the backbone (published code: 10)."""
    accumulate: int = 1
    clip_grad: float = 0.0
    """Maximum gradient norm; 0 for no clipping."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then evaluated; 0: none."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulate) < 1:
            raise ValueError(f"steps, batch and accumulate must be at least 1: {self}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not divide into {self.accumulate} parts")
        if self.patience < 0 or not 0 < self.decay < 1:
            raise ValueError(
                f"patience {self.patience}, decay {self.decay}: expected >= 0, and between 0 and 1"
            )


@dataclass(frozen=True)
class TrainRecipe:
    """One training run: pretraining on labelled clips, or fine-tuning on labelled frames."""

    task: Literal["pretrain", "finetune"]
    model: ModelRecipe = ModelRecipe()
    clip: ClipRecipe = ClipRecipe()
    optim: OptimRecipe = OptimRecipe()
    seed: int = 0
    readout: Literal["frame", "clip"] = "frame"
    """Pretraining: score every frame (detection) or the clip's average (classification)."""
    loss: Literal["soft_ce", "bce", "released"] = "soft_ce"
    """Pretraining loss; fine-tuning always takes localisation and classification BCE."""
    localisation: Literal["ssdet", "coarse_fine"] = "ssdet"
    """Fine-tuning loss: `localisation_loss`, or `masked_localisation_loss` of Coarse-Fine Networks'
    code; they differ for clips with missing frames."""
    align_corners: bool = False
    """How fine-tuning interpolates logits to the labels' rate (Coarse-Fine's code: True)."""
    augment: str = "none"
    augment_options: Mapping[str, Any] = field(default_factory=dict)
    mix_depth: Literal["input", "random"] = "input"
    """Where clips are mixed: at the input, or at a random level of the network, per batch."""
    background: Literal["class", "zero", "class0"] = "class"
    """Label of frozen frames: an extra class 0, none, or (as released) the first action."""
    validations: int = 2
    """Number of evenly spaced validations, the last one at the end."""
    validation_clips: int = 1
    """Evenly spaced clips per validation video of pretraining, whose scores are averaged."""
    validate_on: Literal["val", "test"] = "val"
    """Split of these scores; `test` is what published code does, and what tunes on test videos."""
    validate_by: str = DENSE
    """Fine-tuning: id of the protocol of these scores, by which `best_validation` is taken and a
    search's scheduler stops trials."""
    fine_steps: int = 0
    """Second stage of a two-stream network: the first so many clip frames of each video whose
    features the fine stream gives; 0 for a network that reads clips alone."""
    constants: Literal["as_weights", "own"] = "as_weights"
    """Normalisation of clips: must equal that of the initial weights, or (published code) may be
    another one."""
    multigrid: bool = False
    """Pretraining: larger batches of shorter, smaller clips for most steps, as in X3D's code."""

    def __post_init__(self) -> None:
        if self.readout == "clip" and self.augment != "none":
            raise ValueError(f"augment={self.augment!r} labels frames: it needs readout='frame'")
        if self.readout == "clip" and self.loss == "bce":
            # The released loss of a clip without augmentation is cross entropy.
            raise ValueError("loss='bce' scores frames: readout='clip' takes 'soft_ce'")
        if self.mix_depth == "random" and self.augment == "none":
            raise ValueError("mix_depth='random' mixes clips: it needs an augmentation (augment=…)")
        if "background" in self.augment_options:
            raise ValueError(
                "augment_options: the background is the recipe's own field `background`"
            )
        if self.task == "finetune" and self.augment != "none":
            raise ValueError("volume augmentations belong to pretraining: augment must be 'none'")
        if self.optim.schedule == "plateau" and not (self.task == "finetune" and self.validations):
            raise ValueError("schedule='plateau' needs the validation loss of fine-tuning: "
                             "validations must be at least 1")  # fmt: skip
        if self.fine_steps < 0 or (self.fine_steps and self.task != "finetune"):
            raise ValueError(f"fine_steps {self.fine_steps}: 0, or more for fine-tuning")
        if self.multigrid and (self.task != "pretrain" or self.model.norm_start != "running"):
            raise ValueError("multigrid is for pretraining, with norm_start='running'")
        if self.multigrid and self.clip.frames < 8:
            raise ValueError(f"multigrid quarters clips: {self.clip.frames} frames, needs 8")
        if self.task == "pretrain" and self.validate_by != DENSE:
            raise ValueError(
                f"validate_by={self.validate_by!r}: pretraining is validated by the share of clips "
                "whose label comes first"
            )
        if self.validation_clips < 1:
            raise ValueError(f"validation_clips {self.validation_clips}: expected at least 1")

    def head_classes(self, classes: int) -> int:
        """Outputs of the head for a data set of `classes` classes."""
        return classes + (self.task == "pretrain" and self.background == "class")


@dataclass(frozen=True)
class ExtractRecipe:
    """How features are extracted; `fresh` builds the network if no stage has trained it."""

    predict: PredictRecipe
    dtype: Dtype = "float16"
    fresh: TrainRecipe | None = None
    pyramid: int = 0
    """Side of the maps of every stage to extract, for two-stream networks; 0: the network's
    features, one vector a step."""


@dataclass(frozen=True)
class HeadRecipe:
    """A model of features and its training; defaults are those of the published Super-Events."""

    model: ModelRecipe = ModelRecipe("linear")
    """A registered model `(features_BDT, lengths_B) -> logits_BKT`; `in_features` comes from the
    features."""
    optim: OptimRecipe = field(
        default_factory=lambda: OptimRecipe(
            steps=2000, batch=16, lr=1e-3, optimizer="adamw", weight_decay=0.0, schedule="plateau",
            patience=3,
        )
    )  # fmt: skip
    tensor: str = FEATURES
    """Name of the tensor that it reads."""
    padding: Literal["masked", "counted"] = "masked"
    """Whether padded steps add to the loss, as in the published code ("counted")."""
    validations: int = 40
    validate_on: Literal["val", "test"] = "val"
    """As in `TrainRecipe`."""
    validate_by: str = DENSE
    """As in `TrainRecipe`."""
    seed: int = 0
    crop: int = 0
    """Train on random crops of this many steps, shorter videos padded to it; 0: whole videos,
    padded to the longest of a batch. Scoring always reads whole videos."""
    heat_map: float = 0.0
    """Weight of the focal loss between a model's heat map and that of the actions (MS-TCT); the
    model must have `with_heat_map`."""
    skip_empty: bool = False
    """Leave videos without actions out of training."""

    def __post_init__(self) -> None:
        if self.crop < 0 or self.heat_map < 0:
            raise ValueError(f"crop {self.crop}, heat_map {self.heat_map}: expected at least 0")


@dataclass(frozen=True)
class ProbeRecipe:
    """Logistic regression on frozen features."""

    predict: PredictRecipe = PredictRecipe()
    l2: float = 1e-3
    """Weight of half the squared norm of the weights, against the mean loss."""
    iterations: int = 200
