"""The `ssdet` command: what it lists and refuses, and commands that have no test file."""

import json
import subprocess
import sys

import pytest

from ssdet.cli.__main__ import COMMANDS, main


def test_every_command_that_is_listed_exists(capsys) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name in COMMANDS:
        assert name in told
        with pytest.raises(SystemExit) as end:
            sys.exit(main([name, "--help"]))
        assert end.value.code in (0, None)


@pytest.mark.parametrize("given", [[], ["reprot"]])
def test_wrong_usage_lists_what_there_is(given, capsys) -> None:
    assert main(given) == 2
    assert "report" in capsys.readouterr().err


def test_listing_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ssdet.cli.__main__ import main; main(['--help']);"
        "print([n for n in ('ray', 'torchvision', 'pandas', 'matplotlib') if n in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["plan", "run"])
def test_an_experiment_file_is_asked_for(command, tmp_path, capsys) -> None:
    assert main([command, "--seeds"]) == 2
    assert main([command, str(tmp_path / "absent.py")]) == 2
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    assert main([command, str(empty)]) == 2
    assert "declares no STUDY" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["experiments/ablate_cutmix.py", "ablate_cutmix"])
def test_the_plan_of_a_file_is_printed(file, shapes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("ssdet.execution.planning.estimate.STEPS", 2)
    store = str(tmp_path / "store")
    asked = ["--preset", "smoke", "--seeds", "2", "--arms", "det", "--store", store, "--price", "3"]
    with pytest.raises(SystemExit) as end:
        main(["plan", file, *asked, "--json"])
    assert end.value.code == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["stages"] == 16 and costs["unshared"] == 16 and costs["done"] == 0
    assert costs["money"] == pytest.approx(3 * costs["work_seconds"] / 3600)
    assert costs["wall_seconds"] <= costs["work_seconds"] == costs["unshared_seconds"]
    assert costs["disk_bytes"] > 1e5 and costs["detectable_difference"] is None


def test_the_lens_draws_a_picture(shapes, tmp_path, capsys) -> None:
    out = tmp_path / "lens.png"
    asked = ["--preset", "smoke", "--option", "window=transient", "--out", str(out)]
    assert main(["lens", "cutmix", *asked]) == 0
    assert out.stat().st_size > 5000
    assert main(["lens", "cutmax", "--preset", "smoke", "--out", str(out)]) == 2
    assert "cutmax" in capsys.readouterr().err
    assert main(["lens", "cutmix", "--preset", "smoke", "--option", "window"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
