"""The experiment files: short, declared, and ready to be planned."""

import importlib.util
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ssdet.cli.experiment import Options, main
from ssdet.studies import Study

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
def test_a_dry_run_prints_the_plan_and_runs_nothing(path: Path, shapes, tmp_path) -> None:
    status, text = run(declared(path), store=str(tmp_path), dry_run=True)
    assert status == 0
    assert "sharing saves" in text and "s a step of pretrain" in text
    assert not list((tmp_path / "stages").iterdir())
    for arm in declared(path).arms:
        assert arm.label in text


def test_what_the_paper_says_is_what_the_files_quote() -> None:
    quoted = {path.stem: dict(declared(path).table.quoted) for path in FILES}
    assert quoted == {
        "ablate_cutmix": {"cls": 17.28, "window": 18.89, "view": 18.99},
        "ablate_freeze": {"cls": 17.28, "one": 18.79, "two": 18.83},
        "ablate_mixup": {"cls": 17.28, "half": 18.86, "seamless": 19.18},
        "ablate_combination": {
            "cls": 17.28, "freeze": 18.79, "mixup": 19.18, "cutmix": 18.99,
            "joint_single": 19.28, "joint": 19.11, "ensemble": 20.50,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"arms": ("cutmax",)}, 2, "choose from scratch, cls"),
        ({"data": "segments"}, 2, "--upstream"),
        ({"data": "segments", "upstream": "/no", "downstream": "/no"}, 2, "/no"),
        ({"seeds": 0}, 2, "seeds"),
        ({"store": "s3://bucket"}, 2, "mount"),
    ],
)
def test_wrong_usage_says_what_is_wrong(options, status, message, shapes, tmp_path, capsys) -> None:
    study = declared(ROOT / "experiments" / "ablate_cutmix.py")
    options = {"store": str(tmp_path), "dry_run": True, **options}
    assert run(study, **options)[0] == status
    assert message in capsys.readouterr().err
