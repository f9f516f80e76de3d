"""Builder of stages, for arms, trials of a search, tuned arms, probes, heads and ensembles."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ssdet.studies.data import Data
from ssdet.studies.experiment import Experiment
from ssdet.studies.graph.identity import EnsembleRecipe, FrozenProbe, Stage, data_fingerprint
from ssdet.training.pretrained_weights import check_normalisation
from ssdet.training.recipe import ExtractRecipe, HeadRecipe, TrainRecipe


class StageGraph:
    """Stages over the data sets of one study; equal stages are the same object."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._stages: dict[str, Stage] = {}

    def stage(self, kind: str, recipe: Any, parents: tuple[Stage, ...] = ()) -> Stage:
        """The stage with this kind, recipe and parents."""
        stage = Stage(kind, recipe, parents, data_fingerprint(self.data, kind, recipe))
        return self._stages.setdefault(stage.id, stage)

    def scoring(self, experiment: Experiment, kind: str = "predict") -> Stage:
        """The stage that scores videos with an experiment's network, and all its ancestors.

        kind: `predict` scores the validation and test splits, `validate` the validation split
        only; both have the same ancestors. ValueError where recipes contradict each other.
        """
        if experiment.head is not None and experiment.fine_stream is not None:
            raise ValueError(
                "a head reads the features of one network: drop either `head` or `fine_stream`"
            )
        maps = self._fine_stream(experiment)
        tuned = self._finetuned(experiment, maps)
        if experiment.head is None:
            return self.stage(kind, experiment.predict, (tuned, *maps))
        features = self.features(ExtractRecipe(experiment.predict), tuned)
        return self.head_scoring(self.head(experiment.head, features), kind)

    def probe(self, experiment: Experiment) -> Stage | None:
        """The linear probe of the pretrained features; None for an experiment without one."""
        if experiment.probe is None:
            return None
        pretrained = self._pretrained(experiment)
        fresh = None if pretrained else experiment.finetune
        return self.stage("probe", FrozenProbe(experiment.probe, fresh), pretrained)

    def ensemble(self, members: Iterable[Stage]) -> Stage:
        """The mean of scoring stages; their order does not change the stage."""
        ordered = tuple(sorted(members, key=lambda stage: stage.id))
        return self.stage("ensemble", EnsembleRecipe(), ordered)

    def features(self, recipe: ExtractRecipe, trained: Stage | None = None) -> Stage:
        """Features of all untrimmed videos, from the network of a training stage or that of
        `recipe.fresh`; ValueError for both or neither."""
        if (trained is None) == (recipe.fresh is None):
            raise ValueError("features come from a trained stage or from recipe.fresh: give one")
        return self.stage("extract", recipe, () if trained is None else (trained,))

    def head(self, recipe: HeadRecipe, features: Stage) -> Stage:
        """A head, trained on the features of the training videos of an extraction."""
        return self.stage("fit_head", recipe, (features,))

    def head_scoring(self, head: Stage, kind: str = "predict") -> Stage:
        """The stage that scores videos with a head."""
        return self.stage(kind, head.parents[0].recipe.predict, (head,))

    def _pretrained(self, experiment: Experiment) -> tuple[Stage, ...]:
        """The last pretraining, which starts from the one before; empty without pretraining."""
        last: tuple[Stage, ...] = ()
        for recipe in experiment.pretrainings:
            last = (self.stage("pretrain", _continued(last, recipe), last),)
        return last

    def _finetuned(self, experiment: Experiment, maps: tuple[Stage, ...] = ()) -> Stage:
        start = self._pretrained(experiment)
        _check_normalisation(experiment)
        return self.stage("finetune", _continued(start, experiment.finetune), (*start, *maps))

    def _fine_stream(self, experiment: Experiment) -> tuple[Stage, ...]:
        """The extraction of the fine stream's feature maps; empty for a network of one stream."""
        fine = experiment.fine_stream
        if fine is None:
            return ()
        grid = experiment.finetune.model.options.get("grid", 7)
        return (self.features(ExtractRecipe(fine.predict, pyramid=grid), self._finetuned(fine)),)


def _continued(start: tuple[Stage, ...], recipe: TrainRecipe) -> TrainRecipe:
    """The recipe without initial weights where the training starts from a parent stage.

    ValueError where the two normalise clips differently.
    """
    if not start:
        return recipe
    parent: TrainRecipe = start[0].recipe
    source = f"{parent.task}ing with {parent.model.name}"
    check_normalisation(recipe, (parent.clip.mean, parent.clip.std), source)
    return replace(recipe, model=replace(recipe.model, weights=""))


def _check_normalisation(experiment: Experiment) -> None:
    """Raise ValueError where scoring and fine-tuning normalise frames differently."""
    trained, scored = experiment.finetune.clip, experiment.predict.clip
    if (trained.mean, trained.std) != (scored.mean, scored.std):
        raise ValueError(
            f"predict normalises by {scored.mean} and {scored.std}, fine-tuning by {trained.mean} "
            f"and {trained.std}: give predict.clip the mean and std of finetune.clip"
        )
