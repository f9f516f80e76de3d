"""Studies under other protocols: what is scored, compared, selected on and printed."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from ssdet import results
from ssdet.evaluation import (
    PROTOCOLS,
    PredictionSet,
    PredictionWriter,
    Reading,
    multithumos_map,
    sampled25_map,
)
from ssdet.evaluation.protocols.activitynet import activitynet_average_precision
from ssdet.evaluation.protocols.charades_official import localization, official_points, truth_of
from ssdet.evaluation.protocols.dense import dense_map
from ssdet.evaluation.protocols.segments import (
    frame_segments,
    segment_average_precision,
    truth_segments,
)
from ssdet.results.proof.bundle import write_bundle
from ssdet.results.proof.verify import verify
from ssdet.results.queries.ensembles import Query, build
from ssdet.results.queries.rescore import rescore
from ssdet.results.tables.columns import formatted_table
from ssdet.results.tables.result_table import result_table, write_csv
from ssdet.studies import Study, plan, scoring
from ssdet.studies.graph.record import write_record
from ssdet.studies.scoring import Scoring
from ssdet.studies.truth import annotation

BY_HAND = {
    "dense_apmeter": lambda p, m, t: dense_map(p, t, "zero").value,
    "dense_pdan": lambda p, m, t: dense_map(p, t, "nonzero").value,
    "sampled25_mstct": lambda p, m, t: sampled25_map(p, t, "mstct").value,
    "multithumos": lambda p, m, t: multithumos_map(p, m).value,
    "multithumos_steps": lambda p, m, t: multithumos_map(p, m, None).value,
    "charades_official": lambda p, m, t: localization(official_points(p, truth_of(m)), truth_of(m))[
        "map"
    ],
    "segments": lambda p, m, t: np.nanmean(
        segment_average_precision(segments_of(p), truth_segments(m), m.num_classes)
    ),
    "activitynet": lambda p, m, t: np.nanmean(
        activitynet_average_precision(segments_of(p), truth_segments(m), m.num_classes)
    ),
}
"""The evaluation functions themselves, of predictions, annotation and dense labels."""


def segments_of(predictions):
    return {v: frame_segments(predictions[v], predictions.clock(v)) for v in predictions}


def under(finished, protocol):
    """The finished study's plan under another protocol."""
    planned = finished.plan
    return replace(planned, study=replace(planned.study, protocol=protocol))


@pytest.mark.parametrize("name", BY_HAND)
def test_the_table_has_the_numbers_of_the_evaluation_function(finished, name) -> None:
    data, store = finished.plan.study.data, finished.store
    targets = finished.targets["test"]
    truth = annotation(data.downstream.format, data.downstream.path, targets)
    before = {stage: store.result(stage) for stage in finished.plan.stages}
    table = result_table(under(finished, name), store, resamples=20)
    steps = "multithumos_map_steps_12fps/v1"
    assert table.protocol == (steps if name == "multithumos_steps" else PROTOCOLS[name].id)
    rows = {row.arm: row for row in table.rows}
    for run in finished.plan.runs:
        folder = store.folder(run.predict.id) / "predictions" / "test"
        expected = BY_HAND[name](PredictionSet.open(folder), truth, targets)
        found = rows[run.arm].cells["finetuned"].scores[run.seed]
        assert found == pytest.approx(expected, abs=1e-12), (run.arm, run.seed)
    base = rows["cls"].cells["finetuned"]
    for row in (rows["view"], rows["pair"]):
        cell = row.cells["finetuned"]
        assert cell.difference.difference == pytest.approx(cell.mean - base.mean, abs=1e-6)
        assert cell.difference.low <= cell.difference.high
    assert before == {stage: store.result(stage) for stage in finished.plan.stages}


def test_scores_are_computed_once_and_kept_beside_the_stage(finished, monkeypatch) -> None:
    planned, store = under(finished, "segments"), finished.store
    first = result_table(planned, store, resamples=20)
    assert (store.folder(finished.id("view")) / "scores" / "segments.json").is_file()
    scored = []
    monkeypatch.setattr(Scoring, "_scored", lambda *a: scored.append(a))
    assert result_table(planned, store, resamples=20) == first and not scored
    assert "segment_map_average_0.3_0.7" in results.open(store.root).columns


def test_rescored_numbers_are_those_of_the_study(finished) -> None:
    stage, store = finished.id("view"), finished.store
    (again,) = [
        reading
        for reading in rescore(results.open(store.root), stage, ["segments"]).readings["test"]
        if reading.protocol == PROTOCOLS["segments"].id
    ]
    data = finished.plan.study.data
    assert Scoring.of(store, data, "segments")._scored(stage, "test")[-1] == again


def test_arms_may_stand_in_another_order_under_another_protocol(finished) -> None:
    """Scores that are flat in time rank frames as well as ever, and find no segment ends."""
    store, data = finished.store, finished.plan.study.data
    for seed in range(3):
        folder = store.folder(finished.id("fresh", seed)) / "predictions" / "test"
        with PredictionWriter(folder, data.manifests["downstream"].num_classes) as writer:
            for video, truth in finished.targets["test"].items():
                holes = np.arange(len(truth)) % 12 < 9
                writer.add(video, np.where(truth & holes[:, None], 0.9, 0.02), 12)
        score = dense_map(PredictionSet.open(folder), finished.targets["test"])
        stage = finished.id("fresh", seed)
        reported = store.result(stage)
        reported["scores"]["test"] |= {"value": score.value}
        store.finish(stage, reported)
    tables = [
        result_table(under(finished, name), store, resamples=20)
        for name in ("dense", "activitynet")
    ]
    order = [
        sorted((row.cells["finetuned"].mean, row.arm) for row in table.rows) for table in tables
    ]
    assert [arm for _, arm in order[0]] != [arm for _, arm in order[1]]


def test_titles_and_files_name_the_protocol(finished, tmp_path) -> None:
    table = result_table(under(finished, "segments"), finished.store, resamples=20)
    shown = formatted_table(table)
    assert "segment_map_average_0.3_0.7, fine-tuned" in shown.header
    assert any("Protocol segment_map_average_0.3_0.7/v1" in note for _, note in shown.notes)
    write_csv(table, tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert {line["protocol"] for line in lines} == {"segment_map_average_0.3_0.7/v1"}
    dense = formatted_table(result_table(finished.plan, finished.store, resamples=20))
    assert "mAP, fine-tuned" in dense.header


def test_comparisons_are_of_the_study_s_protocol(finished) -> None:
    planned = under(finished, "segments")
    write_record(finished.store, planned)
    opened = results.open(finished.store.root)
    found = opened.compare("cls", "view", resamples=30)
    table = result_table(planned, finished.store, resamples=30)
    cells = {row.arm: row.cells["finetuned"] for row in table.rows}
    assert found.protocol == table.protocol
    assert (found.mean_a, found.mean_b) == (cells["cls"].mean, cells["view"].mean)
    assert found.bootstrap == cells["view"].difference
    dense = replace(finished.plan.study, name="dense_one")
    write_record(finished.store, replace(finished.plan, study=dense))
    opened = results.open(finished.store.root)
    assert opened.compare("cls", "view", "dense_one", resamples=30).protocol == "dense_map/v1"
    with pytest.raises(ValueError, match="runs or scores in each of ablate_cutmix, dense_one"):
        opened.compare("cls", "view")


def test_a_bundle_proves_a_table_of_another_protocol(finished, tmp_path) -> None:
    for name in ("charades_official", "segments"):
        write_record(finished.store, under(finished, name))
        out = tmp_path / f"{name}.zip"
        write_bundle(results.open(finished.store.root), "ablate_cutmix", out)
        found = verify(out)
        assert found.holds, found.differences
        assert PROTOCOLS[name].id in found.table


def test_ensembles_are_selected_and_scored_by_a_protocol(finished) -> None:
    opened = results.open(finished.store.root)
    found = build(opened, Query(fit="greedy", protocol="segments"), resamples=20)
    single = Scoring.of(finished.store, finished.plan.study.data, "segments")
    for one in found.ensembles:
        assert isinstance(one.score, Reading)
        assert one.score.protocol == "segment_map_average_0.3_0.7/v1"
        for member in one.members:
            assert member.gain.single == single.value(member.run)
        held_out = max(single.value(member.run, "val") for member in one.members)
        assert one.held_out >= held_out
    assert found.gain.difference == pytest.approx(found.mean - np.mean(found.singles), abs=1e-6)


def test_unsuitable_protocols_are_refused_when_planned(finished) -> None:
    study = finished.plan.study
    with pytest.raises(ValueError, match="no protocol named 'charades'"):
        Study("s", study.arms, protocol="charades")
    assert plan(replace(study, protocol="charades_official")).stages == finished.plan.stages
    material = scoring.annotated(study.data, "test")
    poor = replace(
        material,
        manifest=replace(material.annotated, classes=(*material.annotated.classes, "never")),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "annotated", lambda *_: replace(poor, format="charades"))
        with pytest.raises(ValueError, match="'multithumos' cannot score .* has another"):
            plan(replace(study, protocol="multithumos"))
        with pytest.raises(ValueError, match="cannot score the test videos") as refused:
            plan(replace(study, protocol="charades_official"))
    able = str(refused.value).partition("choose from ")[2].split(", ")
    assert "segments" in able and "dense" in able and "charades_official" not in able


def test_the_best_run_of_a_study_is_that_of_its_protocol(finished) -> None:
    planned = under(finished, "segments")
    write_record(finished.store, planned)
    result_table(planned, finished.store, resamples=20)
    opened = results.open(finished.store.root)
    found = opened.best(studies="ablate_cutmix")
    data = finished.plan.study.data
    by_segments = Scoring.of(finished.store, data, "segments")
    ends = [run.predict.id for run in planned.runs if run.arm != "pair"]
    assert found.id == max(ends, key=by_segments.value)
    ensemble = build(opened, Query({"studies": "ablate_cutmix"}), resamples=20)
    assert ensemble.query.protocol == "segment_map_average_0.3_0.7/v1"
