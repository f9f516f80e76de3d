"""Checkpoints of the user's own: checked, kept by name, found where published weights are."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssdet.cli.__main__ import main
from ssdet.data.loading.clips import ClipRecipe
from ssdet.models import available, create, load_weights
from ssdet.models.weights import imported
from ssdet.training.pretrained_weights import NORMALISATION, normalisation_of, starting_weights
from ssdet.training.recipe import ModelRecipe, TrainRecipe
from ssdet.training.weights_source import fingerprint

TOY: dict[str, Any] = {
    "widths": [[16, 8], [24, 12], [32, 16], [48, 24]],
    "depths": [1, 2, 3, 2],
    "stem": 8,
}
"""The network of the golden file."""
REQUIRED = {"x3d": TOY}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published_state(golden) -> dict[str, Tensor]:
    """Six classes, by the names of the published code."""
    data = golden("x3d_tiny")
    return {k[2:]: torch.from_numpy(data[k]) for k in data.files if k.startswith("w/")}


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def seeded(name: str, classes: int, seed: int = 0, **options: Any) -> nn.Module:
    return create(name, classes, generator=torch.Generator().manual_seed(seed), **options).eval()


def test_a_checkpoint_is_kept_by_name(tmp_path, published_state, golden, capsys) -> None:
    file = saved(tmp_path / "mine.pt", {"model_state": published_state})
    call = ["weights", "import", str(file), "--model", "x3d", "--options",
            json.dumps({**TOY, "shortcut_norm": True})]  # fmt: skip
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "mine: x3d, 6 classes, layout x3d_multigrid" in out and "skipped: 0 tensors" in out
    file.unlink()
    found = imported.named("mine")
    assert (found.model, found.classes, found.source) == ("x3d", 6, str(file))
    torch.load(found.file, weights_only=True)
    model = seeded("x3d", 6, **found.options)
    load_weights(model, found.file)
    data = golden("x3d_tiny")
    with torch.no_grad():
        logits = model(torch.from_numpy(data["x"]))
    expected = torch.from_numpy(data["logits_eval"])
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_name_stands_for_it_where_training_starts(tmp_path, published_state) -> None:
    """With the normalisation of the layout that it had, though it is in our names now."""
    head = {"fc2.weight": torch.randn(157, 2048), "fc2.bias": torch.randn(157)}
    file = saved(tmp_path / "charades.pt", {**published_state, **head})
    assert imported.import_weights(file, "x3d", options=TOY)[0].classes == 157
    mean, std = NORMALISATION["charades"]
    clip = ClipRecipe(size=24, mean=mean, std=std)
    recipes = [
        TrainRecipe("finetune", ModelRecipe("x3d", TOY, weights=weights), clip)
        for weights in ("charades", str(file))
    ]
    assert normalisation_of(recipes[0]) == (mean, std)
    by_name, by_path = (starting_weights(recipe, 4) for recipe in recipes)
    assert by_name is not None and by_path is not None
    backbone = [k for k in by_name if ".proj." not in k]
    assert len(backbone) > 100
    assert all(torch.equal(by_name[k], by_path[k]) for k in backbone)
    # What a stored recipe keeps is what the weights are, not a name that may change its meaning.
    assert fingerprint("charades").startswith("sha256:")
    with pytest.raises(FileNotFoundError, match="'charade': neither .* nor an imported one"):
        fingerprint("charade")


def test_a_name_keeps_its_meaning(tmp_path, cache) -> None:
    first, second = (
        saved(tmp_path / f"{seed}.pt", seeded("linear", 4, seed, in_features=3).state_dict())
        for seed in (0, 1)
    )
    call = {"name": "probe", "options": {"in_features": 3}}
    found, report = imported.import_weights(first, "linear", **call)
    assert imported.import_weights(first, "linear", **call) == (found, report)
    with pytest.raises(ValueError, match=r"'probe' is linear of .*0.pt already.*--name"):
        imported.import_weights(second, "linear", **call)
    assert torch.equal(torch.load(found.file, weights_only=True)["model"]["per_frame.bias"],
                       torch.load(first)["per_frame.bias"])  # fmt: skip
    for name, told in (("i3d-kinetics400", "published name"), ("../x", "use letters")):
        with pytest.raises(ValueError, match=told):
            imported.import_weights(first, "linear", name=name, options={"in_features": 3})


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch proof",)


def test_unfit_files_are_refused_and_leave_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    state = seeded("linear", 4, in_features=3).state_dict()
    files = {
        "runs": (saved(tmp_path / "a.pt", {"model": Runs()}), "could run code"),
        "narrow": (saved(tmp_path / "b.pt", state), "create the model with the options"),
        "other": (saved(tmp_path / "c.pt", {"what": torch.ones(3)}), "fit no layout"),
        "two": (
            saved(tmp_path / "d.pt", {**state, "per_frame.bias": torch.ones(5)}),
            "4 and 5 classes",
        ),
    }
    (tmp_path / "e.pt").write_bytes(pickle.dumps({"a": Runs()}, 4))
    files["numpy"] = tmp_path / "e.pt", "no array"
    for file, told in files.values():
        assert main(["weights", "import", str(file), "--model", "linear"]) == 1
        error = capsys.readouterr().err
        assert re.search(told, error), error
    assert main(["weights", "import", str(tmp_path / "gone"), "--model", "linear"]) == 1
    assert not imported.available() and not (tmp_path / "proof").exists()
    with pytest.raises(ValueError, match="no imported weights 'a': choose from none yet"):
        imported.named("a")


def test_wrong_options_are_told(tmp_path, capsys) -> None:
    file = saved(tmp_path / "a.pt", seeded("linear", 4, in_features=3).state_dict())
    wrong = {'{"in_feature": 3}': "no option", "[3]": "a JSON object", "{": "Expecting"}
    for options, told in wrong.items():
        call = ["weights", "import", str(file), "--model", "linear", "--options", options]
        assert main(call) == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in available() if n not in ("x3d_l", "x3d_xl")])
def test_classes_are_read_from_any_network(name: str) -> None:
    """Of a file alone, and of a file for a network."""
    options = REQUIRED.get(name, {})
    with torch.device("meta"):
        state = create(name, 7, **options).state_dict()
    assert imported.classes_told(state) == 7
    assert imported.classes_in(state, name, options, "ssdet", "here") == 7


def test_ls_and_show_say_what_it_is(tmp_path, published_state, capsys) -> None:
    file = saved(tmp_path / "toy.pt", published_state)
    imported.import_weights(file, "x3d", options={**TOY, "shortcut_norm": True})
    assert main(["weights", "ls"]) == 0
    assert f"toy  x3d, 6 classes, from {file} (x3d_multigrid)" in capsys.readouterr().out
    size = sum(p.numel() for p in seeded("x3d", 6, shortcut_norm=True, **TOY).parameters())
    for name in ("toy", str(file)):
        assert main(["weights", "show", name]) == 0
        out = capsys.readouterr().out
        assert "layout: x3d_multigrid" in out and "classes: 6" in out
        assert f"{size:,} parameters" in out
        assert "mean (0.4339, 0.4046, 0.3776), deviation (0.152, 0.1486, 0.157)" in out
    assert "fc2.weight  6×2048" in out
    assert main(["weights", "show", "i3d-kinetics400"]) == 1
    assert "ssdet weights get i3d-kinetics400" in capsys.readouterr().err
    assert main(["weights", "show", str(tmp_path / "gone.pt")]) == 1


@pytest.mark.parametrize(("file", "filters", "classes", "size"), [
    ("charades_cvpr_charades_rgb_final", 3, 157, 321_868),
    ("multithumos_rgb_super_event", 1, 65, 133_256),
])  # fmt: skip
def test_trained_super_events_are_imported(
    shared_data, file, filters, classes, size, capsys
) -> None:
    path = shared_data / "weights" / "super_events" / f"{file}.pt"
    options = {"in_features": 1024, "filters": filters}
    found, report = imported.import_weights(path, "super_events", options=options)
    assert (found.name, found.classes, found.layout) == (file, classes, "super_events")
    assert not report.reinitialised
    model = seeded("super_events", classes, **options)
    load_weights(model, found.file)
    same = seeded("super_events", classes, **options)
    load_weights(same, path)
    theirs = same.state_dict()
    assert all(torch.equal(value, theirs[k]) for k, value in model.state_dict().items())
    assert main(["weights", "show", file]) == 0
    assert f"{size:,} parameters" in capsys.readouterr().out
