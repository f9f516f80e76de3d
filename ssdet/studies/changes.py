"""Changes that arms make to the base experiment."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.studies.experiment import Change, Experiment, declared, declaring, unchanged
from ssdet.training.heads.published_recipes import published_head
from ssdet.training.recipe import TrainRecipe

ALL_STEPS = 1_000_000
"""Upper bound on the steps of any video; used to mean all."""
HEAD_VALIDATIONS = 2
"""Validations of a head whose schedule is the preset's, not the published one."""


@declaring("start", "pretrain")
def scratch(experiment: Experiment) -> Experiment:
    """Fine-tune from fresh weights, without pretraining."""
    return replace(experiment, pretrain=None, start=None)


@declaring("pretrain.readout", "pretrain.augment", "pretrain.augment_options")
def classification(experiment: Experiment) -> Experiment:
    """Pretrain by classification, one label per clip on its averaged features: the paper's
    baseline."""
    return pretraining(readout="clip", augment="none")(experiment)


def pretraining(**fields: Any) -> Change:
    """Change these fields of the pretraining recipe."""

    @declaring(*(f"pretrain.{name}" for name in fields))
    def change(experiment: Experiment) -> Experiment:
        if experiment.pretrain is None:
            raise ValueError(f"pretraining({fields}): this experiment has no pretraining to change")
        return replace(experiment, pretrain=replace(experiment.pretrain, **fields))

    return change


def finetuning(**fields: Any) -> Change:
    """Change these fields of the fine-tuning recipe."""

    @declaring(*(f"finetune.{name}" for name in fields))
    def change(experiment: Experiment) -> Experiment:
        return replace(experiment, finetune=replace(experiment.finetune, **fields))

    return change


def augmented(name: str, **options: Any) -> Change:
    """Pretrain for detection with a volume augmentation of `ssdet.augment.create`."""
    return pretraining(augment=name, augment_options=options)


def scaled_pretraining(share: float, change: Change = unchanged) -> Change:
    """Pretrain for this share of the steps, at least one."""

    @declaring("pretrain.optim.steps", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        if experiment.pretrain is None:
            raise ValueError(
                f"scaled_pretraining({share}): this experiment has no pretraining to change"
            )
        optim = experiment.pretrain.optim
        optim = replace(optim, steps=max(1, round(share * optim.steps)))
        return pretraining(optim=optim)(experiment)

    return changed


def from_checkpoint(start: Change, change: Change) -> Change:
    """Start the pretraining of `change` from the end of the pretraining of `start`.

    The latter is the same stage as in an arm with the change `start`.
    """

    @declaring("start", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        return replace(change(experiment), start=start(experiment).pretrain)

    return changed


def every_nth_frame(n: int, change: Change = unchanged) -> Change:
    """Fine-tune and score on every n-th frame of the clips; pretraining stays as it is."""

    def thinned(clip: ClipRecipe) -> ClipRecipe:
        return replace(clip, stride=clip.stride * n, frames=clip.frames // n)

    @declaring("finetune.clip", "predict.clip", "probe.predict.clip", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment, probe = change(experiment), experiment.probe
        predict = replace(experiment.predict, clip=thinned(experiment.predict.clip))
        if probe is not None:
            probe = replace(probe, predict=replace(probe.predict, clip=thinned(probe.predict.clip)))
        finetune = replace(experiment.finetune, clip=thinned(experiment.finetune.clip))
        return replace(experiment, finetune=finetune, predict=predict, probe=probe)

    return changed


def finetuned_as(model: str, change: Change = unchanged, **options: Any) -> Change:
    """Fine-tune a network `model` whose `backbone` is the pretrained network.

    The arm has no probe: a probe of the same pretrained network belongs to the arm `change`.
    """

    @declaring("finetune", "probe", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        return replace(experiment, finetune=_with_backbone(experiment, model, options), probe=None)

    return changed


def _with_backbone(experiment: Experiment, name: str, options: Mapping[str, Any]) -> TrainRecipe:
    recipe = experiment.finetune
    backbone = {"backbone": recipe.model.name, "backbone_options": dict(recipe.model.options)}
    model = replace(recipe.model, name=name, options={**backbone, **options})
    return replace(recipe, model=model, clip=experiment.second_network.stream_clip or recipe.clip)


def on_features(model: str, change: Change = unchanged, **options: Any) -> Change:
    """Score with a head, a model that is trained on the features of the fine-tuned network."""

    @declaring("head", "probe", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        defaults = experiment.second_network
        settings = {**defaults.head_options.get(model, {}), **options}
        head = published_head(model, defaults.epoch_videos, **settings)
        if defaults.head_optim is not None:
            head = replace(head, optim=defaults.head_optim, validations=HEAD_VALIDATIONS)
        return replace(experiment, head=head, probe=None)

    return changed


def two_stream(
    model: str, coarse: Change = unchanged, fine: Change = unchanged, **options: Any
) -> Change:
    """Train a two-stream network in two stages: first the fine stream alone, then the other stream
    with the fusion on the fine stream's frozen features (Coarse-Fine Networks, CVPR 2021).

    coarse, fine: changes that give the pretraining of each stream.
    """

    @declaring("finetune", "fine_stream", "probe", *declared(coarse))
    def changed(experiment: Experiment) -> Experiment:
        own, defaults = coarse(experiment), experiment.second_network
        fine_stream = replace(fine(experiment), probe=None)
        fusion = {"grid": defaults.grid, "own_fine": False, **options}
        tuned = _with_backbone(own, model, fusion)
        steps = defaults.fine_steps if model == "coarse_fine" else ALL_STEPS
        tuned = replace(tuned, fine_steps=steps, optim=defaults.fusion_optim or tuned.optim)
        return replace(own, finetune=tuned, fine_stream=fine_stream, probe=None)

    return changed
