"""Changes that arms make to the base experiment."""

from dataclasses import replace
from typing import Any

from ssdet.data.clips import ClipRecipe
from ssdet.studies.experiment import Change, Experiment, declared, declaring, unchanged


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


def finetuned_as(model: str, change: Change = unchanged) -> Change:
    """A change that is fine-tuned as another network, which takes over the pretrained weights."""

    @declaring("finetune.model", *declared(change))
    def changed(experiment: Experiment) -> Experiment:
        experiment = change(experiment)
        network = replace(experiment.finetune.model, name=model)
        return replace(experiment, finetune=replace(experiment.finetune, model=network))

    return changed
