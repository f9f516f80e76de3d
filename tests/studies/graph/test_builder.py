"""One builder of stages: a trial of a search is the chain of stages of the arm that it becomes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial

from ssdet.execution.search_driver import TrialSettings, run_chain
from ssdet.execution.session import Resources
from ssdet.execution.tuning import search_of, with_choices
from ssdet.models import create
from ssdet.search.space import Chain, chain
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import (
    Arm,
    Experiment,
    Search,
    Store,
    Study,
    Tuning,
    augmented,
    classification,
    every_nth_frame,
    finetuned_as,
    from_checkpoint,
    on_features,
    plan,
    pretraining,
    scaled_pretraining,
    scratch,
    two_stream,
)
from ssdet.studies.experiment import Change, unchanged
from ssdet.studies.graph.builder import StageGraph
from ssdet.studies.graph.identity import data_fingerprint, stored_stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.training.recipe import ExtractRecipe, OptimRecipe

TRAINED = ["pretrain", "finetune"]
ON_FEATURES = [*TRAINED, "extract", "fit_head"]
TWO_STREAM = ["pretrain", "pretrain", "finetune", "extract", "finetune"]
PARAMS = {"finetune_lr": 0.03125, "weight_decay": 0.0009765625}
FEW = OptimRecipe(steps=8, batch=4, lr=0.01, optimizer="adamw", weight_decay=0.0)


def no_probe(experiment: Experiment) -> Experiment:
    return replace(experiment, probe=None)


def on_test_videos(experiment: Experiment) -> Experiment:
    """The learning rate follows the test videos, as in the published code."""
    optim = replace(experiment.finetune.optim, schedule="plateau")
    return replace(experiment, finetune=replace(experiment.finetune, optim=optim,
                                                validate_on="test"))  # fmt: skip


KINDS: Mapping[str, tuple[Change, list[str]]] = {
    "detection": (unchanged, TRAINED),
    "classification": (classification, TRAINED),
    "scratch": (scratch, ["finetune"]),
    "augmented": (augmented("cutmix", window="view"), TRAINED),
    "joint": (augmented("joint"), TRAINED),
    "without a probe": (no_probe, TRAINED),
    "from a checkpoint": (
        from_checkpoint(classification, scaled_pretraining(0.5, augmented("mixup"))),
        ["pretrain", "pretrain", "finetune"],
    ),
    "every_nth_frame": (every_nth_frame(4, augmented("mixup")), TRAINED),
    "validated on test": (on_test_videos, TRAINED),
    "super_events": (on_features("super_events", classification), ON_FEATURES),
    "tgm": (on_features("tgm", classification, hidden=16), ON_FEATURES),
    "tgm_super_events": (on_features("tgm_super_events", augmented("freeze")), ON_FEATURES),
    "pdan": (on_features("pdan", classification), ON_FEATURES),
    "ms_tct": (on_features("ms_tct", classification), ON_FEATURES),
    "a head from scratch": (on_features("tgm", scratch), ["finetune", "extract", "fit_head"]),
    "slowfast_det": (two_stream("slowfast_det", classification, classification), TWO_STREAM),
    "coarse_fine": (two_stream("coarse_fine", augmented("cutmix"), classification), TWO_STREAM),
    "coarse": (finetuned_as("coarse", augmented("cutmix")), TRAINED),
    "coarse_fine at once": (finetuned_as("coarse_fine", augmented("cutmix"), grid=3), TRAINED),
}
"""A change for each kind of arm, and the kinds of the stages that train it, parents first."""


@pytest.fixture
def searched(smoke: Callable[..., Search]) -> Callable[..., Search]:
    """Searches over the arms that a change makes of the preset `smoke`."""

    def search(change: Change, space: Any = None, **fields: Any) -> Search:
        base = smoke({}).base
        assert base is not None
        base = replace(base, second_network=replace(base.second_network, head_optim=FEW))
        space = space or dict.fromkeys(PARAMS, FloatDistribution(1e-4, 1.0, log=True))
        return replace(smoke(space, seed=3, change=change, **fields), base=base)

    return search


def agree(trial: Chain, search: Search, change: Change) -> None:
    """The trial's stages are those of an arm with this change, but for the splits scored last."""
    study = Study("s", (Arm("best", change),), (search.seed,), base=search.base, data=search.data)
    (run,) = plan(study).runs
    below = {stage.id for stage in ancestry(run.predict)} - {run.predict.id}
    *trained, end = trial.stages
    assert {stage.id for stage in trained} == below
    assert (end.kind, run.predict.kind) == ("validate", "predict")
    assert [parent.id for parent in end.parents] == [parent.id for parent in run.predict.parents]
    assert end.recipe == run.predict.recipe
    assert set(trial.ids.values()) == below | {end.id}


@pytest.mark.parametrize("name", KINDS)
def test_a_trial_is_the_chain_of_the_arm_that_it_becomes(searched, name) -> None:
    change, kinds = KINDS[name]
    search = searched(change)
    trial = chain(search.experiment(FixedTrial(PARAMS)), search.data)
    assert [stage.kind for stage in trial.stages] == [*kinds, "validate"]
    agree(trial, search, lambda base: search.chosen(PARAMS)(change(base)))


def test_no_trial_is_stopped_by_test_videos(searched) -> None:
    search = searched(on_test_videos, scheduler="asha")
    with pytest.raises(ValueError, match="test split: set validate_on='val'"):
        search.experiment(FixedTrial(PARAMS))
    below = replace(search, change=lambda e: KINDS["pdan"][0](on_test_videos(e)))
    assert below.experiment(FixedTrial(PARAMS)).head.validate_on == "val"


@pytest.mark.parametrize("name", ["detection", "pdan", "coarse_fine"])
def test_a_space_that_chooses_the_arm_gives_its_chain(searched, name) -> None:
    def space(trial):
        return KINDS[trial.suggest_categorical("arm", list(KINDS))][0]

    search = searched(unchanged, space)
    trial = chain(search.experiment(FixedTrial({"arm": name})), search.data)
    agree(trial, search, KINDS[name][0])


@pytest.mark.parametrize("name", KINDS)
def test_a_tuned_arm_is_the_chain_of_its_trial(searched, name) -> None:
    change, _ = KINDS[name]
    base = searched(change)
    study = Study("s", (Arm("arm", change),), (0,), base=base.base, data=base.data)
    knobs = {"finetune_lr": (0.01, 0.02), "finetune_steps": (3, 5)}
    search = search_of(study, study.arm("arm"), Tuning(knobs, seed=7))
    params = {"finetune_lr": 0.02, "finetune_steps": 5}
    trial = chain(search.experiment(FixedTrial(params)), search.data)
    tuned = with_choices(study, {"arm": params}).arm("arm, tuned")
    agree(trial, replace(search, base=base.base), tuned.change)


def test_imported_weights_are_named_by_their_content(searched, tmp_path) -> None:
    base = searched(unchanged).base
    model = base.pretrain.model
    network = create(model.name, 8, generator=torch.Generator().manual_seed(0), **model.options)
    ids = []
    for folder in ("here", "there"):
        path = tmp_path / folder / "weights.pt"
        path.parent.mkdir()
        torch.save({"model": network.state_dict()}, path)
        search = searched(pretraining(model=replace(model, weights=str(path))))
        trial = chain(search.experiment(FixedTrial(PARAMS)), search.data)
        agree(trial, search, lambda e, s=search: s.chosen(PARAMS)(s.change(e)))
        ids.append(trial.ids)
    plain = chain(searched(unchanged).experiment(FixedTrial(PARAMS)), search.data)
    assert ids[0] == ids[1] and not {*ids[0].values()} & {*plain.ids.values()}


def test_weights_of_a_network_that_goes_on_from_a_stage_do_not_name_it(searched, tmp_path) -> None:
    """Its weights are those of the stage, whatever its recipe starts from on its own."""
    (tmp_path / "weights.pt").write_bytes(b"never read")

    def started(experiment: Experiment) -> Experiment:
        model = replace(experiment.finetune.model, weights=str(tmp_path / "weights.pt"))
        return replace(experiment, finetune=replace(experiment.finetune, model=model))

    ids = []
    for change in (unchanged, started):
        search = searched(change)
        ids.append(chain(search.experiment(FixedTrial(PARAMS)), search.data).ids)
    assert ids[0] == ids[1]


def test_equal_stages_are_one_object_and_ids_name_the_data_read(searched) -> None:
    search = searched(unchanged)
    graph = StageGraph(search.data)
    end, probe = graph.scoring(search.base), graph.probe(search.base)
    assert graph.scoring(search.base) is end
    assert probe.parents[0] is end.parents[0].parents[0]
    other = StageGraph(replace(search.data, decode_size=20)).scoring(search.base)
    assert not {s.id for s in ancestry(end)} & {s.id for s in ancestry(other)}
    tuned = on_test_videos(search.base).finetune
    read = data_fingerprint(search.data, "finetune", tuned).split(",")
    videos = search.data.manifests["downstream"]
    assert read[:-1] == [videos.split(name).fingerprint for name in ("train", "val", "test")]
    with pytest.raises(ValueError, match="give one"):
        graph.features(ExtractRecipe(search.base.predict))


@pytest.mark.parametrize("name", ["pdan", "coarse_fine"])
def test_a_trial_scores_the_network_of_the_arm(searched, store: Store, name: str) -> None:
    change, _ = KINDS[name]
    search = searched(change)
    trial = chain(search.experiment(FixedTrial(PARAMS)), search.data)
    reports: list[Mapping[str, Any]] = []
    settings = TrialSettings(
        store.uri, search.data, Resources(1, 1.0, 0.0, 1), 0, 60.0, True, search.protocol
    )
    values = run_chain(settings, trial, reports.append)
    study = Study(
        "s", (Arm("best", lambda e: search.chosen(PARAMS)(change(e))),), (search.seed,),
        base=search.base, data=search.data,
    )  # fmt: skip
    end = plan(study).runs[0].predict
    assert all(store.result(parent.id) is not None for parent in end.parents)
    arm = run_stage(Job(end, store.uri, search.data))
    assert values["map"] == arm["scores"]["val"]["value"] and values["macs"] > 0
    # Trials are compared by the training whose network is scored, not by one before it.
    last = store.result(trial.stages[-1].parents[0].id)
    compared = [metrics for metrics in reports if "rung" in metrics]
    assert [m["rung"] for m in compared] == [*range(1, compared[0]["rungs"] + 1)]
    assert compared[-1]["map"] == last["validation"]
    assert stored_stage(store.fetch, end.id).identity == end.identity
