"""Stages, validations and searches under other protocols than dense mAP."""

from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial

from ssdet.cli.experiment import Options, resolve
from ssdet.evaluation import PredictionSet
from ssdet.evaluation.protocols.registry import protocol_of
from ssdet.execution.search_driver import TrialSettings, run_chain, run_search
from ssdet.execution.session import Resources
from ssdet.search.early_stopping_check import validations
from ssdet.search.space import chain
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import Arm, Study
from ssdet.studies.changes import scratch
from ssdet.studies.score_files import read_scores
from ssdet.studies.scoring import Scoring
from ssdet.studies.truth import truth

LR = {"finetune_lr": FloatDistribution(1e-4, 1.0, log=True)}
SEGMENTS = "segment_map_average_0.3_0.7/v1"
CLASSES = "dense_map_apmeter/v1"


def ready(smoke, store, lr: float = 0.1, **changes):
    """The search and the stages of one trial, all but the last one run."""
    search = smoke(LR)
    experiment = scratch(search.experiment(FixedTrial({"finetune_lr": lr})))
    experiment = replace(experiment, finetune=replace(experiment.finetune, **changes))
    stages = chain(experiment, search.data).stages
    for stage in stages[:-1]:
        run_stage(Job(stage, store.uri, search.data))
    return search, stages


def by_hand(store, data, stage, protocol, split="val") -> float:
    """Score of the stored predictions."""
    predictions = PredictionSet.open(store.folder(stage) / "predictions" / split)
    return protocol_of(protocol).reading(replace(truth(data, split), predictions=predictions)).value


def test_a_stage_keeps_the_score_of_its_study_beside_its_result(smoke, store) -> None:
    search, stages = ready(smoke, store)
    result = run_stage(Job(stages[-1], store.uri, search.data, protocol=SEGMENTS))
    assert result["scores"]["val"]["protocol"] == "dense_map/v1"
    kept = read_scores(store, stages[-1].id, "segments")["val"]["segment_map_average_0.3_0.7"]
    expected = by_hand(store, search.data, stages[-1].id, SEGMENTS)
    assert kept["value"] == expected
    assert Scoring.of(store, search.data, SEGMENTS).value(stages[-1].id, "val") == expected
    with pytest.raises(ValueError, match="no score on 'test', only on"):
        Scoring.of(store, search.data, SEGMENTS).reading(stages[-1].id)


def test_another_result_or_scorer_is_scored_again(smoke, store, monkeypatch) -> None:
    search, stages = ready(smoke, store)
    stage = stages[-1].id
    result = run_stage(Job(stages[-1], store.uri, search.data, protocol=SEGMENTS))
    assert read_scores(store, stage, "segments")
    with monkeypatch.context() as patch:
        patch.setattr("ssdet.studies.score_files.source_digest", lambda: "0" * 64)
        assert not read_scores(store, stage, "segments")
    (store.folder(stage) / "DONE").unlink()
    store.finish(stage, {**result, "unreadable": {"v": "damaged"}})
    assert not read_scores(store, stage, "segments")


def test_validations_may_be_of_another_protocol(smoke, store) -> None:
    """The last validation is of the weights that are predicted with; dense mAP names no stage."""
    search, stages = ready(smoke, store)
    _, others = ready(smoke, store, validate_by=CLASSES)
    _, named = ready(smoke, store, validate_by="dense_map/v1")
    assert stages[0].id == named[0].id != others[0].id
    for chosen, by in ((stages, "dense_map/v1"), (others, CLASSES)):
        run_stage(Job(chosen[-1], store.uri, search.data))
        last = validations(chosen[0], store)[-1]
        assert last == pytest.approx(by_hand(store, search.data, chosen[-1].id, by), abs=2e-3)
    first, second = (validations(chosen[0], store)[-1] for chosen in (stages, others))
    assert first != second


def test_pretraining_has_no_other_validation(smoke) -> None:
    search = smoke(LR)
    with pytest.raises(ValueError, match="share of clips"):
        replace(search.base.pretrain, validate_by=SEGMENTS)


def test_a_trial_is_worth_its_score_under_the_search_s_protocol(smoke, store) -> None:
    search, stages = ready(smoke, store)
    means = TrialSettings(store.uri, search.data, Resources(1, 1, 0, 1), 0, 20.0, False, SEGMENTS)
    trial = chain(scratch(search.experiment(FixedTrial({"finetune_lr": 0.1}))), search.data)
    found = run_chain(means, trial, lambda metrics: None)
    assert found == {"map": by_hand(store, search.data, stages[-1].id, SEGMENTS)}


def test_a_search_optimises_its_protocol(smoke, store, ray_session) -> None:
    rates = (0.001, 0.05)
    first = tuple({"finetune_lr": rate} for rate in rates)
    search = smoke(LR, name="by", trials=2, first=first, change=scratch, protocol="segments")
    found = run_search(search, store)
    assert found.protocol == SEGMENTS and found.counts() == {"complete": 2}
    for trial in found.trials:
        expected = by_hand(store, search.data, trial.stages["validate"], SEGMENTS)
        assert trial.values["map"] == expected
    best = max(found.trials, key=lambda trial: (trial.values["map"], -trial.number))
    assert found.best().number == best.number
    with pytest.raises(ValueError, match="protocol"):
        run_search(replace(search, protocol="dense"), store)


def test_a_scheduler_stops_trials_by_the_search_s_protocol(smoke) -> None:
    fixed = FixedTrial({"finetune_lr": 0.1})
    search = smoke(LR, scheduler="asha", protocol="segments")
    assert search.experiment(fixed).finetune.validate_by == SEGMENTS
    assert smoke(LR, protocol="segments").experiment(fixed) == smoke(LR).experiment(fixed)
    assert smoke(LR, scheduler="asha").experiment(fixed) == smoke(LR).experiment(fixed)


def test_the_command_line_names_the_protocol(shapes) -> None:
    study = Study("s", (Arm("cls"),), protocol="sampled25_mstct")
    options = Options(preset="smoke")
    assert resolve(study, options).protocol == "sampled25_map_mstct/v1"
    asked = replace(options, protocol="charades_official")
    assert resolve(study, asked).protocol == "charades_official_map/v1"
    with pytest.raises(ValueError, match="no protocol named 'mine'"):
        resolve(study, replace(options, protocol="mine"))
