"""`ssdet plan` and `ssdet run`: an experiment by its name or the path of its file."""

from __future__ import annotations

import sys
from types import ModuleType

from ssdet.cli.experiment import experiment
from ssdet.cli.experiment_files import listing, load, study_of
from ssdet.cli.shared import note, report_errors, wrong_usage

USAGE = "usage: ssdet {} NAME|FILE.py [options] (NAME|FILE.py --help lists the options)"


def plan(arguments: list[str]) -> int:
    """Print the plan of an experiment."""
    return _start("plan", arguments)


def run(arguments: list[str]) -> int:
    """Run an experiment to its table."""
    return _start("run", arguments)


@report_errors()
def _start(command: str, arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE.format(command)}\n\n{listing()}")
        return 0
    if arguments[0].startswith("-"):
        note(USAGE.format(command))
        return 2
    with wrong_usage(ValueError, OSError):
        return _run(load(arguments[0]), arguments[1:], planned=command == "plan")


def _run(module: ModuleType, arguments: list[str], planned: bool) -> int:
    """Run what a file declares: a STUDY, a SEARCH, or a `command` of its own."""
    options = [*arguments, "--dry-run"] if planned else arguments
    if hasattr(module, "SEARCH"):
        from ssdet.cli.search import search_experiment

        search_experiment(module.SEARCH, options)
    elif hasattr(module, "STUDY") or not hasattr(module, "command"):
        experiment(study_of(module), options, getattr(module, "also", None))
    elif planned:
        raise ValueError(f"{module.__file__}: declares no STUDY to plan; use `ssdet run`")
    else:
        sys.modules[module.__name__] = module  # tyro reads the options' comments from its source
        return int(module.command(arguments))
    return 0
