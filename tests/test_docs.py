"""Modules, names, files and links that the documentation mentions exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {"tests/test_acme.py", "tests/clock.csv", "tests/videos"}
"""Files of the reader's own package in docs/extending.md."""


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute reached from one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(target, name):
                return False
            target = getattr(target, name)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_modules_resolve(page: Path) -> None:
    dotted = set(re.findall(r"\bssdet(?:\.[A-Za-z_]\w*)+", page.read_text()))
    assert not [name for name in sorted(dotted) if not resolves(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    folders = "ssdet|tests|docs|experiments|benchmarks|clusters"
    paths = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]+", text)
    missing = {p for path in paths if not (ROOT / (p := path.rstrip("."))).exists()} - EXAMPLES
    links = re.findall(r"\]\((?!http|#)([^)#\s]+)", text)
    missing |= {link for link in links if not (page.parent / link).exists()}
    assert not missing
