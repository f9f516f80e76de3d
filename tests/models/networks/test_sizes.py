"""The tables of docs/models.md: sizes as built, and what is said of every network."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssdet.data.features.detections import Detections
from ssdet.evaluation.cost import parameters
from ssdet.models import available, create, registry
from ssdet.models.networks.pyramid import FineFeatures
from ssdet.models.weights.loading import layouts

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Cells of a section's table, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


SIZES, KINDS = table("Sizes"), table("Available networks")


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def built(name: str, options: str, classes: str) -> nn.Module:
    given = eval(f"dict({options.strip('`')})")
    with torch.device("meta"):
        return create(name, int(classes), **given).eval()


def inputs(takes: str, cell: str) -> tuple[Any, ...]:
    """Empty tensors of the size that a cell gives."""
    shape, _, fine = cell.partition(" + ")
    *sizes, last = shape.split("×")
    numbers = [*map(int, sizes), *[int(last.removesuffix("²"))] * (2 if "²" in last else 1)]
    lengths_B = torch.tensor([numbers[-1]])
    if takes == "features":
        return torch.empty(1, *numbers, device="meta"), lengths_B.to("meta")
    if takes == "clips":
        maps = [fine_maps(int(fine))] if fine else []
        return torch.empty(1, *numbers, device="meta"), *maps
    width, boxes, steps = numbers
    with torch.device("meta"):
        kinds_BTN = torch.empty(1, steps, boxes, dtype=torch.long)
        features_BTND = torch.empty(1, steps, boxes, width)
        arrays = torch.empty(1, steps, boxes, 4), kinds_BTN, features_BTND, torch.empty(1)
    return (Detections(*arrays),)


def fine_maps(steps: int) -> FineFeatures:
    widths = {"layer1": 24, "layer2": 48, "layer3": 96, "layer4": 192, "conv5": 432}
    with torch.device("meta"):
        levels = {name: torch.empty(1, width, steps, 7, 7) for name, width in widths.items()}
        return FineFeatures(levels, torch.ones(1, steps, dtype=torch.bool), torch.zeros(1))


@pytest.mark.parametrize("row", SIZES, ids=lambda row: f"{row[0]} {row[1]}".replace("`", ""))
def test_sizes_are_those_of_the_table(row: list[str]) -> None:
    (name,), options, classes, size, *numbers, note = names(row[0]), *row[1:]
    model: Any = built(name, options, classes)
    weights, told, macs, told_macs = (float(n.replace(",", "")) if n else None for n in numbers)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs(model.takes, size))
    assert parameters(model) == weights
    assert f"{counter.get_total_flops() / 2e9:.3f}" == f"{macs:.3f}"
    agrees = told in (None, weights) and (not told_macs or abs(macs / told_macs - 1) < 5e-3)
    assert agrees or note, "another number than the specified one, and no reason"


def test_notes_are_explained() -> None:
    explained = set(re.findall(r"^\* \*([\w ]+)\*:", PAGE, re.MULTILINE))
    used = {word.partition(",")[0] for row in SIZES for word in row[-1].split("; ") if word}
    assert used - {"redesign"} == explained


def test_every_network_is_told_and_counted() -> None:
    own = {n for n in available() if registry._MODELS[n].build.__module__.startswith("ssdet.")}
    assert {name for row in KINDS for name in names(row[0])} == own
    assert {name for row in SIZES for name in names(row[0])} == own - {"x3d"}


@pytest.mark.parametrize("row", KINDS, ids=lambda row: names(row[0])[0])
def test_what_is_told_of_a_network_is_so(row: list[str]) -> None:
    told, takes, _, known, padding, _ = row
    for name in names(told):
        needed = "widths=[8], depths=[1], stem=8" if name == "x3d" else ""
        assert built(name, needed, "2").takes == takes
        assert ("padding" in registry.options_of(name)) == (padding == "released, exact")
    assert {layout for layout in names(known)} <= {*layouts()}


def test_the_study_of_the_page_is_one() -> None:
    found: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1], found)
    assert [arm.name for arm in found["STUDY"].arms] == ["coarse_fine", "slowfast", "pdan"]
