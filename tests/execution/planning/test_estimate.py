"""What a plan costs: the order of stages, the noise of seeds, and a budget's end."""

from types import SimpleNamespace

import pytest

from ssdet.evaluation.protocols.registry import Reading, to_json
from ssdet.evaluation.statistics.comparison import detectable_difference
from ssdet.execution.planning import estimate as costs
from ssdet.execution.planning.budget import Budget
from ssdet.studies.graph.identity import Stage
from ssdet.studies.study import Arm, Study, Table
from ssdet.training.recipe import ModelRecipe


def chain(*names: str) -> list[Stage]:
    """Stages in a row, each the parent of the next."""
    made: list[Stage] = []
    for name in names:
        made.append(Stage(name.split("_")[0], ModelRecipe(name), tuple(made[-1:]), "data"))
    return made


def test_a_plan_lasts_as_long_as_its_stages_can_overlap() -> None:
    first, second = chain("pretrain_a", "finetune_a"), chain("pretrain_b", "finetune_b")
    stages = [*first, *second]
    seconds = dict(zip([s.id for s in stages], [10.0, 4.0, 6.0, 5.0], strict=True))
    assert costs.makespan(stages, seconds, slots=1) == 25
    # a: 0-10, its child 10-14; b: 0-6, its child 6-11.
    assert costs.makespan(stages, seconds, slots=2) == 14
    assert costs.makespan(stages, seconds, slots=9) == 14
    assert costs.makespan(stages, seconds, slots=2, workers=2) == 7
    assert costs.makespan(first[1:], seconds, slots=1) == 4  # its parent is done
    assert costs.makespan([], {}, slots=1) == 0


def scored(value: float) -> dict:
    """A stage's own score as JSON."""
    return to_json(Reading(value, "dense_map/v1", 1, 1, 1, 1, "left_out"))


def planned(scores: dict[str, list[float | None]], against: dict[str, str] | None = None):
    """A plan whose stages are called ARM-SEED, and a store that holds the given scores."""
    results = {
        f"{arm}-{seed}": {"scores": {"test": scored(value)}}
        for arm, values in scores.items()
        for seed, value in enumerate(values)
        if value is not None
    }
    seeds = tuple(range(max(map(len, scores.values()))))
    runs = [
        SimpleNamespace(arm=arm, seed=s, predict=SimpleNamespace(id=f"{arm}-{s}"), probe=None)
        for arm in scores
        for s in seeds
    ]
    table = Table(baseline="base", against=against or {})
    study = Study("noise", tuple(Arm(name) for name in scores), seeds, table=table)
    return SimpleNamespace(study=study, runs=runs), SimpleNamespace(result=results.get)


def test_seeds_seen_say_what_the_planned_ones_can_detect() -> None:
    plan, store = planned({"base": [0.5, 0.6, None], "a": [0.52, 0.64, None], "b": [None] * 3})
    found = costs.detectable(plan, store)
    assert found is not None
    # Differences 0.02 and 0.04: their standard deviation is 0.02 / sqrt(2).
    expected = detectable_difference(0.02 / 2**0.5, seeds=3, comparisons=2)
    assert found == (pytest.approx(expected), 2)


def test_noise_is_that_of_an_arm_and_what_it_is_compared_with() -> None:
    scores = {"base": [0.5, 0.6], "a": [0.52, 0.64], "b": [0.53, 0.69]}
    found = costs.detectable(*planned(scores, {"b": "a"}))
    assert found is not None
    # a - base: 0.02 and 0.04, variance 0.0002; b - a: 0.01 and 0.05, variance 0.0008.
    expected = detectable_difference(0.0005**0.5, seeds=2, comparisons=2)
    assert found == (pytest.approx(expected), 4)


@pytest.mark.parametrize("known", [[0.5, None], [0.5]])
def test_one_pair_of_seeds_says_nothing_of_noise(known) -> None:
    assert costs.detectable(*planned({"base": known, "a": known})) is None


def test_a_budget_counts_what_stages_hold(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ssdet.execution.planning.budget.time.monotonic", lambda: now[0])
    budget = Budget(2.0, workers=4, gpus_per_worker=0.5)
    pretrain, _, predict = chain("pretrain_a", "finetune_a", "predict_a")
    budget.start(pretrain)
    now[0] = 1800  # half an hour of four workers that hold half a GPU each: one GPU-hour
    assert not budget.spent()
    budget.stop(pretrain.id)
    now[0] = 9000  # nothing runs, nothing is spent
    budget.start(predict)
    now[0] += 7199  # half a GPU for two hours
    assert not budget.spent()
    now[0] += 2
    assert budget.spent() and str(budget) == "budget of 2 GPU-hours"


def test_a_budget_counts_the_workers_that_an_elastic_stage_had(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ssdet.execution.planning.budget.time.monotonic", lambda: now[0])
    budget = Budget(10.0, workers=8, gpus_per_worker=1)
    pretrain, finetune, _ = chain("pretrain_a", "finetune_a", "predict_a")
    budget.start(pretrain)
    for hours, workers in ((1, 2), (0.5, 2), (0.5, 4)):  # 2, 1 and 2 GPU-hours
        now[0] += 3600 * hours
        budget.update(pretrain.id, {"workers": workers, "loss": 1.0})
    now[0] += 3600  # four more
    budget.update(pretrain.id, {"finished": True})
    budget.stop(pretrain.id)
    budget.update(pretrain.id, {"workers": 4})  # late: it holds nothing any more
    budget.start(finetune)  # eight, as planned, until it says otherwise
    now[0] += 3600 * 0.12
    assert not budget.spent()
    now[0] += 3600 * 0.01
    assert budget.spent()


def test_a_budget_must_be_a_time() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Budget(0)
