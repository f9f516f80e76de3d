"""The experiment files: short, declared, and ready to be planned."""

import csv
import importlib.util
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ssdet.cli.experiment import Options, main, resolve
from ssdet.studies import (
    Arm,
    Store,
    Study,
    Table,
    augmented,
    classification,
    finetuned_as,
    from_checkpoint,
    lasting,
    plan,
    pretraining,
)
from ssdet.training.checkpoint import load_weights
from ssdet.training.loop import network

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "experiments").glob("ablate_*.py"))


def declared(path: Path) -> Study:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDY


def run(study: Study, **options) -> tuple[int, str]:
    out = Console(file=StringIO(), width=120)
    status = main(study, Options(preset="smoke", **options), out)
    return status, out.file.getvalue()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_is_a_short_declaration(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    study = declared(path)
    assert study.name == path.stem and study.table.source
    assert study.baseline == "cls"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_plan_and_runs_nothing(
    path: Path, shapes, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("ssdet.studies.estimate.STEPS", 2)
    status, text = run(declared(path), store=str(tmp_path), dry_run=True)
    assert status == 0
    assert "sharing saves" in text and "s a step of pretrain" in text
    assert "core-hours" in text and "MB of disk" in text and "until two seeds" in text
    assert not list((tmp_path / "stages").iterdir())
    for arm in declared(path).arms:
        assert arm.label in text
        assert not arm.needs or f"needs {arm.needs}: not built yet" in text


def test_what_the_paper_says_is_what_the_files_quote() -> None:
    quoted = {path.stem: dict(declared(path).table.quoted) for path in FILES}
    expected = {
        "ablate_background": {"cls": 17.28},
        "ablate_cutmix": {"cls": 17.28, "window": 18.89, "view": 18.99},
        "ablate_freeze": {"cls": 17.28, "one": 18.79, "two": 18.83},
        "ablate_mixup": {"cls": 17.28, "half": 18.86, "seamless": 19.18, "manifold": 19.24},
        "ablate_schedule": {
            "cls": 16.02, "det": 17.89, "cls_checkpoint": 17.28, "det_checkpoint": 19.28,
        },
        "ablate_smoothness": {"cls": 17.28, "ramp_100": 19.18, "edge_16": 18.99},
        "ablate_resolution": {
            "cls": 17.28, "freeze": 18.79, "mixup": 19.18, "cutmix": 18.99,
            "cls_coarse": 17.28 + 0.85, "freeze_coarse": 18.79 - 0.27,
            "mixup_coarse": 19.18 + 0.12, "cutmix_coarse": 18.99 - 0.14,
            "cls_slow": 17.28 + 0.21, "freeze_slow": 18.79 - 0.27,
            "mixup_slow": 19.18 - 0.01, "cutmix_slow": 18.99 - 0.39,
        },
        "ablate_combination": {
            "cls": 17.28, "freeze": 18.79, "mixup": 19.18, "cutmix": 18.99,
            "joint_single": 19.28, "joint": 19.11, "ensemble": 20.50,
        },
    }  # fmt: skip
    assert quoted == {name: pytest.approx(values) for name, values in expected.items()}


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"arms": ("cutmax",)}, 2, "choose from scratch, cls"),
        ({"data": "segments"}, 2, "--upstream"),
        ({"data": "segments", "upstream": "/no", "downstream": "/no"}, 2, "/no"),
        ({"seeds": 0}, 2, "seeds"),
        ({"store": "ftp://host/runs"}, 2, "mount"),
    ],
)
def test_wrong_usage_says_what_is_wrong(options, status, message, shapes, tmp_path, capsys) -> None:
    study = declared(ROOT / "experiments" / "ablate_cutmix.py")
    options = {"store": str(tmp_path), "dry_run": True, **options}
    assert run(study, **options)[0] == status
    assert message in capsys.readouterr().err


def test_random_depth_a_checkpoint_and_a_declared_arm_for_real(
    shapes, ray_session, tmp_path
) -> None:
    arms = (
        Arm("cls", classification),
        Arm("depth", pretraining(augment="mixup", mix_depth="random")),
        Arm("chain", from_checkpoint(classification, lasting(1 / 2, augmented("mixup")))),
        Arm("slow", finetuned_as("slowfast_det"), needs="slowfast_det"),
    )
    layout = Table("Together", "cls", {"slow": 17.49}, "here", ("finetuned", "pflops", "quoted"))
    study = Study("together", arms, table=layout)
    status, text = run(study, seeds=1, store=str(tmp_path))
    assert status == 0 and "needs slowfast_det: not built yet" in text
    lines = (tmp_path / "tables" / "together" / "table.csv").open(newline="")
    rows = {row["arm"]: row for row in csv.DictReader(lines) if row["readout"] in ("", "finetuned")}
    assert rows["slow"]["mean"] == "" and rows["slow"]["paper_quoted_percent"] == "17.49"
    assert all(0 < float(rows[name]["mean"]) < 1 for name in ("cls", "depth", "chain"))
    costs = {name: float(rows[name]["pflops"]) for name in ("cls", "depth", "chain")}
    assert costs == pytest.approx({"cls": costs["cls"], "depth": costs["cls"],
                                   "chain": 1.5 * costs["cls"]})  # fmt: skip
    planned = plan(resolve(study, Options(preset="smoke", seeds=1)))
    chained = planned.of("chain")[0].predict.parents[0].parents[0]
    store = Store.open(tmp_path)
    end, start = (
        load_weights(store.folder(stage.id) / "checkpoints" / "last.pt")
        for stage in (chained, *chained.parents)
    )
    fresh = network(chained.recipe, 12).state_dict()
    stem = "blocks.0.conv.conv_t.weight"
    assert (end[stem] - start[stem]).norm() < 0.5 * (fresh[stem] - end[stem]).norm()
