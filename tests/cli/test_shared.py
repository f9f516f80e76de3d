"""What the commands share: exit status and messages, values of options, tables, progress."""

import io
import json
import re

import pytest
from rich.console import Console

from ssdet.cli import shared
from ssdet.cli.shared import Progress, parse_values, report_errors, wrong_usage
from ssdet.plugins import Unknown


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("frame 7"), 1, "error: frame 7"),
        (FileNotFoundError(2, "No such file", "a.mp4"), 1, "a.mp4"),
        (ImportError("no mlflow"), 1, "error: no mlflow"),
        (Unknown("no protocol 'x'"), 2, "error: no protocol 'x'"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_a_message_and_an_exit_status(error, status, message, capsys) -> None:
    @report_errors(ImportError, interrupted="stopped")
    def command() -> None:
        raise error

    assert command() == status
    assert message in capsys.readouterr().err


def test_status_of_a_command_that_ends_by_itself() -> None:
    assert report_errors()(lambda: None)() == 0
    assert report_errors()(lambda: 1)() == 1
    with pytest.raises(ZeroDivisionError):
        report_errors()(lambda: 1 // 0)()


@pytest.mark.parametrize(("wrong", "status"), [((), 1), ((OSError,), 2)])
def test_wrong_usage_is_status_2(wrong, status, capsys) -> None:
    @report_errors()
    def command() -> None:
        with wrong_usage(*wrong):
            raise PermissionError("a.yaml")

    assert command() == status
    assert capsys.readouterr().err == "error: a.yaml\n"


def test_values_are_json_or_words() -> None:
    texts = ["seed=0", "augment=mixup", "name=a=b", "p=0.5", "finished=null"]
    assert parse_values(texts, ()) == {
        "seed": 0, "augment": "mixup", "name": "a=b", "p": 0.5, "finished": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="seed: expected NAME=VALUE; names: seed, arm"):
        parse_values(["seed"], ("seed", "arm"))


def test_sections_are_cut(capsys) -> None:
    shared.print_section("missing", [])
    shared.print_section("broken", map(str, range(25)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["broken:", "  0"] and len(lines) == 22
    assert lines[-1] == "  … and 5 more (--json lists all)"


def test_json_has_what_json_lacks_as_text(tmp_path, capsys) -> None:
    shared.print_json({"path": tmp_path, "name": "\udcdf"})
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path), "name": "\udcdf"}


def output(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, seconds: int = 6, resumes: bool = True
) -> str:
    """Progress from 2 to 10 of 10, one file in so many seconds."""
    clock = iter(range(0, 1000, seconds))
    monkeypatch.setattr("ssdet.cli.shared.time.monotonic", lambda: next(clock))
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with Progress("checked", " files", resumes, console) as progress:
        for done in range(2, 11):
            progress(done, 10)
    return file.getvalue()


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch) -> None:
    lines = output(False, monkeypatch).splitlines()
    assert lines[0] == "2 of 10 checked before" and lines[-1] == "checked 10 of 10 files"
    assert 3 < len(lines) < 9
    assert any(re.search(r"of 10 files, about \d min left", line) for line in lines)


def test_progress_that_does_not_resume_counts_from_zero(monkeypatch) -> None:
    lines = output(False, monkeypatch, resumes=False).splitlines()
    assert not any("before" in line for line in lines) and len(lines) > 3


def test_short_work_prints_no_line(monkeypatch) -> None:
    assert output(False, monkeypatch, seconds=1, resumes=False) == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch) -> None:
    assert "10/10" in output(True, monkeypatch)
