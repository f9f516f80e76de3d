"""Changes that arms make to the base experiment."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ssdet.data.loading.recipe import ClipRecipe
from ssdet.studies.experiment import Change, Experiment, declared, declaring, unchanged
from ssdet.training.heads.published_recipes import published_head
from ssdet.training.recipe import TrainRecipe

EVERY_STEP = 1_000_000
"""Of any video."""
VALIDATIONS = 2
"""Of a model of features that is not trained as published."""


@declaring("start", "pretrain")
def scratch(experiment: Experiment) -> Experiment:
    """No pretraining."""
    return replace(experiment, pretrain=None, start=None)


@declaring("pretrain.readout", "pretrain.augment", "pretrain.augment_options")
def classification(experiment: Experiment) -> Experiment:
    """Pretraining on the clip's averaged features, one label a clip: the paper's baseline."""
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
    """Detection pretraining with a volume augmentation of `ssdet.augment.create`."""
    return pretraining(augment=name, augment_options=options)


def lasting(share: float, change: Change = unchanged) -> Change:
    """A change whose pretraining takes this share of its steps, one at least."""

    @declaring("pretrain.optim.steps", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        if experiment.pretrain is None:
            raise ValueError(f"lasting({share}): this experiment has no pretraining to change")
        optim = experiment.pretrain.optim
        optim = replace(optim, steps=max(1, round(share * optim.steps)))
        return pretraining(optim=optim)(experiment)

    return changed


def from_checkpoint(start: Change, change: Change) -> Change:
    """A change whose pretraining goes on from where another one ended.

    The other one is the very stage that an arm with the change `start` has.
    """

    @declaring("start", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        return replace(change(experiment), start=start(experiment).pretrain)

    return changed


def coarser(factor: int, change: Change = unchanged) -> Change:
    """A change whose clips hold, after pretraining, every factor-th frame of the same stretch."""

    def cut(clip: ClipRecipe) -> ClipRecipe:
        return replace(clip, stride=clip.stride * factor, frames=clip.frames // factor)

    @declaring("finetune.clip", "predict.clip", "probe.predict.clip", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment, probe = change(experiment), experiment.probe
        predict = replace(experiment.predict, clip=cut(experiment.predict.clip))
        if probe is not None:
            probe = replace(probe, predict=replace(probe.predict, clip=cut(probe.predict.clip)))
        finetune = replace(experiment.finetune, clip=cut(experiment.finetune.clip))
        return replace(experiment, finetune=finetune, predict=predict, probe=probe)

    return changed


def finetuned_as(model: str, change: Change = unchanged, **options: Any) -> Change:
    """A change that is fine-tuned as a stream built over the pretrained network, its `backbone`,
    whose weights it takes over. The frozen probe of that is another arm's."""

    @declaring("finetune", "probe", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        return replace(experiment, finetune=_over(experiment, model, options), probe=None)

    return changed


def _over(experiment: Experiment, name: str, options: Mapping[str, Any]) -> TrainRecipe:
    recipe = experiment.finetune
    inside = {"backbone": recipe.model.name, "backbone_options": dict(recipe.model.options)}
    model = replace(recipe.model, name=name, options={**inside, **options})
    return replace(recipe, model=model, clip=experiment.kit.stream or recipe.clip)


def on_features(model: str, change: Change = unchanged, **options: Any) -> Change:
    """A change whose scores are those of a model of the fine-tuned network's features, trained on
    them when the network is done."""

    @declaring("head", "probe", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        kit = experiment.kit
        head = published_head(model, kit.videos, **{**kit.head_options.get(model, {}), **options})
        if kit.head_optim is not None:
            head = replace(head, optim=kit.head_optim, validations=VALIDATIONS)
        return replace(experiment, head=head, probe=None)

    return changed


def two_stream(
    model: str, coarse: Change = unchanged, fine: Change = unchanged, **options: Any
) -> Change:
    """A two-stream network in two stages (MODELS.md 5.1): the fine stream is fine-tuned alone; the
    other one with the fusion on its features, which no longer change.

    coarse, fine: what each stream's pretraining is.
    """

    @declaring("finetune", "fine_stream", "probe", *declared(coarse))
    def changed(experiment: Experiment) -> Experiment:
        own, kit = coarse(experiment), experiment.kit
        fine_stream = replace(fine(experiment), probe=None)
        tuned = _over(own, model, {"grid": kit.grid, "own_fine": False, **options})
        steps = kit.steps if model == "coarse_fine" else EVERY_STEP
        tuned = replace(tuned, fine_steps=steps, optim=kit.fusion or tuned.optim)
        return replace(own, finetune=tuned, fine_stream=fine_stream, probe=None)

    return changed
