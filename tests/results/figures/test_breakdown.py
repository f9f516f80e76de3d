"""The breakdown of a study whose prediction sets are written by hand."""

import csv
import importlib
import importlib.util
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score

from ssdet.cli.experiment import Options, main, resolve
from ssdet.evaluation import PredictionSet, PredictionWriter, boundary, dense_map
from ssdet.inference.scoring import frame_targets
from ssdet.results.figures.breakdown import (
    Quote,
    breakdown,
    breakdown_header,
    breakdown_notes,
    breakdown_rows,
    show_breakdown,
    write_breakdown,
)
from ssdet.studies import Arm, Store, Study, Table, augmented, classification, plan

ARMS = (
    Arm("cls", classification, "classification"),
    Arm("mixup", augmented("mixup")),
    Arm("control", seeds_of="mixup", size=2),
)
NOISE = {"cls": 1.0, "mixup": 0.6, "control": 0.3}
OPTIONS = Options(preset="smoke", seeds=2)
QUOTED = {
    "cls": Quote(value={"acts=1": 8.63, "boundary_r3": 16.18}),
    "mixup": Quote(difference={"acts=1": 1.3, "boundary_r3": -0.14}),
}


@pytest.fixture
def made(shapes, tmp_path):
    """A finished study whose scores are the truth under noise, less of it for better arms."""
    study = Study("made", ARMS, table=Table("Made up", "cls", source="Table 1."))
    planned = plan(resolve(study, OPTIONS))
    store = Store.open(tmp_path / "store")
    data = planned.study.data
    manifest = data.split("downstream", "test")
    targets = frame_targets(manifest, data.reader("downstream"))
    for run in planned.runs:
        for stage in filter(None, (run.predict, run.probe)):
            rng = np.random.default_rng([run.seed, len(run.arm), len(stage.kind)])
            noisy = {v: t + NOISE[run.arm] * rng.normal(size=t.shape) for v, t in targets.items()}
            finish(store, stage, noisy, targets)
    return planned, store, targets


def finish(store, stage, noisy, targets) -> None:
    folder = store.folder(stage.id) / "predictions" / "test"
    classes = next(iter(targets.values())).shape[1]
    with PredictionWriter(folder, classes) as writer:
        for name, rows in noisy.items():
            writer.add(name, 1 / (1 + np.exp(-rows)), 12)
    score = dense_map(PredictionSet.open(folder), targets)
    store.finish(stage.id, {"scores": {"test": asdict(score)}})


def expected(store, stage, targets, chosen) -> float:
    """Mean over classes of scikit-learn's average precision on the chosen frames."""
    scores = PredictionSet.open(store.folder(stage.id) / "predictions" / "test")
    frames = [(scores[v][t], targets[v][t]) for v in scores for t in chosen(targets[v])]
    rows, labels = (np.array(part) for part in zip(*frames, strict=True))
    found = [
        average_precision_score(labels[:, k], rows[:, k].astype(float))
        for k in range(labels.shape[1])
        if labels[:, k].any()
    ]
    return float(np.mean(found))


def of_one_act(labels):
    return [t for t, row in enumerate(labels) if sum(row) == 1]


def near_a_change(labels):
    changes = [t for t in range(1, len(labels)) if list(labels[t]) != list(labels[t - 1])]
    return [t for t in range(len(labels)) if any(abs(t - change) <= 3 for change in changes)]


@pytest.mark.parametrize("readout", ["finetuned", "probe"])
def test_scores_and_differences_inside_a_stratum(made, readout) -> None:
    planned, store, targets = made
    table = breakdown(planned, store, readout=readout, resamples=100)
    rows = {row.arm: row.cells for row in table.rows}
    assert list(rows) == (["cls", "mixup", "control"] if readout == "finetuned" else list(rows)[:2])
    for name, chosen in {"acts=1": of_one_act, "boundary_r3": near_a_change}.items():
        for arm in rows:
            for run in planned.of(arm):
                stage = run.predict if readout == "finetuned" else run.probe
                assert rows[arm][name].scores[run.seed] == pytest.approx(
                    expected(store, stage, targets, chosen), abs=1e-9
                )
        assert table.strata[name].frames == sum(len(chosen(t)) for t in targets.values())
        assert rows["cls"][name].difference is None
        for arm in rows.keys() - {"cls"}:
            d = rows[arm][name].difference
            assert d.difference == pytest.approx(
                rows[arm][name].mean - rows["cls"][name].mean, abs=1e-6
            )
            assert d.low < d.difference < d.high


def test_frames_without_a_label_are_counted_and_have_no_score(made) -> None:
    planned, store, targets = made
    table = breakdown(planned, store, resamples=20)
    empty = sum(int((~rows.any(axis=1)).sum()) for rows in targets.values())
    assert table.strata["acts=0"].frames == empty
    assert all("acts=0" not in row.cells for row in table.rows)
    frames = [table.strata[name].frames for name in ("acts=0", "acts=1", "acts>1")]
    assert sum(frames) == sum(map(len, targets.values()))
    assert any(f"acts=0 ({empty} frames)" in note for note in breakdown_notes(table))


def test_the_table_says_how_and_on_what_and_whose(made, tmp_path) -> None:
    planned, store, _ = made
    table = breakdown(planned, store, QUOTED, "Table A.1g.", resamples=20)
    header, rows = breakdown_header(table), breakdown_rows(table)
    frames = table.strata["acts=1"].frames
    assert header[1] == f"acts=1\ndense_map.acts=1/v1\n{frames} frames"
    assert [i for i, title in enumerate(header) if title == "paper\n(quoted)"] == [2, 6]
    assert [row[2] for row in rows] == ["8.63", "+1.30", ""]
    assert [row[6] for row in rows] == ["16.18", "-0.14", ""]
    assert [row[-1] for row in rows] == ["2", "2", "1"]
    assert {len(row) for row in rows} == {len(header)}
    write_breakdown(table, tmp_path)
    text = (tmp_path / "breakdown.md").read_text()
    assert "8 of 8 videos" in text and "Quoted, not measured here" in text and "Table A.1g." in text
    out = Console(file=StringIO())
    show_breakdown(table, out)
    for name in ("acts=1", "acts>1", "non_boundary_r3", "boundary_r3"):
        assert f"dense_map.{name}/v1" in out.file.getvalue()
    unquoted = breakdown(planned, store, resamples=20)
    assert "paper\n(quoted)" not in breakdown_header(unquoted)
    assert not any("Quoted" in note for note in breakdown_notes(unquoted))


def test_equal_results_are_equal_files(made, tmp_path) -> None:
    planned, store, _ = made
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_breakdown(breakdown(planned, store, QUOTED, resamples=20), tmp_path / name)
    for file in ("breakdown.csv", "breakdown.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    lines = list(csv.DictReader((tmp_path / "a" / "breakdown.csv").open()))
    assert len(lines) == 3 * 5
    for line in lines:
        assert line["protocol"] == f"dense_map.{line['stratum']}/v1"
        if line["stratum"] == "acts=0":
            assert (line["mean"], line["seeds"], line["scores_by_seed"]) == ("", "0", "")
            continue
        by_seed = [float(pair.split(":")[1]) for pair in line["scores_by_seed"].split()]
        assert float(line["mean"]) == pytest.approx(np.mean(by_seed), abs=1e-5)
        assert 0 < float(line["mean"]) <= 1
    for stratum in ("acts=1", "boundary_r3"):
        mine = [line for line in lines if line["stratum"] == stratum and line["p_value"]]
        low, high = sorted(mine, key=lambda line: float(line["p_value"]))
        first = min(1, 2 * float(low["p_value"]))
        assert float(low["p_adjusted"]) == pytest.approx(first, abs=2e-6)
        last = max(first, float(high["p_value"]))
        assert float(high["p_adjusted"]) == pytest.approx(last, abs=2e-6)
    assert lines[1]["paper_quoted_percent"] == "8.63"
    assert lines[6]["paper_quoted_difference_points"] == "1.3"


def test_another_definition_has_another_column(made) -> None:
    planned, store, _ = made
    table = breakdown(planned, store, QUOTED, by=boundary(1, per_class=True), resamples=20)
    assert list(table.strata) == ["non_boundary_r1_per_class", "boundary_r1_per_class"]
    assert len(breakdown_header(table)) == 4  # what was quoted for a radius of 3 is not beside it


def test_videos_that_no_arm_could_read_are_counted(made) -> None:
    planned, store, targets = made
    gone = next(iter(targets))
    kept = {v: rows.astype(float) for v, rows in targets.items() if v != gone}
    for run in planned.runs:
        finish(store, run.predict, kept, targets)
    table = breakdown(planned, store, resamples=20)
    assert "7 of 8 videos" in breakdown_notes(table)[0]
    counted = [table.strata[name].frames for name in ("acts=0", "acts=1", "acts>1")]
    assert sum(counted) == sum(map(len, kept.values()))


def test_what_cannot_be_compared_is_refused(made) -> None:
    planned, store, targets = made
    other = replace(planned, study=replace(planned.study, protocol="dense_map_apmeter/v1"))
    with pytest.raises(ValueError, match="has protocol dense_map_apmeter/v1"):
        breakdown(other, store)
    with pytest.raises(ValueError, match="choose one of finetuned, probe"):
        breakdown(planned, store, readout="linear")
    stage = planned.of("mixup")[1].predict
    kept = {v: rows.astype(float) for v, rows in list(targets.items())[1:]}
    (store.folder(stage.id) / "DONE").unlink()
    finish(store, stage, kept, targets)
    with pytest.raises(ValueError, match=r"'mixup' seed 1 was scored on .*\(7, .*'cls' on \(8, "):
        breakdown(planned, store)
    (store.folder(stage.id) / "DONE").unlink()
    with pytest.raises(ValueError, match="'mixup' seed 1: .* is not finished"):
        breakdown(planned, store)


def declared():
    path = Path(__file__).resolve().parents[3] / "experiments" / "breakdown.py"
    assert len(path.read_text().splitlines()) <= 75
    spec = importlib.util.spec_from_file_location("breakdown_experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_experiment_quotes_the_paper() -> None:
    quoted = declared().quoted()
    assert quoted["cls"].value == {
        "acts=1": 8.63, "acts>1": 18.72, "non_boundary_r3": 17.34, "boundary_r3": 16.18,
    }  # fmt: skip
    printed = {"freeze": [-0.14, 1.85, 1.41, 1.49], "mixup": [1.3, 2.06, 1.87, 1.94],
               "cutmix": [1.16, 1.86, 1.68, 1.85]}  # fmt: skip
    assert {a: list(q.difference.values()) for a, q in quoted.items() if a != "cls"} == printed


def test_the_experiment_writes_its_breakdown_after_its_table(made, monkeypatch, capsys) -> None:
    """The command on finished stages; what the breakdown cannot do fails the command."""
    _, store, _ = made
    also = declared().also
    monkeypatch.setattr("ssdet.execution.runner.run", lambda *arguments, **options: None)
    options = replace(OPTIONS, store=str(store.root))
    study = Study("made", ARMS, table=Table("Made up", "cls", source="Table 1."))
    out = Console(file=StringIO(), width=120)
    assert main(study, options, out, also=also) == 0
    folder = store.table_folder("made")
    assert {"table.csv", "breakdown.csv", "breakdown.md"} <= {p.name for p in folder.iterdir()}
    assert "by strata of frames" in out.file.getvalue()

    def failing(planned, store, out):
        raise ValueError("stratum acts=1: too few videos")

    assert main(study, options, out, also=failing) == 1
    assert "error: stratum acts=1: too few videos" in capsys.readouterr().err
