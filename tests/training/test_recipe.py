"""Recipes travel as JSON and refuse what they do not know."""

import json

import pytest

from ssdet.studies.presets import preset
from ssdet.system.recipe_json import from_json, to_json
from ssdet.training.recipe import OptimRecipe, TrainRecipe


@pytest.mark.parametrize("name", ["smoke", "tiny", "science", "small", "paper", "released"])
def test_round_trip_through_json(name: str) -> None:
    experiment = preset(name).experiment
    for recipe in (experiment.finetune, experiment.pretrain):
        assert from_json(TrainRecipe, json.loads(json.dumps(to_json(recipe)))) == recipe


def test_unknown_and_ill_typed_fields_are_named() -> None:
    values = to_json(preset("tiny").experiment.finetune)
    with pytest.raises(ValueError, match=r"optim\.momentun"):
        from_json(TrainRecipe, {**values, "optim": {**values["optim"], "momentun": 0.5}})
    with pytest.raises(ValueError, match="steps"):
        from_json(TrainRecipe, {**values, "optim": {**values["optim"], "steps": "many"}})


def test_recipes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="readout='frame'"):
        TrainRecipe("pretrain", readout="clip", augment="mixup")
    with pytest.raises(ValueError, match="scores frames"):
        TrainRecipe("pretrain", readout="clip", loss="bce")
    with pytest.raises(ValueError, match="background"):
        TrainRecipe("pretrain", augment="freeze", augment_options={"background": "zero"})
    with pytest.raises(ValueError, match="pretraining"):
        TrainRecipe("finetune", augment="mixup")
    with pytest.raises(ValueError, match="needs an augmentation"):
        TrainRecipe("pretrain", mix_depth="random")
    with pytest.raises(ValueError, match="validation loss of fine-tuning"):
        TrainRecipe("pretrain", optim=OptimRecipe(schedule="plateau"))
    with pytest.raises(ValueError, match="at least 1"):
        TrainRecipe("finetune", optim=OptimRecipe(schedule="plateau"), validations=0)
    with pytest.raises(ValueError, match="decay 1.5"):
        OptimRecipe(decay=1.5)
    with pytest.raises(ValueError, match="does not divide"):
        OptimRecipe(batch=10, accumulate=4)


def test_background_adds_a_class_to_pretraining_alone() -> None:
    assert TrainRecipe("pretrain").head_classes(400) == 401
    assert TrainRecipe("pretrain", background="zero").head_classes(400) == 400
    assert TrainRecipe("finetune").head_classes(157) == 157
