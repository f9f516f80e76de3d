"""README and the other files at the top: examples run, what they name exists."""

import re
from pathlib import Path

import pytest
import yaml

import ssdet

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number: int) -> None:
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {})


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_files_that_it_names_exist(text: str) -> None:
    for target in re.findall(r"\]\(([A-Za-z][^)#:]*)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:ssdet|tests|docs)/[\w/]+(?:\.\w+|/))`", text):
        assert (ROOT / target).exists(), target


def test_experiments_that_it_names_exist() -> None:
    for name in re.findall(r"ablate_\w+\.py", README):
        assert (ROOT / "experiments" / name).is_file(), name


def test_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"(?:^|`)make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE)
    for name in set(named):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_the_version_to_cite_and_the_newest_changes_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ssdet.__version__
    (paper,) = citation["references"]
    assert paper["authors"][0]["family-names"] == "Kahatapitiya"
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == ssdet.__version__
