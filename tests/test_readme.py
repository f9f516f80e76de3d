"""Examples in the README run, and what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number: int) -> None:
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {})


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([a-z][^)#:]*)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"ablate_\w+\.py", README):
        assert (ROOT / "experiments" / name).is_file(), name


def test_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"`make ([a-z-]+)`", README)):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
