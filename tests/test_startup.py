"""What a command imports before it runs, and what it prints to the error stream."""

import ast
import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import ssdet
from ssdet.cli.__main__ import COMMANDS
from ssdet.system.quiet import quiet_dependencies

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "PIL", "av", "fvcore", "jinja2", "matplotlib", "numpy", "optuna", "pandas", "pyarrow",
    "pydantic", "pytorchvideo", "ray", "scipy", "sklearn", "sqlite3", "tensorboardX", "torch",
    "torchvision", "yaml",
}  # fmt: skip
"""Modules that no `--help` imports."""
SUBCOMMANDS = {
    "results": ("ls", "show", "best", "compare", "rescore", "bundle", "rm", "gc"),
    "search": ("ls", "show", "tune experiments/ablate_cutmix.py"),
    "weights": ("ls", "get", "import", "show"),
    "data": ("check", "convert", "stats"),
    "plan": ("experiments/ablate_cutmix.py",),
}
LINES = [
    "",
    *COMMANDS,
    *(f"{command} {name}" for command, names in SUBCOMMANDS.items() for name in names),
]
EXPERIMENTS = sorted(
    path.name
    for path in (ROOT / "experiments").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
PACKAGES = ("cli", "data", "evaluation", "studies", "training")
"""Packages whose public names are imported on first use."""


def imported_by(code: str, file: Path) -> set[str]:
    """Modules that a process of its own has imported after this code, which may exit with status
    0. Nothing may be printed to the error stream. `file` is written."""
    report = (
        "import atexit, pathlib, sys\n"
        f"file = pathlib.Path({str(file)!r})\n"
        "atexit.register(lambda: file.write_text(' '.join(sys.modules)))\n"
    )
    command = [sys.executable, "-W", "default", "-c", report + code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage" in ended.stdout.lower()
    return set(file.read_text().split())


@pytest.mark.parametrize("line", LINES, ids=lambda line: line or "ssdet")
def test_help_of_a_command_imports_no_framework(line, tmp_path) -> None:
    arguments = [*line.split(), "--help"]
    code = f"from ssdet.cli.__main__ import main; sys.exit(main({arguments}))"
    assert not imported_by(code, tmp_path / "modules") & HEAVY


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_of_an_experiment_imports_no_framework(name, tmp_path) -> None:
    path = ROOT / "experiments" / name
    code = (
        f"import runpy; sys.path.insert(0, {str(path.parent)!r})\n"
        f"sys.argv = [{name!r}, '--help']; runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    assert not imported_by(code, tmp_path / "modules") & HEAVY


def public_names(package: str) -> dict[str, str]:
    """Module by name, as the package's `__init__` declares its public names to type checkers."""
    path = Path(ssdet.__path__[0]) / package / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_those_that_type_checkers_see(package) -> None:
    module = import_module(f"ssdet.{package}")
    declared = public_names(package)
    assert sorted(declared) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for name, home in declared.items():
        assert getattr(module, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize(
    "first", ["from ssdet.evaluation.average_precision import Array", "import ssdet.evaluation"]
)
def test_a_function_is_found_beside_a_submodule_of_its_name(first) -> None:
    code = f"{first}\nfrom ssdet.evaluation import average_precision as ap\nassert callable(ap)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )


def test_a_dependency_is_imported_without_its_warnings() -> None:
    """fvcore, which pytorchvideo imports, uses what torch has deprecated."""
    code = "from ssdet.models import accelerate, create; accelerate(create('x3d_tiny', 3))"
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def issued(category: type[Warning], module: str) -> None:
    warnings.warn_explicit("text", category, "file.py", 1, module=module)


def test_only_warnings_of_dependencies_are_hidden(monkeypatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet_dependencies():
            for module in ("ray", "torch.jit._script", "pydantic._internal._fields"):
                issued(FutureWarning, module)
                issued(UserWarning, module)
            assert not shown
            for module in ("ssdet.results.queries.results", "torchmetrics", "my_plugin"):
                issued(UserWarning, module)
            issued(RuntimeWarning, "numpy")
            assert len(shown) == 4


def test_warnings_that_are_asked_for_are_shown(monkeypatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet_dependencies():
            issued(FutureWarning, "torch")
    assert len(shown) == 1
