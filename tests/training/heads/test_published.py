"""The published recipes: numbers of the papers' code, for the number of videos at hand."""

import pytest

from ssdet.training import ModelRecipe
from ssdet.training.heads.published_recipes import published_head
from ssdet.training.loop import is_due


def test_super_events_on_charades_trains_at_2e_4() -> None:
    recipe = published_head("super_events", 7985)
    optim = recipe.optim
    assert recipe.model == ModelRecipe("super_events") and optim.batch == 16
    assert optim.lr == pytest.approx(2e-4, rel=0.01)
    # 499 full batches and one of a single video an epoch, 40 epochs.
    assert optim.steps == 40 * 500 and recipe.validations == 40
    assert (optim.schedule, optim.patience, optim.decay) == ("plateau", 3, 0.1)
    assert (optim.optimizer, optim.weight_decay) == ("adamw", 0.0)
    assert published_head("linear", 7985).optim == optim


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "lr", "patience", "decay"),
    [
        ("tgm", 16, 60, 0.016, 5, 0.1),
        ("tgm_super_events", 16, 60, 0.016, 5, 0.1),
        ("pdan", 32, 100, 1e-4, 8, 0.5),
        ("ms_tct", 32, 50, 1e-4, 8, 0.5),
    ],
)
def test_every_model_has_its_schedule(name, batch, epochs, lr, patience, decay) -> None:
    recipe = published_head(name, 100, dropout=0.1)
    optim = recipe.optim
    assert recipe.model == ModelRecipe(name, {"dropout": 0.1})
    assert (optim.batch, recipe.validations) == (batch, epochs)
    assert optim.steps == epochs * {16: 7, 32: 4}[batch]
    assert (optim.lr, optim.patience, optim.decay) == (pytest.approx(lr), patience, decay)
    assert (recipe.crop, recipe.heat_map, recipe.skip_empty) == (
        (256, 0.05, True) if name == "ms_tct" else (0, 0.0, False)
    )
    each = optim.steps // epochs
    judged = [s for s in range(1, optim.steps + 1) if is_due(s, optim.steps, recipe.validations)]
    assert judged == list(range(each, optim.steps + 1, each))


def test_unknown_models_and_no_videos_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'i3d': choose from linear, super_events, tgm"):
        published_head("i3d", 10)
    with pytest.raises(ValueError, match="dataset_size 0: expected at least one"):
        published_head("tgm", 0)
