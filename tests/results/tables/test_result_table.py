"""Tables from prediction sets that are written by hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.inference.scoring import frame_targets
from ssdet.results.tables.columns import footnotes, formatted_table
from ssdet.results.tables.result_table import result_table, write_csv
from ssdet.studies import Arm, Store, Study, Table, augmented, classification, plan
from ssdet.system.safe_files import write_json

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


def test_p_values_are_corrected_over_the_rows_of_a_read_out(made) -> None:
    table = result_table(*made, resamples=200)
    rows = {row.arm: row.cells for row in table.rows}
    mixup, control = rows["mixup"]["finetuned"], rows["control"]["finetuned"]
    smaller, larger = sorted([mixup, control], key=lambda cell: cell.difference.p_value)
    doubled = min(1, 2 * smaller.difference.p_value)
    assert smaller.p_adjusted == pytest.approx(doubled)  # Holm: two rows are compared
    assert larger.p_adjusted == pytest.approx(max(doubled, larger.difference.p_value))
    alone = rows["mixup"]["probe"]
    assert alone.p_adjusted == alone.difference.p_value


def test_effect_and_power_come_from_paired_seeds(made) -> None:
    rows = {row.arm: row.cells["finetuned"] for row in result_table(*made, resamples=50).rows}
    base, mixup, control = rows["cls"], rows["mixup"], rows["control"]
    gains = [mixup.scores[seed] - base.scores[seed] for seed in (0, 1, 2)]
    d = np.mean(gains) / np.std(gains, ddof=1)
    assert mixup.effect == pytest.approx(d * 0.5642, rel=1e-3)  # Hedges' factor of 2 degrees
    assert mixup.detectable > np.std(gains, ddof=1)
    assert mixup.verdict and (base.effect, base.p_adjusted, base.verdict) == (None, None, "")
    assert (control.effect, control.detectable) == (None, None)
    assert control.verdict == "one seed: no verdict"


def test_cells_name_the_stages_that_were_scored(made) -> None:
    planned, store = made
    row = result_table(planned, store, resamples=50).rows[1]
    runs = planned.of("mixup")
    assert row.cells["finetuned"].runs == {run.seed: run.predict.id for run in runs}
    assert row.cells["probe"].runs == {run.seed: run.probe.id for run in runs}


def test_what_is_quoted_stands_apart(made) -> None:
    table = result_table(*made, resamples=50)
    shown = formatted_table(table)
    column = shown.header.index("paper (quoted)")
    assert [line.entries[column].text for line in shown.blocks[0].lines] == ["", "19.18", ""]
    notes = footnotes(table)
    assert any(note == "Quoted, not measured here: Table 1." for note in notes)
    assert any("8 of 8 videos, 384 frames" in note for note in notes)


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
        write_json(store.folder(stage.id) / "DONE", {"scores": {"test": {**score, **change}}})
        with pytest.raises(ValueError, match="mixes protocols or coverage.*mixup .seed 1.") as info:
            result_table(planned, store)
        assert "leave some arms out" in str(info.value)


def test_arms_with_other_seeds_are_refused(made) -> None:
    planned, store = made
    lost = tuple(run for run in planned.runs if (run.arm, run.seed) != ("mixup", 2))
    with pytest.raises(ValueError, match=r"'mixup' has \[0, 1\].*run the missing seeds"):
        result_table(replace(planned, runs=lost), store)


def test_a_declared_arm_that_is_not_built_has_no_number(made, tmp_path) -> None:
    planned, store = made
    slow = Arm("slow", title="two streams", needs="no_such_network")
    study = replace(planned.study, arms=(*planned.study.arms, slow))
    table = result_table(replace(planned, study=study), store, resamples=50)
    assert table.rows[3].needs == "no_such_network" and not table.rows[3].cells
    texts = [entry.text for entry in formatted_table(table).blocks[0].lines[3].entries]
    assert texts[0].startswith("needs no_such_network") and not any(texts[1:])
    write_csv(table, tmp_path / "csv")
    row = list(csv.DictReader((tmp_path / "csv").open()))[-1]
    assert (row["arm"], row["needs"]) == ("slow", "no_such_network")
    assert row["mean"] == row["difference"] == row["p_adjusted"] == ""


def test_layouts_are_checked() -> None:
    with pytest.raises(ValueError, match="no column .'gain'.*choose from finetuned"):
        Table(columns=("finetuned", "gain"))
    with pytest.raises(ValueError, match="show no score"):
        Table(columns=("seeds",))
    with pytest.raises(ValueError, match="mixup in several groups"):
        Table(groups={"ours": ("mixup",), "all": ("cls", "mixup")})
    with pytest.raises(ValueError, match="no arm named .'mixpu'"):
        Study("s", ARMS, table=Table(groups={"ours": ("mixpu",)}))


def test_a_layout_for_fewer_arms_names_no_other() -> None:
    layout = Table("t", "cls", {"mixup": 1.0, "cls": 2.0}, groups={"a": ("mixup",), "b": ("cls",)})
    kept = layout.only({"cls"})
    assert (kept.quoted, kept.groups, kept.title) == ({"cls": 2.0}, {"b": ("cls",)}, "t")


def test_unreadable_videos_are_named_at_their_arm(made) -> None:
    planned, store = made
    stage = planned.of("cls")[0].predict
    result = store.result(stage.id)
    write_json(
        store.folder(stage.id) / "DONE", {**result, "unreadable": {"V00001": "no video stream"}}
    )
    table = result_table(planned, store, resamples=50)
    assert table.unreadable == {"V00001": "no video stream"}
    marked = {line.label: line.mark for line in formatted_table(table).blocks[0].lines}
    assert marked == {"classification": "†", "mixup": "", "control": ""}
    (note,) = [note for note in footnotes(table) if note.startswith("†")]
    assert "1 video could not be read" in note and "V00001 (no video stream)" in note


def test_seeds_that_trained_on_different_videos_are_marked(made) -> None:
    planned, store = made
    for run, videos in zip(planned.of("mixup"), (8, 7, 8), strict=True):
        parent = run.predict.parents[0].id
        store.folder(parent).mkdir()
        store.finish(parent, {"videos": videos, "videos_expected": 8})
    notes = footnotes(result_table(planned, store, resamples=50))
    assert "† finetune on 7 of 8 or 8 of 8 videos" in notes
