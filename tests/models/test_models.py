"""Whatever ssdet registers keeps the contract of networks, and exports as far as is said here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from ssdet.data.features.detections import Detections
from ssdet.models import available, create, registry
from ssdet.testing import check_model
from ssdet.testing.models import CLASSES, Arguments, Inputs, inputs_of

WIDTH = 8
SIZES = ("x3d_xs", "x3d_s", "x3d_m", "x3d_l", "x3d_xl")
X3D = {"widths": ((12, 8), (24, 12)), "depths": (1, 2), "stem": 8, "head_dim": 32}
STREAM = {"backbone": "x3d", "backbone_options": X3D}
STAGES = {"widths": (8, 8, 12, 16), "depths": (1, 2, 1, 1), "stem": 8, "head_dim": 32}
TGM = {"in_features": WIDTH, "hidden": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "x3d": X3D,
    **dict.fromkeys(SIZES, STAGES),
    **{name: STREAM for name in ("fast", "slow", "coarse")},
    **{name: {**STREAM, "grid": 4} for name in ("coarse_fine", "slowfast_det")},
    "slow_r50": {"widths": (8, 8, 16), "depths": (1, 1, 1), "stage_strides": (1, 2, 1)},
    "linear": {"in_features": WIDTH},
    "super_events": {"in_features": WIDTH},
    "tgm": TGM,
    "tgm_super_events": TGM,
    "pdan": {"in_features": WIDTH, "width": 16},
    "ms_tct": {
        "in_features": WIDTH, "dims": (8, 8, 16, 16), "blocks": 1, "heads": 2, "mlp_ratio": 2,
        "final": 8,
    },
    "stgcn": {"in_features": WIDTH, "width": 16, "stacks": 1},
    "vs_st_mpnn": {"in_features": WIDTH, "width": 16, "symbols": 8, "rounds": 1},
}  # fmt: skip
"""Small sizes. A network that is not here is tried with its own defaults."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("x3d", {"se_ratio": 0, "shortcut_norm": True, "in_channels": 2}),
    ("slow", {"stride_at": "input"}),
    ("coarse_fine", {"mixing": False, "padding": "exact"}),
    ("slowfast_det", {"fusion": "coarse_fine"}),
    ("slowfast_det", {"head": "concat", "pooled": True}),
    ("slow_r50", {"stem_frames": 1}),
    ("tgm", {"kernel": "cauchy", "combine": "soft"}),
    ("pdan", {"stages": 2}),
    *((name, {"padding": "exact"}) for name in ("super_events", "tgm_super_events", "pdan")),
    ("ms_tct", {"padding": "exact"}),
    ("stgcn", {"stacks": 2}),
    ("vs_st_mpnn", {"rounds": 3}),
]
UNREACHED = {"ms_tct": ("mixer.cross.3.", "spread.", "classes.heat.")}
"""The published weights have one layer that nothing reads; the others are the heat map's."""

LENGTHS = (24, 20, 19)
FOURS = "every fourth frame is a step, and what its interpolation has too much is cut off"
EXPORTS: dict[str, tuple[tuple[int, ...], str]] = {
    "slow": ((24, 20), FOURS),
    "slowfast_det": ((24, 20), FOURS),
    "stgcn": ((24, 20), "an odd step at the end is filled up, twice"),
    "coarse": ((24,), "the number of sampled steps is fixed where they are interpolated back"),
    "coarse_fine": ((24,), "as `coarse`"),
}
"""Of LENGTHS, those that a network runs at when it was exported at the first, and why not at all
of them. What is not here runs at any."""

# Plugins, of this machine or of other tests, are not ssdet's to sweep.
OWN = [n for n in available() if registry._MODELS[n].build.__module__.startswith("ssdet.")]
DETECTIONS = ("stgcn", "vs_st_mpnn")
LONG = ("i3d", "i3d_two_stream")
"""There is no small one, and its export takes half a minute."""
EXPORTED = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
    for name in OWN
    if name not in SIZES  # the class of `x3d`, which is
]


def detections(batch: int, steps: int, generator: torch.Generator) -> Arguments:
    low, size = torch.rand(2, batch, steps, 4, 2, generator=generator) * 0.4 + 0.05
    kinds = torch.randint(-1, 2, (batch, steps, 4), generator=generator)
    features = torch.randn(batch, steps, 4, WIDTH, generator=generator)
    lengths = torch.tensor([max(1, steps - 3 * b) for b in range(batch)])
    return (Detections(torch.cat([low, low + size], -1), kinds, features, lengths),)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in OWN), *VARIANTS])
def test_contract(name: str, options: dict[str, Any]) -> None:
    inputs = detections if name in DETECTIONS else None
    small = {**OPTIONS.get(name, {}), **options}
    check_model(name, inputs=inputs, unreached=UNREACHED.get(name, ()), **small)


def built(name: str) -> tuple[nn.Module, Inputs]:
    options = OPTIONS.get(name, {})
    model = create(name, CLASSES, generator=torch.Generator().manual_seed(0), **options).eval()
    return model, detections if name in DETECTIONS else inputs_of(name, model, options)


def batch_of(inputs: Inputs, steps: int) -> Arguments:
    return inputs(2, steps, torch.Generator().manual_seed(steps))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPORTED)
def test_exports(name: str) -> None:
    model, inputs = built(name)
    first = batch_of(inputs, LENGTHS[0])
    program = export(model, first, dynamic_shapes=any_length(first)).module()
    runs = tuple(steps for steps in LENGTHS if says_the_same(program, model, inputs, steps))
    assert runs == EXPORTS.get(name, (LENGTHS, ""))[0]


def any_length(arguments: Any) -> Any:
    """For each tensor of the arguments the axis of its steps, if it has any."""
    if isinstance(arguments, Detections):
        marks = (None if x is None else {1: Dim.DYNAMIC} if x.ndim > 1 else {} for x in arguments)
        return Detections(*marks)  # type: ignore[arg-type]
    if isinstance(arguments, tuple):
        return tuple(map(any_length, arguments))
    return {2: Dim.DYNAMIC} if arguments.ndim > 2 else {}


@torch.no_grad()
def says_the_same(program: nn.Module, model: nn.Module, inputs: Inputs, steps: int) -> bool:
    """Whether an exported network takes this length; its logits are then those of the network."""
    arguments = batch_of(inputs, steps)
    try:
        found = program(*arguments)
    except AssertionError as error:
        assert "Guard failed" in str(error)
        return False
    torch.testing.assert_close(found, model(*arguments), rtol=1e-4, atol=1e-4)
    return True


@torch.no_grad()
@pytest.mark.parametrize("name", DETECTIONS)
def test_padding_of_detections_changes_no_step_that_exists(name: str) -> None:
    model, inputs = built(name)
    (batch,) = batch_of(inputs, 7)
    whole = model(batch)
    for row, length in enumerate(batch.lengths_B.tolist()):
        tensors = (x[row : row + 1, :length] for x in batch[:3])
        alone = model(Detections(*tensors, torch.tensor([length])))[0]
        torch.testing.assert_close(whole[row, :, :length], alone, rtol=1e-4, atol=1e-5)


def test_unknown_names_and_options_get_a_hint() -> None:
    with pytest.raises(ValueError, match=r"x3d_tni.*did you mean 'x3d_tiny'"):
        create("x3d_tni", 5)
    with pytest.raises(TypeError, match=r"no option 'drop_out'.*did you mean 'dropout'"):
        create("x3d_tiny", 5, drop_out=0.1)
    assert available("x3d_x*") == ["x3d_xl", "x3d_xs"]


def test_tables_name_networks_that_there_are() -> None:
    """A line for a network that is gone, or misspelt, would check nothing."""
    told = {*OPTIONS, *UNREACHED, *EXPORTS, *DETECTIONS, *LONG, *(name for name, _ in VARIANTS)}
    assert told <= {*OWN}


def test_the_page_says_what_exports() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    words = {"any T": LENGTHS, "multiples of 4": (24, 20), "its own T": (24,)}
    rows = re.findall(rf"^\| (`.*?) \|.*\| ({'|'.join(words)}) \|$", page, re.MULTILINE)
    told = {name: words[word] for names, word in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == {name: EXPORTS.get(name, (LENGTHS, ""))[0] for name in OWN}
