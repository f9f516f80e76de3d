"""Experiment files: list those of the package, and load one by its name or path."""

import ast
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

import ssdet
from ssdet.studies.study import Study


def experiments_folder() -> Path:
    """Folder of the experiments that come with ssdet.

    It is inside an installed package, and beside the package in a checkout.
    """
    package = Path(ssdet.__file__).parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def experiments() -> dict[str, Path]:
    """Files of the experiments that come with ssdet, by name."""
    return {path.stem: path for path in sorted(experiments_folder().glob("[a-z]*.py"))}


def listing() -> str:
    """Names of the experiments with the first lines of their docstrings; no file is executed."""
    files = experiments()
    width = max(map(len, files), default=0)
    lines = [f"  {name:{width}}  {_first_line(path)}" for name, path in files.items()]
    return "\n".join([f"experiments in {experiments_folder()}:", "", *lines])


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def find(given: str) -> Path:
    """The file of an experiment's name, else of a path; FileNotFoundError with similar names."""
    files = experiments()
    if given in files:
        return files[given]
    path = Path(given)
    if path.is_file():
        return path
    stem = path.stem
    similar = [name for name in files if stem in name] or get_close_matches(stem, files)
    hint = f"did you mean {' or '.join(similar[:3])}? " if similar else ""
    raise FileNotFoundError(
        f"{given}: neither a file nor the name of an experiment; {hint}`ssdet run` lists the names"
    )


def load(given: str) -> ModuleType:
    """Execute the experiment file of a name or path, and return it as a module.

    FileNotFoundError where there is none, ValueError for a file that is not Python.
    """
    path = find(given)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module while it runs. Afterwards it must not be found by name, else
    # Ray would send its functions by name to workers that cannot import it.
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
        if before is not None:
            sys.modules[spec.name] = before
    return module


def study_of(module: ModuleType) -> Study:
    """The study that an experiment file declares; ValueError where it declares none."""
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(f"{module.__file__}: declares no STUDY (see experiments/ for examples)")
    return study
