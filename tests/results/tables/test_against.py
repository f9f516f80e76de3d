"""Arms that are compared with another one than the baseline, such as tuned ones."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from ssdet import results
from ssdet.execution.tuning import with_choices
from ssdet.results.figures.breakdown import (
    breakdown,
    breakdown_notes,
    breakdown_rows,
    write_breakdown,
)
from ssdet.results.proof.bundle import write_bundle
from ssdet.results.proof.verify import verify
from ssdet.results.report.sentences import compared, outcomes
from ssdet.results.report.writer import write_report
from ssdet.results.tables.columns import footnotes, formatted_table, narrow
from ssdet.results.tables.result_table import result_table, write_csv
from ssdet.studies import Arm, Store, Table, plan
from ssdet.studies.graph.audit import audit
from ssdet.studies.graph.record import read_record, record_of, write_record
from ssdet.system.safe_files import write_json

NOISE = {
    "cls": 1.4, "view": 1.2, "pair": 1.0, "cls, tuned": 0.9, "view, tuned": 0.5, "pair, tuned": 0.4
}  # fmt: skip
AGAINST = {
    "cls": "", "view": "cls", "pair": "cls", "cls, tuned": "cls", "view, tuned": "cls, tuned",
    "pair, tuned": "cls, tuned",
}  # fmt: skip
RATE = {"finetune_lr": 0.2}


@pytest.fixture(scope="module")
def tuned(made, tmp_path_factory):
    """A finished study of two arms and an ensemble, each as it is and tuned."""
    arms = tuple(arm for arm in made.plan.study.arms if arm.name != "fresh")
    study = with_choices(replace(made.plan.study, arms=arms), {"cls": RATE, "view": RATE})
    store = Store.open(tmp_path_factory.mktemp("tuned"))
    found = replace(made, plan=plan(study), store=store)
    write_record(store, found.plan)
    for stage in found.plan.stages.values():
        store.folder(stage.id).mkdir()
        write_json(store.folder(stage.id) / "recipe.json", stage.identity)
        write_json(store.folder(stage.id) / "provenance.json", {"seconds": 2.0, "started": 0.0})
        if stage.kind in ("pretrain", "finetune"):
            store.finish(stage.id, {"steps": 4, "replaced": {}})
    for run in found.plan.runs:
        for stage in filter(None, (run.predict, run.probe)):
            found.score(stage, NOISE[run.arm], run.seed)
    return found


@pytest.fixture(scope="module")
def table(tuned):
    return result_table(tuned.plan, tuned.store, 50)


def test_every_row_is_compared_with_its_own_baseline(table) -> None:
    assert {row.arm: row.against for row in table.rows} == AGAINST
    rows = {row.arm: row for row in table.rows}
    for readout, count in (("finetuned", 5), ("probe", 3)):
        cells = {arm: row.cells[readout] for arm, row in rows.items() if readout in row.cells}
        assert sum(cell.difference is not None for cell in cells.values()) == count
        for arm in cells.keys() - {"cls"}:
            expected = cells[arm].mean - cells[AGAINST[arm]].mean
            assert cells[arm].difference.difference == pytest.approx(expected, abs=1e-6)


def test_all_rows_of_a_read_out_are_one_family(table) -> None:
    cells = [row.cells["finetuned"] for row in table.rows if row.against]
    raw = np.array([cell.difference.p_value for cell in cells])
    order = np.argsort(raw, kind="stable")
    expected = np.minimum(1, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    assert [cells[place].p_adjusted for place in order] == pytest.approx(expected)


def test_untuned_rows_differ_as_without_tuned_ones(tuned, table) -> None:
    arms = tuple(arm for arm in tuned.plan.study.arms if not arm.name.endswith("tuned"))
    study = replace(tuned.plan.study, arms=arms, table=Table("T", "cls"))
    alone = {row.arm: row.cells for row in result_table(plan(study), tuned.store, 50).rows}
    for row in table.rows:
        for readout, cell in alone.get(row.arm, {}).items():
            assert row.cells[readout].difference == cell.difference
            assert row.cells[readout].scores == cell.scores


def test_only_a_table_of_several_baselines_says_which(tuned, table, tmp_path) -> None:
    write_csv(table, tmp_path / "tuned.csv")
    rows = list(csv.DictReader((tmp_path / "tuned.csv").open()))
    assert list(rows[0])[-1] == "against"
    assert {row["arm"]: row["against"] for row in rows} == AGAINST
    layout = replace(tuned.plan.study.table, against={"view": "cls"})  # what it is anyway
    same = replace(tuned.plan, study=replace(tuned.plan.study, table=layout))
    write_csv(result_table(same, tuned.store, 20), tmp_path / "plain.csv")
    assert "against" not in (tmp_path / "plain.csv").read_text().splitlines()[0].split(",")


def test_readers_see_what_a_difference_is_from(table) -> None:
    shown = formatted_table(table)
    assert shown.header.count("compared with") == 1
    column = shown.header.index("compared with")
    told = {line.label: line.entries[column].text for block in shown.blocks for line in block.lines}
    assert told["view, tuned"] == "classification, tuned" and told["classification"] == ""
    assert told["classification, tuned"] == told["view"] == "classification"
    notes = footnotes(table)
    assert any(note.startswith("Difference from the arm under “compared with”") for note in notes)
    assert any("(fine-tuned 5, linear probe 3), one family" in note for note in notes)
    verdicts = [note.split(".")[0] for note in notes if note.startswith("Verdicts")]
    assert verdicts == ["Verdicts, fine-tuned", "Verdicts, linear probe"]
    assert "compared with" in narrow(shown).header


def test_strata_have_the_same_baselines(tuned, tmp_path) -> None:
    found = breakdown(tuned.plan, tuned.store, resamples=10)
    cells = {row.arm: row.cells for row in found.rows}
    for arm in cells.keys() - {"cls"}:
        for stratum, cell in cells[arm].items():
            expected = cell.mean - cells[AGAINST[arm]][stratum].mean
            assert cell.difference.difference == pytest.approx(expected, abs=1e-6)
    texts = {row[0]: row[1] for row in breakdown_rows(found)}
    assert texts["view, tuned"] == "classification, tuned" and texts["classification"] == ""
    assert "the arm under “compared with”" in breakdown_notes(found)[1]
    write_breakdown(found, tmp_path)
    rows = csv.DictReader((tmp_path / "breakdown.csv").open())
    assert {row["arm"]: row["against"] for row in rows} == AGAINST


def test_recipes_are_audited_against_the_same_arm(tuned) -> None:
    found = audit(tuned.plan, tuned.store)
    assert found.fair
    rate = {(d.arm, d.against) for d in found.differences if d.field == "finetune.optim.lr"}
    assert rate == {("cls, tuned", "cls")}  # tuned arms chose the same rate
    assert {d.against for d in found.differences if d.arm == "view, tuned"} == {"cls, tuned"}
    layout = replace(tuned.plan.study.table, against={"view, tuned": "view"})
    arms = tuple(
        replace(arm, declares=("pretrain",)) if "view" in arm.name else arm
        for arm in tuned.plan.study.arms
    )
    other = audit(plan(replace(tuned.plan.study, arms=arms, table=layout)))
    assert any("view, tuned differs from view in finetune.optim.lr" in n for n in other.notes)


def test_records_and_bundles_keep_it(tuned, made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ssdet.results.tables.result_table.enough_resamples", lambda study: 50)
    again = read_record(write_record(tuned.store, tuned.plan)).plan()
    assert again.study.table.against == {n: a for n, a in AGAINST.items() if a not in ("", "cls")}
    assert "against" not in record_of(made.plan, 0.0).study["table"]  # as records were before it
    path = write_bundle(results.open(tuned.store.root), tuned.plan.study.name, tmp_path / "b.zip")
    found = verify(path)
    assert found.holds and found.table.splitlines()[0].endswith(",against")


def test_what_cannot_be_compared_is_refused(made) -> None:
    with pytest.raises(ValueError, match="view compared with itself"):
        Table(against={"view": "view"})
    study = made.plan.study
    for against, why in (
        ({"view": "gone"}, "no arm named .'gone'"),
        ({"cls": "view"}, "its baseline 'cls' is compared with 'view'"),
    ):
        with pytest.raises(ValueError, match=why):
            replace(study, table=Table(baseline="cls", against=against))
    layout = Table(against={"pair": "view"})
    assert layout.only({"pair", "view"}) == layout and not layout.only({"cls"}).against
    with pytest.raises(ValueError, match="'pair' is compared with 'view': select that arm"):
        layout.only({"cls", "pair"})


def test_a_baseline_that_waits_for_a_network_is_said(made) -> None:
    slow = Arm("slow", title="two streams", needs="no_such_network")
    layout = Table("T", "cls", against={"view": "slow"})
    study = replace(made.plan.study, arms=(*made.plan.study.arms, slow), table=layout)
    table = result_table(plan(study), made.store, 20)
    view = next(row for row in table.rows if row.arm == "view")
    assert view.cells["finetuned"].difference is None
    assert "“view” is compared with nothing: “two streams” needs no_such_network." in footnotes(
        table
    )


def test_the_report_says_it(tuned, table, tmp_path) -> None:
    said = compared(tuned.plan, table)
    assert said[1] == (
        "Compared with “classification, tuned” in place of the baseline: view, tuned; pair, tuned."
    )
    (one, _) = outcomes(table)
    labels = [found.label for found in (*one.better, *one.worse, *one.undecided)]
    assert "view, tuned (against “classification, tuned”)" in labels and "view" in labels
    page = write_report(tuned.plan, tuned.store, tmp_path / "r.html", 1, resamples=20).path
    text = page.read_text()
    assert "Fair: arms differ from what they are compared with only in what they declare" in text
    assert "Gains by class of" in text and "(against “classification, tuned”)" in text
