"""Nuisance knobs: equal budgets, the chosen values in arms of their own, the table of both."""

import json
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution

from ssdet.cli.experiment import Options, resolve
from ssdet.execution.tuning import (
    Tuning,
    choices,
    default_knobs,
    search_of,
    tuned,
    with_choices,
)  # fmt: skip
from ssdet.search.space import KNOBS
from ssdet.store.base import Store
from ssdet.studies import Arm, Study, Table, augmented, classification, plan, scratch

ARMS = (
    Arm("scratch", scratch),
    Arm("cls", classification, "classification"),
    Arm("view", augmented("cutmix", window="view")),
    Arm("pair", members=("cls", "view")),
    Arm("control", seeds_of="view", size=2),
)
KNOBS_HERE = {
    "finetune_lr": FloatDistribution(0.001, 1.0, log=True),
    "pretrain_steps": (2, 4, 8),
    "weight_decay": (0.0, 5e-5, 1e-3),
}


@pytest.fixture
def study(shapes) -> Study:
    table = Table("A test", "cls", {"view": 18.99}, "nowhere", groups={"ours": ("view", "pair")})
    return resolve(Study("knobs", ARMS, table=table), Options(preset="smoke", seeds=2))


def test_every_arm_has_the_same_budget_and_starts_from_itself(study) -> None:
    tuning = Tuning(KNOBS_HERE, trials=7, seed=99)
    found = {arm.name: search_of(study, arm, tuning) for arm in ARMS[:3]}
    assert {(search.trials, search.seed) for search in found.values()} == {(7, 99)}
    assert list(found["scratch"].distributions) == ["finetune_lr", "weight_decay"]
    assert list(found["view"].distributions) == list(KNOBS_HERE)
    assert found["view"].first == (
        {"finetune_lr": 0.05, "pretrain_steps": 4, "weight_decay": 5e-5},
    )
    assert found["view"].base.pretrain.augment == "cutmix"
    only = Tuning({"pretrain_lr": (0.1, 0.2)})
    assert search_of(study, ARMS[0], only) is None
    assert search_of(study, ARMS[1], only).first == ()  # its own rate is not on offer
    assert default_knobs(study.base).keys() < KNOBS.keys()


def test_what_makes_no_sense_is_refused(study, tmp_path) -> None:
    with pytest.raises(ValueError, match="no knob.*'rate'.*finetune_lr"):
        Tuning({"rate": (1, 2)})
    with pytest.raises(ValueError, match="tuning seed 1 is one of its seeds"):
        tuned(study, Store.open(tmp_path), Tuning(seed=1))


def test_tuned_arms_stand_beside_the_untuned(study) -> None:
    chosen = {"cls": {"finetune_lr": 0.5}, "view": {"finetune_lr": 0.25, "pretrain_steps": 8}}
    both = with_choices(study, chosen)
    assert [arm.name for arm in both.arms] == [
        "scratch", "cls", "cls, tuned", "view", "view, tuned", "pair", "pair, tuned", "control",
        "control, tuned",
    ]  # fmt: skip
    assert (both.name, both.baseline, both.table.quoted) == ("knobs_tuned", "cls", {"view": 18.99})
    assert both.table.groups == {"ours": ("view", "view, tuned", "pair", "pair, tuned")}
    assert both.arm("pair, tuned").members == ("cls, tuned", "view, tuned")
    assert both.arm("cls, tuned").label == "classification, tuned"
    assert {"pretrain.augment", "pretrain.optim.steps"} <= {*both.arm("view, tuned").declared}
    assert {arm.name: both.baseline_of(arm.name) for arm in both.arms} == {
        "cls": "", "scratch": "cls", "view": "cls", "pair": "cls", "control": "cls",
        "cls, tuned": "cls", "view, tuned": "cls, tuned", "pair, tuned": "cls, tuned",
        "control, tuned": "cls, tuned",
    }  # fmt: skip
    optim = both.arm("view, tuned").change(study.base).pretrain.optim
    assert optim == replace(study.base.pretrain.optim, steps=8)
    assert plan(study).stages.keys() < plan(both).stages.keys()
    half = with_choices(study, {"cls": {"finetune_lr": 0.5}})
    assert [a.name for a in half.arms if a.name.endswith("tuned")] == ["cls, tuned"]


def test_a_tuned_arm_is_compared_with_what_is_tuned_of_its_baseline(study) -> None:
    control = replace(study, table=replace(study.table, against={"pair": "control"}))
    chosen = {"cls": {"finetune_lr": 0.5}, "view": {"finetune_lr": 0.25}}
    both = with_choices(control, chosen)
    assert both.baseline_of("pair") == "control"
    assert both.baseline_of("pair, tuned") == "control, tuned"
    only = with_choices(control, {"view": {"finetune_lr": 0.25}})  # the baseline has no such knob
    assert only.baseline_of("view, tuned") == "cls"


def by_rate(chain, report) -> dict[str, float]:
    """The higher the rate, the better, up to one half."""
    rate = next(s for s in chain.stages if s.kind == "finetune").recipe.optim.lr
    return {"map": rate if rate <= 0.5 else 0.0}


def test_the_best_of_each_arm_is_chosen_and_kept_with_its_budget(
    study, tmp_path, ray_session
) -> None:
    store = Store.open(tmp_path)
    tuning = Tuning({"finetune_lr": (0.05, 0.2, 0.4, 0.8)}, trials=6)
    study = replace(study, arms=study.arms[:2], table=Table("A test", "cls"))
    both = tuned(study, store, tuning, evaluate=by_rate)
    found = choices(store, "knobs")
    assert [choice.arm for choice in found] == ["scratch", "cls"]
    for choice in found:
        assert sum(choice.trials.values()) == 6
        assert choice.untuned_map == 0.05 and choice.map == max(0.05, choice.params["finetune_lr"])
        arm = both.arm(f"{choice.arm}, tuned")
        assert arm.change(study.base).finetune.optim.lr == choice.params["finetune_lr"]
    kept = json.loads((tmp_path / "tables" / "knobs_tuned" / "tuning.json").read_text())
    assert kept["tuning_seed"] == 1000 and len(kept["arms"]) == 2
