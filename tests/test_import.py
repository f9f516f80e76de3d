"""Modules that load with the package, and the directions of imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("ray", "torch", "torchvision", "pytorchvideo", "pandas", "matplotlib")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ssdet", HEAVY),
        ("ssdet.data", HEAVY),
        ("ssdet.cli", ("ray", "torchvision", "pytorchvideo", "pandas", "matplotlib")),
    ],
)
def test_importing_loads_no_more_than_it_needs(module, absent) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_parts_load_when_they_are_touched() -> None:
    import ssdet

    assert {"augment", "data", "models", "studies"} <= set(dir(ssdet))
    assert ssdet.data.load_manifest and ssdet.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ssdet.nothing


def test_imports_are_absolute_and_name_modules() -> None:
    for path in ROOT.glob("ssdet/**/*.py"):
        text = path.read_text(encoding="utf-8")
        assert "\nfrom ." not in text and "import *" not in text, path
