"""Tables from prediction sets that are written by hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.results.tables import cells, footnotes, result_table, write_csv, write_markdown
from ssdet.studies import Arm, Store, Study, Table, augmented, classification, plan
from ssdet.training.inference import frame_targets

ARMS = (
    Arm("cls", classification, "classification"),
    Arm("mixup", augmented("mixup")),
    Arm("control", seeds_of="mixup", size=3),
)
NOISE = {"cls": 1.0, "mixup": 0.6, "control": 0.3}


@pytest.fixture
def made(shapes, tmp_path):
    """A finished study whose scores are the truth under noise, less of it for better arms."""
    study = Study("made", ARMS, table=Table("Made up", "cls", {"mixup": 19.18}, "Table 1."))
    planned = plan(resolve(study, Options(preset="smoke", seeds=3)))
    store = Store.open(tmp_path)
    data = planned.study.data
    manifest = data.split("downstream", "test")
    targets = frame_targets(manifest, data.reader("downstream"))
    for run in planned.runs:
        for stage in filter(None, (run.predict, run.probe)):
            rng = np.random.default_rng([run.seed, len(run.arm), len(stage.kind)])
            folder = store.folder(stage.id) / "predictions" / "test"
            with PredictionWriter(folder, manifest.num_classes) as writer:
                for name, truth in targets.items():
                    noisy = truth + NOISE[run.arm] * rng.normal(size=truth.shape)
                    writer.add(name, 1 / (1 + np.exp(-noisy)), 12)
            score = dense_map(PredictionSet.open(folder), targets)
            store.finish(stage.id, {"scores": {"test": score.__dict__}})
    return planned, store


def test_means_spreads_and_differences(made) -> None:
    table = result_table(*made, resamples=200)
    rows = {row.arm: row.cells for row in table.rows}
    for readout in ("finetuned", "probe"):
        base, mixup = rows["cls"][readout], rows["mixup"][readout]
        values = list(mixup.scores.values())
        assert mixup.mean == pytest.approx(np.mean(values))
        assert mixup.sd == pytest.approx(np.std(values, ddof=1))
        assert base.difference is None
        assert mixup.difference.difference == pytest.approx(mixup.mean - base.mean, abs=1e-6)
        assert 0 < mixup.difference.low < mixup.difference.difference < mixup.difference.high
    control = rows["control"]
    assert list(control) == ["finetuned"] and len(control["finetuned"].scores) == 1
    assert control["finetuned"].sd is None
    against_all = control["finetuned"].mean - rows["cls"]["finetuned"].mean
    assert control["finetuned"].difference.difference == pytest.approx(against_all, abs=1e-6)


def test_what_is_quoted_stands_apart(made, tmp_path) -> None:
    table = result_table(*made, resamples=50)
    quoted = [row[5] for row in cells(table)]
    assert quoted == ["", "19.18", ""]
    assert any(note == "Quoted, not measured here: Table 1." for note in footnotes(table))
    write_markdown(table, tmp_path / "table.md")
    assert "8 of 8 videos, 384 frames" in (tmp_path / "table.md").read_text()


def test_equal_results_are_equal_files(made, tmp_path) -> None:
    for name in ("a", "b"):
        write_csv(result_table(*made, resamples=50), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = list(csv.DictReader((tmp_path / "a").open()))
    assert [row["arm"] for row in rows] == ["cls", "cls", "mixup", "mixup", "control"]
    assert all(row["protocol"] == "dense_map/v1" for row in rows)
    assert float(rows[2]["mean"]) == pytest.approx(
        np.mean([float(pair.split(":")[1]) for pair in rows[2]["scores_by_seed"].split()]), abs=1e-5
    )


def test_protocols_and_coverage_are_not_mixed(made) -> None:
    planned, store = made
    stage = planned.of("mixup")[1].predict
    score = store.result(stage.id)["scores"]["test"]
    for change in ({"protocol": "dense_map_apmeter/v1"}, {"videos_scored": 7}):
        store.finish(stage.id, {"scores": {"test": {**score, **change}}})
        with pytest.raises(ValueError, match="mixes protocols or coverage"):
            result_table(planned, store)


def test_another_protocol_than_the_study_asks_for_is_refused(made) -> None:
    planned, store = made
    other = replace(planned, study=replace(planned.study, protocol="dense_map_apmeter/v1"))
    with pytest.raises(ValueError, match="asks for dense_map_apmeter"):
        result_table(other, store)


def test_unreadable_videos_are_named(made) -> None:
    planned, store = made
    stage = planned.of("cls")[0].predict
    result = store.result(stage.id)
    store.finish(stage.id, {**result, "unreadable": {"V00001": "no video stream"}})
    notes = " ".join(footnotes(result_table(planned, store, resamples=50)))
    assert "1 videos could not be read" in notes and "V00001 (no video stream)" in notes
