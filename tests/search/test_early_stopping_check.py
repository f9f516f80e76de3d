"""The trust check: rankings with known agreement, and curves read from stages."""

import json
from dataclasses import replace
from itertools import permutations

import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.evaluation.protocols.registry import Reading, to_json
from ssdet.search.early_stopping_check import (
    trust,
    trust_of_search,
    trust_of_studies,
    trust_of_validations,
)
from ssdet.search.trials import SearchResult, Trial
from ssdet.store.base import Store
from ssdet.studies import Arm, Study, classification, plan

ARMS = "abcdefgh"


def ranked(order: str) -> dict[str, float]:
    """Scores in this order, the worst first."""
    return {name: float(place) for place, name in enumerate(order)}


def test_rank_correlation_by_its_definition() -> None:
    for order in list(permutations("abcde"))[::17]:
        short, full = ranked("abcde"), ranked("".join(order))
        squares = sum((short[name] - full[name]) ** 2 for name in "abcde")
        expected = 1 - 6 * squares / (5 * (25 - 1))
        assert trust(short, full).spearman == pytest.approx(expected)


def test_the_same_order_is_safe_and_the_reverse_is_not() -> None:
    same = trust(ranked(ARMS), ranked(ARMS))
    assert (same.spearman, same.high) == (pytest.approx(1), pytest.approx(1))
    assert same.top1 and same.kept
    assert same.low > 0.9 and same.p_value < 0.01 and "looks safe" in same.verdict
    reverse = trust(ranked(ARMS), ranked(ARMS[::-1]))
    assert reverse.spearman == pytest.approx(-1)
    assert reverse.p_value == 1 and not reverse.top1
    assert "not safe: it would stop a" in reverse.verdict and "Spearman -1.00" in str(reverse)


def test_the_best_arm_must_survive_however_well_the_rest_agrees() -> None:
    late = trust(ranked("hab" + "cdefg"), ranked(ARMS))
    assert not late.kept and "not safe" in late.verdict
    second = trust(ranked("abcdef" + "hg"), ranked(ARMS))
    assert second.kept and not second.top1 and second.best_full == "h"


def test_few_arms_are_told_so() -> None:
    assert "too few arms: 4 of the 5" in trust(ranked("abcd"), ranked("abcd")).verdict
    noisy = trust(ranked("cbadfeg"), ranked("abcdefg"))
    assert noisy.low < noisy.spearman < noisy.high
    equal = trust(dict.fromkeys("abcdef", 0.5), ranked("abcdef"))
    assert equal.p_value == 1 and "too few arms to tell" in equal.verdict
    with pytest.raises(ValueError, match="expected the same"):
        trust(ranked("abc"), ranked("abd"))


def test_the_chance_of_agreement_is_that_of_all_orders() -> None:
    short, full = ranked("abcde"), ranked("abced")
    orders = [trust(short, ranked("".join(o)), resamples=1).spearman for o in permutations("abcde")]
    exact = sum(rho >= 0.9 - 1e-9 for rho in orders) / len(orders)
    assert trust(short, full).p_value == pytest.approx(exact, abs=0.012)


@pytest.fixture
def study(shapes) -> Study:
    arms = (Arm("cls", classification), *(Arm(n, _lr(i)) for i, n in enumerate("vwxyz", 1)))
    return resolve(Study("s", arms), Options(preset="smoke", seeds=2))


def _lr(place: int):
    def change(experiment):
        optim = replace(experiment.finetune.optim, lr=place / 10)
        return replace(experiment, finetune=replace(experiment.finetune, optim=optim))

    return change


def written(store: Store, stage, lines, result) -> None:
    folder = store.folder(stage.id)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store.finish(stage.id, result)


def test_curves_of_a_study_are_its_arms_means_over_seeds(study, tmp_path) -> None:
    store = Store.open(tmp_path)
    planned = plan(study)
    with pytest.raises(ValueError, match="no arm is finished"):
        trust_of_validations(planned, store)
    for place, arm in enumerate(study.arms):
        for run in planned.of(arm.name):
            noise = 10 * (-1) ** run.seed  # cancels in the mean
            lines = [
                {"step": 2, "validation": 99},  # written again after a kill
                {"step": 2, "validation": noise + place},
                {"step": 3, "loss": 1.0},
                {"step": 4, "validation": noise - place},
            ]
            written(store, run.predict.parents[0], lines, {})
    found = trust_of_validations(planned, store)
    assert found.arms == 6 and found.spearman == pytest.approx(-1) and found.best_full == "cls"


def scored(value: float) -> dict:
    """A stage's own score as JSON."""
    return to_json(Reading(value, "dense_map/v1", 1, 1, 1, 1, "left_out"))


def test_two_studies_with_schedules_of_different_length(study, tmp_path) -> None:
    store = Store.open(tmp_path)
    lengths = [Options(preset="smoke", seeds=2, finetune_steps=steps) for steps in (4, 8)]
    plans = [plan(resolve(study, options)) for options in lengths]
    for planned in plans:
        for place, arm in enumerate(study.arms):
            for run in planned.of(arm.name)[: 1 if arm.name == "z" else 2]:
                written(store, run.predict, [], {"scores": {"val": scored(place / 10)}})
    found = trust_of_studies(*plans, store)
    assert (found.arms, found.spearman) == (5, pytest.approx(1))  # one arm is not finished


def test_a_search_is_judged_by_the_trials_that_ran_to_their_end(tmp_path) -> None:
    def trial(number, state, first, last):
        values = {"map": last} if state == "complete" else {}
        return Trial(number, state, {}, {}, values, {1: first, 2: last})

    trials = [trial(n, "complete", n / 10, n / 5) for n in range(6)] + [trial(9, "pruned", 0.9, 0)]
    found = trust_of_search(SearchResult("s", tmp_path, ("map",), tuple(trials)))
    assert (found.arms, found.spearman, found.best_full) == (6, pytest.approx(1), "5")
