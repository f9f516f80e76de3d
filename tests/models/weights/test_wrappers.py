"""Checkpoints of training tools: containers and wrappers around the tensors of every layout."""

import argparse
import os
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ssdet.cli.__main__ import main
from ssdet.models import create, load_weights
from ssdet.models.weights import imported

State = Mapping[str, Tensor]
TOY = {"widths": [[16, 8], [24, 12], [32, 16], [48, 24]], "depths": [1, 2, 3, 2], "stem": 8}


def seeded(name: str, seed: int, **options: Any) -> nn.Module:
    return create(name, 5, generator=torch.Generator().manual_seed(seed), **options)


def arrays(golden: Any, file: str, prefix: str) -> dict[str, Tensor]:
    data = golden(file)
    return {
        name.removeprefix(prefix): torch.from_numpy(data[name])
        for name in data.files
        if name.startswith(prefix)
    }


def of_super_events(golden: Any) -> tuple[str, dict, State]:
    options = {"in_features": 12}
    state = seeded("super_events", 3, **options).state_dict()
    return "super_events", options, {k.removeprefix("events."): v for k, v in state.items()}


def of_port(golden: Any) -> tuple[str, dict, State]:
    state = seeded("i3d", 3).state_dict()
    return "i3d", {}, {k: v for k, v in state.items() if ".split_" not in k}


def of_pdan(golden: Any) -> tuple[str, dict, State]:
    options = {"in_features": 12}
    return "pdan", options, seeded("pdan", 3, **options).state_dict()


def of_tgm(golden: Any) -> tuple[str, dict, State]:
    options = {"in_features": 12}
    state = seeded("tgm", 3, **options).state_dict()
    published = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first == "layers":
            number, _, rest = rest.partition(".")
            name = f"sub_event{int(number) + 1}.{rest}"
        published[name.removeprefix("events.")] = value
    return "tgm", options, published


def of_pytorchvideo(golden: Any) -> tuple[str, dict, State]:
    state = seeded("x3d_tiny", 3).state_dict()
    return "x3d_tiny", {}, {k: v for k, v in state.items() if ".split_" not in k}


def of_own(golden: Any) -> tuple[str, dict, State]:
    return "x3d_tiny", {}, seeded("x3d_tiny", 3).state_dict()


def of_linear(golden: Any) -> tuple[str, dict, State]:
    return "linear", {"in_features": 3}, seeded("linear", 3, in_features=3).state_dict()


def of_multigrid(golden: Any) -> tuple[str, dict, State]:
    state = arrays(golden, "x3d_tiny", "w/")
    head = {"fc2.weight": torch.ones(5, 2048), "fc2.bias": torch.ones(5)}
    return "x3d", {**TOY, "shortcut_norm": True}, {**state, **head}


LAYOUTS: dict[str, Callable[[Any], tuple[str, dict, State]]] = {
    "x3d_multigrid": of_multigrid,
    "pytorchvideo": of_pytorchvideo,
    "ssdet": of_own,
    "ssdet (linear)": of_linear,
    "super_events": of_super_events,
    "tgm": of_tgm,
    "pdan": of_pdan,
    "pytorch_i3d": of_port,
}


def prefixed(*prefixes: str) -> Callable[[State], dict[str, Tensor]]:
    return lambda state: {"".join(prefixes) + name: value for name, value in state.items()}


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(7)}},
             "param_groups": [{"lr": 0.1, "params": [0]}]}  # fmt: skip
WRAPPERS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "DDP": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "DDP of compiled": prefixed("module.", "_orig_mod."),
    "compiled DDP": prefixed("_orig_mod.", "module."),
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.4.0",
        "epoch": 3,
        "optimizer_states": [OPTIMIZER],
        "state_dict": {**prefixed("model.")(state), "loss.weight": torch.ones(9)},
    },
    "Lightning of compiled": lambda state: {"state_dict": prefixed("model.", "_orig_mod.")(state)},
    "backbone": prefixed("backbone."),
    "encoder in DDP": prefixed("module.encoder."),
    "any name": prefixed("video_network.trunk."),
    "nested": lambda state: {"model": {"state_dict": state}, "optimizer": OPTIMIZER},
    "nested deeply": lambda state: {"checkpoint": {"model_state": prefixed("module.")(state)}},
    "averaged": lambda state: {"n_averaged": torch.tensor(4), **prefixed("module.")(state)},
    "tuple": lambda state: (OrderedDict(state), 17),
    "FSDP": prefixed("_fsdp_wrapped_module.model._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_wrapper_of_every_layout(layout, golden) -> None:
    name, options, state = LAYOUTS[layout](golden)
    expected = seeded(name, 1, **options)
    direct = load_weights(expected, state)
    assert direct.layout == layout.partition(" ")[0] and not direct.prefix and not direct.left_out
    for wrapper, wrap in WRAPPERS.items():
        model = seeded(name, 2, **options)
        content = wrap(state)
        report = load_weights(model, content if isinstance(content, dict) else {"x": content})
        assert report.layout == direct.layout, wrapper
        assert (report.loaded, report.skipped) == (direct.loaded, direct.skipped), wrapper
        theirs = expected.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items()), wrapper


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_files_are_imported_and_shown(wrapper, golden, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "cache"))
    name, options, state = of_super_events(golden)
    torch.save(WRAPPERS[wrapper](state), tmp_path / "x.pt")
    found, _ = imported.import_weights(tmp_path / "x.pt", name, options=options)
    assert (found.classes, found.layout) == (5, "super_events")
    if wrapper != "any name":
        assert main(["weights", "show", str(tmp_path / "x.pt")]) == 0
        assert "layout: super_events" in (shown := capsys.readouterr().out)
        assert "classes: 5" in shown and f"tensors: {len(state)}" in shown


def test_parts_that_are_wrapped_by_themselves() -> None:
    """Each part in DDP of its own, and compiled."""
    state = seeded("x3d_tiny", 1).state_dict()
    inner = {k.replace(".", ".module._orig_mod.", 1): v for k, v in state.items()}
    model = seeded("x3d_tiny", 2)
    load_weights(model, {"state_dict": inner})
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("names", [
    ("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "averaged"),
    ("model", "ema"), ("network", "swa_model"), ("raw", "avg_model"),
])  # fmt: skip
@pytest.mark.parametrize("wrapper", ["plain", "DDP", "Lightning"])
def test_the_moving_average_is_taken_and_reported(names, wrapper) -> None:
    raw, average = (seeded("x3d_tiny", seed).state_dict() for seed in (1, 2))
    wrap = WRAPPERS[wrapper]
    model = seeded("x3d_tiny", 3)
    report = load_weights(model, {names[0]: wrap(raw), names[1]: wrap(average)})
    assert all(torch.equal(v, average[k]) for k, v in model.state_dict().items())
    assert report.prefix.startswith(names[1]) and len(report.left_out) == 1
    assert report.left_out[0].startswith(names[0])


def test_an_averaged_model_of_torch_is_an_average() -> None:
    raw, source = seeded("x3d_tiny", 1), seeded("x3d_tiny", 2)
    average = AveragedModel(source)
    model = seeded("x3d_tiny", 3)
    content = {"one": {f"module.{k}": v for k, v in raw.state_dict().items()}}
    report = load_weights(model, {**content, "two": average.state_dict()})
    assert (report.prefix, report.left_out) == ("two.module.", ["one.module."])
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_an_average_without_statistics_is_no_network() -> None:
    raw = seeded("x3d_tiny", 1).state_dict()
    parameters = dict(seeded("x3d_tiny", 2).named_parameters())
    report = load_weights(seeded("x3d_tiny", 3), {"model": raw, "ema": parameters})
    assert (report.prefix, report.left_out) == ("model.", [])


def test_two_sets_that_differ_are_refused() -> None:
    one, other = (seeded("x3d_tiny", seed).state_dict() for seed in (1, 2))
    with pytest.raises(ValueError, match="several sets .* 'student.' and 'teacher.': load the"):
        load_weights(seeded("x3d_tiny", 3), {"student": one, "teacher": other})
    model = seeded("x3d_tiny", 3)
    report = load_weights(model, {"last": one, "best": dict(one)})
    assert (report.prefix, report.left_out) == ("last.", ["best."])


def test_a_stream_is_not_taken_for_the_network() -> None:
    """A network whose first stream is named as the model is, with a second one inside."""
    one, other = (seeded("x3d_tiny", seed).state_dict() for seed in (1, 2))
    model = seeded("x3d_tiny", 3)
    both = {**one, **{f"fine.{k}": v for k, v in other.items()}}
    for content in (both, {"state_dict": {f"module.{k}": v for k, v in both.items()}}):
        report = load_weights(model, content)
        assert all(torch.equal(v, one[k]) for k, v in model.state_dict().items())
        assert len(report.skipped) == len(other) and not report.left_out


def test_the_prefix_is_printed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "cache"))
    raw, average = (seeded("linear", seed, in_features=3).state_dict() for seed in (1, 2))
    torch.save({"model": raw, "ema": {"module": average}}, tmp_path / "x.pt")
    call = ["weights", "import", str(tmp_path / "x.pt"), "--model", "linear"]
    assert main([*call, "--options", '{"in_features": 3}']) == 0
    assert "loaded: 2 tensors, under ema.module. (left out: model.)" in capsys.readouterr().out


SETTINGS: dict[str, Any] = {
    "args": argparse.Namespace(lr=0.1, widths=[1, 2]),
    "best": np.float64(0.5), "rank": np.int64(3), "curve": np.arange(6.0),
    "path": pathlib.Path("/data"), "counts": defaultdict(list, {"a": [1]}),
    "optimizer": OPTIMIZER, "types": [dict, list, int],
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_and_numbers_beside_tensors_are_passed_over(name, legacy, tmp_path) -> None:
    state = seeded("x3d_tiny", 1).state_dict()
    content = {"model": state, name: SETTINGS[name]}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    model = seeded("x3d_tiny", 3)
    load_weights(model, tmp_path / "x.pt")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, argparse.FileType])
def test_objects_that_could_run_code_are_refused(function, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = seeded("linear", 1, in_features=3).state_dict()
    torch.save({"model": state, "args": Runs(function, "touch proof")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="could run code"):
        load_weights(seeded("linear", 2, in_features=3), tmp_path / "x.pt")
    assert not (tmp_path / "proof").exists()
