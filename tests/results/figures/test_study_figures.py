"""Figures: what they are drawn from, and that equal results are equal bytes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.evaluation.protocols.registry import Reading, to_json
from ssdet.evaluation.statistics.bootstrap import BootstrapResult
from ssdet.inference.scoring import frame_targets
from ssdet.results.figures.figure_data import (
    ClassGain,
    Curve,
    Track,
    class_gains,
    curves,
    read_metrics,
    track,
)
from ssdet.results.figures.study_figures import (
    write_class_gains,
    write_curves,
    write_figure,
    write_forest,
    write_timeline,
    write_tradeoff,
)
from ssdet.results.tables.result_table import Cell, ResultTable, Row
from ssdet.studies import Arm, Store, Study, Table, augmented, classification, plan


def compared(mean: float, difference: float, p: float) -> Cell:
    result = BootstrapResult(difference, difference - 0.02, difference + 0.02, p, 99, 0.95, 0.0)
    return Cell({0: mean, 1: mean + 0.02}, result, {}, p, 1.0, 0.03, "better")


ROWS = (
    Row("cls", "classification", {"finetuned": Cell({0: 0.5, 1: 0.6}, None)}, None,
        costs={"macs": 4.7e9}),
    Row("mix", "MixUp", {"finetuned": compared(0.6, 0.05, 0.01)}, None, costs={"macs": 4.7e9}),
    Row("both", "ensemble", {"finetuned": compared(0.7, 0.15, 0.5)}, 20.5, True,
        costs={"macs": 9.4e9}),
    Row("slow", "two streams", {}, None, needs="slowfast_det"),
)  # fmt: skip
TABLE = ResultTable(
    "s", "A title", "cls", ROWS, "dense_map/v1", 8, 8, 384, 2, 99, "Table 1.", {}, Table()
)
TRACK = Track("X3D", ((4.7, 55.0), (4.7, 61.0), (14.1, 71.0)))
CURVES = [
    Curve(arm, seed, kind, "loss", (10, 20, 30, 40), (2.0 + seed, 1.5, 1.2, 1.0))
    for arm in ("cls", "MixUp")
    for seed in (0, 1)
    for kind in ("pretrain", "finetune")
]
GAINS = [ClassGain("move", (0.1, 0.2), 31), ClassGain("turn", (-0.1, 0.02), 7)]


def timeline(path: Path) -> Path:
    truth = np.zeros((24, 5), bool)
    truth[3:9, 2] = True
    return write_timeline(truth, {"MixUp": truth * 0.8 + 0.1}, list("abcde"), 12, path, "V1")


DRAWN = {
    "bars": lambda path: write_figure(TABLE, path),
    "forest": lambda path: write_forest(TABLE, path),
    "tradeoff": lambda path: write_tradeoff([TRACK, replace(TRACK, quoted=True)], path),
    "gains": lambda path: write_class_gains(GAINS, path),
    "curves": lambda path: write_curves(CURVES, path),
    "timeline": timeline,
}


NO_FORMULA = r"$\frac{$ \udcdf"


@pytest.mark.parametrize("name", DRAWN)
def test_names_with_dollar_signs_are_no_formulas(name, tmp_path, monkeypatch) -> None:
    """Every figure is drawn with such a title, and with such labels where it has labels."""
    monkeypatch.setitem(globals(), "TABLE", replace(
        TABLE, title=NO_FORMULA, rows=tuple(replace(row, label=NO_FORMULA) for row in ROWS)
    ))  # fmt: skip
    monkeypatch.setitem(globals(), "TRACK", replace(TRACK, label=NO_FORMULA))
    monkeypatch.setitem(globals(), "CURVES", [replace(one, arm=NO_FORMULA) for one in CURVES])
    monkeypatch.setitem(globals(), "GAINS", [replace(one, name=NO_FORMULA) for one in GAINS])
    path = DRAWN[name](tmp_path / "a.svg")
    assert path.stat().st_size > 5000


def test_a_timeline_takes_any_class_name(tmp_path) -> None:
    truth = np.eye(24, 5, dtype=bool)
    path = tmp_path / "a.png"
    write_timeline(truth, {NO_FORMULA: truth * 0.8}, [NO_FORMULA] * 5, 12, path, NO_FORMULA)
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("file", [*(f"{name}.svg" for name in DRAWN), "bars.png", "timeline.png"])
def test_equal_results_are_equal_bytes(file, tmp_path) -> None:
    draw = DRAWN[file.split(".")[0]]
    first, second = (draw(tmp_path / f"{n}_{file}") for n in "ab")
    assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 4000


def texts(path: Path) -> str:
    """What an SVG says: matplotlib writes each text as a comment beside its outlines."""
    return path.read_text()


def test_figures_say_what_they_show(tmp_path) -> None:
    bars = texts(write_figure(TABLE, tmp_path / "bars.svg"))
    assert all(f"<!-- {row.label} -->" in bars for row in ROWS)
    assert "<!-- needs slowfast_det -->" in bars and "dense_map/v1" in bars
    forest = texts(write_forest(TABLE, tmp_path / "forest.svg"))
    assert "<!-- +5.0, p = 0.010 -->" in forest and "<!-- +15.0, p = 0.500 -->" in forest
    assert "two streams" not in forest  # nothing to compare
    quoted = Track("Coarse-Fine", ((5.0, 25.1), (5.0, 26.95)), True, "Table 1")
    trade = texts(write_tradeoff([TRACK, quoted], tmp_path / "trade.svg"))
    assert "Coarse-Fine (quoted)" in trade and "hollow: quoted from Table 1" in trade
    gains = texts(write_class_gains(GAINS, tmp_path / "gains.svg"))
    assert gains.index("<!-- move -->") < gains.index("<!-- turn -->")
    assert "<!-- 31 -->" in gains and "positive frames" in gains
    line = texts(timeline(tmp_path / "line.svg"))
    assert "<!-- c -->" in line and "<!-- a -->" not in line  # classes without anything to see


def test_many_classes_are_cut_to_the_extremes(tmp_path) -> None:
    many = [ClassGain(f"class{k:03d}", (k / 1000,), 5) for k in range(100)]
    text = texts(write_class_gains(many, tmp_path / "many.svg", most=10))
    assert "class099" in text and "class000" in text and "class050" not in text
    assert "90 classes in between are left out" in text


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="written as .png, .svg, .pdf"):
        write_figure(TABLE, tmp_path / "figure.jpg")
    with pytest.raises(ValueError, match="no arm is compared"):
        write_forest(replace(TABLE, rows=ROWS[:1]), tmp_path / "f.png")
    with pytest.raises(ValueError, match=r"'m'.*\(3, 2\), expected \(4, 2\)"):
        write_timeline(np.zeros((4, 2), bool), {"m": np.zeros((3, 2))}, "ab", 1, tmp_path / "f.png")


def test_a_track_needs_scores_and_costs() -> None:
    made = track(TABLE, "X3D", ("cls", "mix", "both"))
    assert made.points == (
        (4.7, pytest.approx(55)),
        (4.7, pytest.approx(61)),
        (9.4, pytest.approx(71)),
    )
    assert not made.quoted
    with pytest.raises(ValueError, match="'slow' has no score or no cost"):
        track(TABLE, "X3D", ("cls", "slow"))


def test_of_a_repeated_step_the_last_line_counts(tmp_path) -> None:
    lines = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0},
        {"step": 20, "validation": 0.4},
        {"step": 10, "loss": 3.1},  # a kill after step 20 sent the run back before step 10
        {"step": 20, "loss": 2.2},
        {"step": 30, "loss": 1.0},
    ]
    text = "\n".join(map(json.dumps, lines[:3])) + '\n{"step": 25, "lo\n'
    (tmp_path / "log").write_text(text + "\n".join(map(json.dumps, lines[3:])) + "\n")
    found = read_metrics(tmp_path / "log")
    assert list(found) == [10, 20, 30]
    assert [metrics["loss"] for metrics in found.values()] == [3.1, 2.2, 1.0]
    assert found[20]["validation"] == 0.4


@pytest.fixture
def planned(shapes):
    arms = (Arm("cls", classification), Arm("mix", augmented("mixup")),
            Arm("control", seeds_of="mix", size=2))  # fmt: skip
    study = Study("drawn", arms, table=Table(baseline="cls"))
    return plan(resolve(study, Options(preset="smoke", seeds=2)))


def test_curves_are_those_of_the_training_stages(planned, tmp_path) -> None:
    store = Store.open(tmp_path)
    for stage in planned.stages.values():
        if stage.kind in ("pretrain", "finetune"):
            store.folder(stage.id).mkdir()
            lines = [{"step": s, "loss": 1 / s, "lr": 0.1} for s in (1, 2)] + [
                {"step": 2, "validation": 0.5}
            ]
            log = store.folder(stage.id) / "metrics.jsonl"
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = curves(planned, store)
    assert len(found) == 2 * 2 * 2 * 2  # arms, seeds, kinds, fields; ensembles train nothing
    assert {(c.arm, c.kind) for c in found} == {
        (a, k) for a in ("cls", "mix") for k in ("pretrain", "finetune")
    }
    loss = next(c for c in found if c.field == "loss")
    assert (loss.steps, loss.values) == ((1, 2), (1.0, 0.5))
    assert {c.arm for c in curves(planned, store, ["mix"])} == {"mix"}


NO_SCORE = Reading(0.5, "dense_map/v1", 1, 1, 1, 1, "left_out")


def test_gains_are_paired_by_seed_and_class(planned, tmp_path) -> None:
    store, data = Store.open(tmp_path), planned.study.data
    manifest = data.split("downstream", "test")
    classes = manifest.num_classes
    targets = frame_targets(manifest, data.reader("downstream"))
    positives = np.concatenate(list(targets.values())).sum(0)
    for run in planned.runs:
        value = {"cls": 0.5, "mix": 0.6, "control": 0.9}[run.arm] + 0.01 * run.seed
        per_class = [value if n else None for n in positives]
        store.folder(run.predict.id).mkdir(exist_ok=True)
        score = replace(NO_SCORE, per_class=tuple(per_class))
        store.finish(run.predict.id, {"scores": {"test": to_json(score)}})
    found = class_gains(planned, store, "mix")
    assert [gain.name for gain in found] == [
        manifest.classes[k] for k in range(classes) if positives[k]
    ]
    assert [gain.positives for gain in found] == [n for n in positives if n]
    assert all(gain.seeds == pytest.approx((0.1, 0.1)) for gain in found)
    control = class_gains(planned, store, "control")[0]
    assert control.seeds == pytest.approx((0.4, 0.39))  # one ensemble against both seeds
    with pytest.raises(ValueError, match="no read-out 'probe'"):
        class_gains(planned, store, "control", "probe")
