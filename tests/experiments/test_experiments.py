"""The experiment files can be planned, declare their differences, and are short."""

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
    plan,
    pretraining,
    scaled_pretraining,
)
from ssdet.training.checkpoint import load_weights
from ssdet.training.loop import network

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path for name in ("ablate_*.py", "detectors_*.py") for path in (ROOT / "experiments").glob(name)
)


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
    assert len(path.read_text().splitlines()) <= 90
    study = declared(path)
    assert study.name == path.stem and study.table.source
    assert "cls" in study.baseline.split("_")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_arm_is_planned(path: Path, shapes) -> None:
    planned = plan(resolve(declared(path), Options(preset="smoke")))
    assert {run.arm for run in planned.runs} == {arm.name for arm in planned.study.arms}
    assert len(planned.unshared) >= len(planned.stages)


@pytest.mark.parametrize("name", ["ablate_cutmix", "ablate_resolution", "detectors_charades"])
def test_a_dry_run_prints_the_plan_and_runs_nothing(
    name: str, shapes, tmp_path, monkeypatch
) -> None:
    path = ROOT / "experiments" / f"{name}.py"
    monkeypatch.setattr("ssdet.execution.planning.estimate.STEPS", 2)
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
        "ablate_aggregation": {
            "cls_32": 22.80, "cls_16": 22.80 + 0.68, "cls_8": 22.80 + 0.49,
            "vc_32": 22.84, "vc_16": 22.84 + 0.14, "vc_8": 22.84 - 0.01,
        },
        "ablate_streams": {
            "fine_cls": 17.28, "fine_vc": 18.99, "slow_cls": 17.49, "slow_vc": 18.60,
            "coarse_cls": 18.13, "coarse_vc": 18.85, "slowfast_cls": 20.31, "slowfast_vc": 21.22,
            "cf_cls_cls": 23.29, "cf_cutmix_cutmix": 23.29 - 0.46, "cf_cutmix_cls": 23.29 + 0.28,
            "cf_ens_cls": 23.57 + 0.72, "cf_ens_all": 24.29 + 0.32,
        },
        "detectors_charades": {
            "x3d_cls": 20.66, "x3d_joint": 22.36, "x3d_ensemble": 20.66 + 3.28,
            "se_cls": 21.79, "se_joint": 22.24, "se_ensemble": 21.79 + 2.13,
            "tgm_cls": 23.84, "tgm_joint": 24.11, "tgm_ensemble": 23.84 + 1.66,
            "slowfast_cls": 22.80, "slowfast_joint": 24.73, "slowfast_ensemble": 22.80 + 2.52,
            "cf_cls": 25.10, "cf_joint": 26.19, "cf_ensemble": 25.10 + 1.85,
        },
        "detectors_multithumos": {
            "x3d_cls": 37.17, "x3d_joint": 38.92, "x3d_ensemble": 37.17 + 3.71,
            "tgm_cls": 39.16, "tgm_joint": 41.55, "tgm_ensemble": 39.16 + 3.99,
            "pdan_cls": 39.20, "pdan_joint": 42.13, "pdan_ensemble": 39.20 + 5.15,
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
    half_as_long = scaled_pretraining(1 / 2, augmented("mixup"))
    arms = (
        Arm("cls", classification),
        Arm("depth", pretraining(augment="mixup", mix_depth="random")),
        Arm("chain", from_checkpoint(classification, half_as_long)),
        Arm("slow", finetuned_as("not_built"), needs="not_built"),
    )
    layout = Table("Together", "cls", {"slow": 17.49}, "here", ("finetuned", "pflops", "quoted"))
    study = Study("together", arms, table=layout)
    status, text = run(study, seeds=1, store=str(tmp_path))
    assert status == 0 and "needs not_built: not built yet" in text
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
