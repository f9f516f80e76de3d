"""Where weights come from: by content in every name, and never under pictures they do not know."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssdet.data.loading.clips import ClipRecipe
from ssdet.models import create
from ssdet.models.weights import published
from ssdet.studies.graph.identity import Stage
from ssdet.system.recipe_json import from_json, to_json
from ssdet.training import ModelRecipe, TrainRecipe, checkpoint
from ssdet.training.loop import network
from ssdet.training.pretrained_weights import NORMALISATION, starting_weights
from ssdet.training.weights_source import fingerprint

OPTIONS = {"widths": ((12, 8), (24, 12)), "depths": (1, 2), "stem": 8, "head_dim": 32}
SIZES = ModelRecipe("x3d", OPTIONS)
FACEBOOK = ClipRecipe(mean=(0.45,) * 3, std=(0.225,) * 3)


def recipe(weights: Path | str, clip: ClipRecipe = FACEBOOK, **fields) -> TrainRecipe:
    return TrainRecipe("pretrain", replace(SIZES, weights=str(weights)), clip, **fields)


def pytorchvideo_file(path: Path, classes: int = 400) -> Path:
    """A checkpoint in pytorchvideo's layout: the model's own names, no split statistics."""
    model = create("x3d", classes, generator=torch.Generator().manual_seed(5), **OPTIONS)
    state = {k: v for k, v in model.state_dict().items() if ".split_" not in k}
    torch.save({"model_state": state}, path)
    return path


def test_a_file_is_named_by_what_it_holds(tmp_path) -> None:
    first = pytorchvideo_file(tmp_path / "a.pyth")
    (tmp_path / "far").mkdir()
    copy = tmp_path / "far" / "b.pyth"
    copy.write_bytes(first.read_bytes())
    other = pytorchvideo_file(tmp_path / "c.pyth", 10)

    def name(path: Path) -> str:
        return Stage("pretrain", recipe(path), (), "files").id

    assert name(first) == name(copy) != name(other)
    assert name(first) != Stage("pretrain", recipe(""), (), "files").id
    assert to_json(recipe(""))["model"]["weights"] == ""
    assert fingerprint(str(first)).startswith("sha256:") and fingerprint("") == ""
    # A later version of the file is another stage.
    before = name(copy)
    copy.write_bytes(other.read_bytes())
    assert name(copy) == name(other) != before
    with pytest.raises(FileNotFoundError, match="neither a file nor a published name"):
        name(tmp_path / "absent.pyth")


def test_training_starts_from_them_under_a_fresh_classifier(tmp_path) -> None:
    path = pytorchvideo_file(tmp_path / "x3d.pyth")
    source = torch.load(path, weights_only=True)["model_state"]
    asked = recipe(path)
    start = starting_weights(asked, asked.head_classes(12))
    made = network(asked, 12, start).state_dict()
    fresh = network(asked, 12).state_dict()
    assert made["blocks.3.proj.weight"].shape[0] == 13
    for name, value in source.items():
        expected = fresh[name] if ".proj." in name else value
        assert torch.equal(made[name], expected), name
    assert starting_weights(recipe(""), 13) is None


def test_weights_of_another_network_are_refused_with_the_way_out(tmp_path) -> None:
    path = pytorchvideo_file(tmp_path / "x3d.pyth")
    wider = replace(
        recipe(path), model=ModelRecipe("x3d", {**OPTIONS, "stem": 16}, weights=str(path))
    )
    with pytest.raises(ValueError, match="create the model with the options of these weights"):
        starting_weights(wider, 13)


@pytest.mark.parametrize(
    ("layout", "classes", "constants"),
    [
        ("pytorchvideo", 400, "facebook"),
        ("x3d_multigrid", 400, "ssdet_kinetics"),
        ("x3d_multigrid", 157, "charades"),
    ],
)
def test_pictures_must_be_those_that_the_weights_know(tmp_path, golden, layout, classes, constants):
    path = tmp_path / "weights.pt"
    if layout == "pytorchvideo":
        asked = recipe(pytorchvideo_file(path, classes))
    else:
        reference = golden("x3d_tiny")
        state = {k[2:]: torch.from_numpy(reference[k]) for k in reference.files if k[:2] == "w/"}
        state["fc2.weight"] = state["fc2.weight"][:1].repeat(classes, 1)
        state["fc2.bias"] = state["fc2.bias"][:1].repeat(classes)
        torch.save(state, path)
        options = {"widths": ((16, 8), (24, 12), (32, 16), (48, 24)), "depths": (1, 2, 3, 2),
                   "stem": 8, "shortcut_norm": True}  # fmt: skip
        options |= golden_options(state)
        asked = replace(recipe(path), model=ModelRecipe("x3d", options, weights=str(path)))
    mean, std = NORMALISATION[constants]
    fits = replace(asked.clip, mean=mean, std=std)
    assert starting_weights(replace(asked, clip=fits), 13) is not None
    strange = replace(asked, clip=replace(fits, mean=(0.1, 0.2, 0.3)))
    with pytest.raises(ValueError, match=r"set clip.mean and clip.std.*constants='own'"):
        starting_weights(strange, 13)
    assert starting_weights(replace(strange, constants="own"), 13) is not None


def golden_options(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """Sizes of the reference network, read off its tensors."""
    depths, widths = [], []
    for stage in range(1, 5):
        inner = state[f"layer{stage}.0.conv1.weight"].shape[0]
        widths.append((inner, state[f"layer{stage}.0.conv3.weight"].shape[0]))
        depths.append(len({k.split(".")[1] for k in state if k.startswith(f"layer{stage}.")}))
    stem, head = state["conv1_s.weight"].shape[0], state["fc1.weight"].shape[0]
    return {"widths": tuple(widths), "depths": tuple(depths), "stem": stem, "head_dim": head}


def test_an_own_checkpoint_brings_its_average_and_its_constants(tmp_path) -> None:
    trained = replace(recipe(""), clip=replace(FACEBOOK, mean=(0.1,) * 3))
    states = [network(replace(trained, seed=seed), 12).state_dict() for seed in (0, 1)]
    path = tmp_path / "last.pt"
    saved = {"recipe": to_json(trained), "model": states[0], "averaged": states[1]}
    checkpoint.save(path, saved)
    start = starting_weights(replace(recipe(path), clip=trained.clip), 13)
    assert start is not None
    stem = "blocks.0.conv.conv_t.weight"
    assert torch.equal(start[stem], states[1][stem])
    with pytest.raises(ValueError, match="0.1, 0.1, 0.1"):
        starting_weights(recipe(path), 13)


def test_a_stored_recipe_cannot_fetch_a_file_that_it_knows_by_content(tmp_path) -> None:
    path = pytorchvideo_file(tmp_path / "x3d.pyth")
    stored = from_json(TrainRecipe, to_json(recipe(path)))
    assert to_json(stored) == to_json(recipe(path))
    with pytest.raises(ValueError, match="set model.weights to the file's path"):
        starting_weights(stored, 13)


def test_a_published_name_is_a_name_and_brings_its_constants(monkeypatch) -> None:
    model = create("x3d", 400, generator=torch.Generator().manual_seed(5), **OPTIONS)
    clip = replace(FACEBOOK, mean=(0.5,) * 3, std=(0.5,) * 3)
    loaded = published.Loaded(model, ("one",), clip)
    monkeypatch.setattr(published, "available", lambda: ["somebody-k400"])
    monkeypatch.setattr(published, "load", {"somebody-k400": loaded}.get)
    assert to_json(recipe("somebody-k400"))["model"]["weights"] == "somebody-k400"
    start = starting_weights(recipe("somebody-k400", clip), 13)
    assert start is not None
    stem = "blocks.0.conv.conv_t.weight"
    assert torch.equal(start[stem], model.state_dict()[stem])
    with pytest.raises(ValueError, match="0.5, 0.5, 0.5"):
        starting_weights(recipe("somebody-k400"), 13)
