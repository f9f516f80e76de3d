"""`ssdet plan FILE` and `ssdet run FILE`: an experiment file by its path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ssdet.cli.shared import report_errors, wrong_usage


def plan(arguments: list[str]) -> int:
    """Print the plan of an experiment file."""
    return _start("plan", arguments, ["--dry-run"])


def run(arguments: list[str]) -> int:
    """Run an experiment file."""
    return _start("run", arguments, [])


@report_errors()
def _start(command: str, arguments: list[str], more: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        help_wanted = arguments[:1] in (["-h"], ["--help"])
        usage = f"usage: ssdet {command} EXPERIMENT.py [options of the file]"
        print(usage, file=sys.stdout if help_wanted else sys.stderr)
        return 0 if help_wanted else 2
    from ssdet.cli import experiment

    with wrong_usage(ValueError, OSError):
        module = load(Path(arguments[0]))
    experiment(module.STUDY, [*arguments[1:], *more], getattr(module, "also", None))
    return 0


def load(path: Path) -> ModuleType:
    """Execute an experiment file and return its module; ValueError where it declares no study."""
    from ssdet.studies import Study

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such experiment file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "STUDY", None), Study):
        raise ValueError(f"{path}: declares no STUDY (see experiments/ for examples)")
    return module
