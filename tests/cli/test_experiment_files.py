"""Experiments by name and by path, on the command line."""

import sys
from pathlib import Path

import pytest

from ssdet.cli.__main__ import main
from ssdet.cli.experiment_files import experiments, find, load, study_of

ROOT = Path(__file__).resolve().parents[2]
NAMES = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}


@pytest.mark.parametrize("command", ["run", "plan"])
def test_without_a_name_every_experiment_is_listed_on_one_line(command, capsys) -> None:
    assert main([command]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[4:]]
    assert {name for name, _ in lines} == NAMES
    titles = {name: title for name, title in lines}
    assert titles["ablate_cutmix"].startswith("Table A.1c") and titles["real_videos"]


def test_a_name_is_the_file_of_the_package_wherever_one_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("ablate_cutmix") == experiments()["ablate_cutmix"]
    assert study_of(load("ablate_cutmix")).name == "ablate_cutmix"
    own = tmp_path / "ablate_cutmix.py"
    own.write_text("STUDY = 1\n")
    assert find("ablate_cutmix.py").resolve() == own


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("ablate_cutmx", "ablate_cutmix"), ("mixup", "ablate_mixup"), ("x/tradoff.py", "tradeoff")],
)
def test_a_wrong_name_suggests_similar_ones(wrong, right, capsys) -> None:
    assert main(["run", wrong]) == 2
    error = capsys.readouterr().err
    assert f"{wrong}: neither" in error and f"did you mean {right}" in error


def test_an_unlike_name_suggests_nothing(capsys) -> None:
    assert main(["plan", "zzz"]) == 2
    error = capsys.readouterr().err
    assert "did you mean" not in error and "`ssdet run` lists the names" in error


@pytest.mark.parametrize("name", ["search_augmentation", "real_folds", "real_videos"])
def test_searches_and_files_with_their_own_commands_run_by_name(name, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", name, "--help"])
    assert end.value.code == 0 and f"usage: {name}.py" in capsys.readouterr().out


def test_the_status_of_a_files_own_command_is_that_of_ssdet(tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "own_command.py"
    file.write_text("def command(arguments):\n    print(arguments)\n    return 3\n")
    monkeypatch.setitem(sys.modules, "own_command", None)
    assert main(["run", str(file), "--seeds", "2"]) == 3
    assert "['--seeds', '2']" in capsys.readouterr().out
    assert main(["plan", str(file)]) == 2
    assert "declares no STUDY to plan" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tune", "trust"])
def test_tuning_takes_names_and_wants_a_study(command, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["search", command, "ablate_cutmix", "--help"])
    assert end.value.code == 0
    capsys.readouterr()
    assert main(["search", command, "search_augmentation"]) == 2
    assert "declares no STUDY" in capsys.readouterr().err
    assert main(["search", command, "ablate_cutmx"]) == 2
    assert "did you mean ablate_cutmix" in capsys.readouterr().err
