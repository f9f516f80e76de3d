"""Learning rates against torch's own schedulers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssdet.models import create
from ssdet.training.optimiser import lr_factor, lr_reductions, optimizer_for, set_lr
from ssdet.training.recipe import OptimRecipe


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def torch_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_cosine_is_torchs() -> None:
    expected = rates(torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer(), 40), 40)
    recipe = OptimRecipe(steps=40, schedule="cosine")
    assert [lr_factor(recipe, step) for step in range(40)] == pytest.approx(expected, abs=1e-12)


def test_step_is_torchs() -> None:
    scheduler = torch.optim.lr_scheduler.MultiStepLR(torch_optimizer(), [20, 32], gamma=0.1)
    recipe = OptimRecipe(steps=40, schedule="step", milestones=(0.5, 0.8))
    assert [lr_factor(recipe, step) for step in range(40)] == pytest.approx(rates(scheduler, 40))


def test_milestones_multiply_by_the_declared_factor() -> None:
    scheduler = torch.optim.lr_scheduler.MultiStepLR(torch_optimizer(), [10, 30], gamma=0.5)
    recipe = OptimRecipe(steps=40, milestones=(0.25, 0.75), decay=0.5)
    assert [lr_factor(recipe, step) for step in range(40)] == pytest.approx(rates(scheduler, 40))


@given(
    st.lists(st.sampled_from([1.0, 0.5, 0.49999, 0.25, 0.1, 0.3]) | st.floats(0.01, 10)),
    st.integers(0, 4),
)
def test_plateaus_are_torchs(losses: list[float], patience: int) -> None:
    optimizer = torch_optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, eps=0
    )
    for loss in losses:
        scheduler.step(loss)
    recipe = OptimRecipe(lr=3.0, schedule="plateau", decay=0.5, patience=patience)
    reductions = lr_reductions(recipe, losses)
    assert optimizer.param_groups[0]["lr"] == 0.5**reductions
    fresh = optimizer_for(torch.nn.Linear(2, 2), recipe)
    assert set_lr(fresh, recipe, 7, reductions) == 3.0 * 0.5**reductions


def test_onecycle_rises_to_one_and_falls_to_nothing() -> None:
    factors = [lr_factor(OptimRecipe(steps=100, schedule="onecycle"), step) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 25)
    assert max(factors) == pytest.approx(1.0) and factors.index(max(factors)) == 30
    assert factors[:31] == sorted(factors[:31])
    assert factors[30:] == sorted(factors[30:], reverse=True) and factors[-1] < 0.002


def test_warmup_is_linear() -> None:
    recipe = OptimRecipe(steps=100, schedule="constant", warmup=4)
    assert [lr_factor(recipe, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_head_learns_faster_by_the_declared_factor() -> None:
    model = create("x3d_tiny", 4)
    recipe = OptimRecipe(lr=0.5, schedule="constant", head_lr_mult=10)
    optimizer = optimizer_for(model, recipe)
    assert set_lr(optimizer, recipe, 0) == 0.5
    backbone, head = optimizer.param_groups
    assert (backbone["lr"], head["lr"]) == pytest.approx((0.05, 0.5))
    sizes = [sum(p.numel() for p in group["params"]) for group in (backbone, head)]
    assert sizes[1] == sum(p.numel() for p in model.head_parameters())
    assert sum(sizes) == sum(p.numel() for p in model.parameters())


def test_a_network_that_names_no_head_is_all_head() -> None:
    recipe = OptimRecipe(head_lr_mult=10)
    backbone, head = optimizer_for(torch.nn.Linear(3, 2), recipe).param_groups
    assert not backbone["params"] and len(head["params"]) == 2
