"""Searches: what is declared, what is proposed, what is kept of trials however they end."""

import importlib.util
import itertools
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, TrialState
from ray import tune
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ssdet.cli.__main__ import main
from ssdet.execution.searcher import OptunaSearcher
from ssdet.results.cleaning import collect
from ssdet.search.search_study import open_study
from ssdet.search.space import Search, chain, with_values
from ssdet.search.trials import result, stages_in_use
from ssdet.store.base import Store
from ssdet.studies import Arm, Study, plan, preset
from ssdet.studies.changes import augmented, from_checkpoint, scratch
from ssdet.training.loop import augmentation

optuna.logging.set_verbosity(optuna.logging.ERROR)
ROOT = Path(__file__).resolve().parents[2]


def space(trial):
    kind = trial.suggest_categorical("augment", ["freeze", "mixup", "cutmix"])
    options = {}
    if kind == "cutmix":
        options["window"] = trial.suggest_categorical("window", ["view", "transient"])
    return augmented(kind, **options)


LR = {"finetune_lr": FloatDistribution(1e-4, 1.0, log=True)}


def drive(search, store, evaluate, most=10**6):
    """A search without Ray, one trial at a time; `evaluate(number, chain)` yields reports and ends
    with a trial's last one. Stops, as a kill does, amid the trial after `most`."""
    with open_study(search, store) as record:
        searcher = OptunaSearcher(record)
        for trial_id in map(str, itertools.count()):
            if record.left <= 0:
                break
            config = searcher.suggest(trial_id)
            if most == 0:
                break
            most -= 1
            last, error = {}, False
            for last in evaluate(searcher.trials[trial_id].number, config):
                if last is None:
                    error = True
                elif "rung" in last and searcher.should_stop(trial_id, last):
                    break
            searcher.on_trial_complete(trial_id, last, error)
        return record.result()


def states(search, store) -> list[str]:
    """States in the order of numbers, as Optuna has them."""
    url = f"sqlite:///{store.root}/searches/{search.name}/optuna.db"
    study = optuna.load_study(study_name=search.name, storage=url)
    return [trial.state.name for trial in study.trials]


def learning_rate(config) -> float:
    return next(s for s in config["chain"].stages if s.kind == "finetune").recipe.optim.lr


def best_at_a_tenth(number, config):
    """1 at a learning rate of 0.1, less by the distance on a logarithmic scale."""
    from math import log10

    yield {"finished": True, "map": 1 - abs(log10(learning_rate(config)) + 1) / 4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "folder"),
        ({"trials": 0}, "1 or more"),
        ({"objectives": ("macs",)}, "'map', or 'map' and 'macs'"),
        ({"objectives": ("map", "macs"), "scheduler": "asha"}, "one objective"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**{"name": "test", "space": space, **fields})


def test_values_are_set_by_knob_or_path(smoke) -> None:
    base = smoke(LR).base
    changed = with_values(
        {"finetune_lr": 0.7, "weight_decay": 0.25, "pretrain.augment_options.p": 0.5}
    )(replace(base, pretrain=replace(base.pretrain, augment="joint")))
    assert changed.finetune.optim == replace(base.finetune.optim, lr=0.7, weight_decay=0.25)
    assert changed.pretrain.optim == replace(base.pretrain.optim, weight_decay=0.25)
    assert changed.pretrain.augment_options == {"p": 0.5}
    assert with_values({"weight_decay": 0.25})(scratch(base)).finetune.optim.weight_decay == 0.25
    with pytest.raises(ValueError, match=r"finetune.optim.rate.*no field 'rate'.*lr"):
        with_values({"finetune.optim.rate": 1})(base)
    with pytest.raises(ValueError, match="'optim'.*there is None"):
        with_values({"pretrain_lr": 1})(scratch(base))


def test_a_space_is_a_function_or_distributions_of_optuna_or_tune(smoke) -> None:
    search = smoke(space)
    made = search.experiment(FixedTrial({"augment": "cutmix", "window": "view"}))
    assert made.pretrain.augment_options == {"window": "view"}
    assert search.chosen({"augment": "mixup"})(search.base).pretrain.augment == "mixup"
    mixed = smoke(
        {
            "finetune_lr": tune.loguniform(0.01, 1),
            "pretrain_steps": tune.randint(2, 5),
            "pretrain.augment": ["none", "freeze"],
            "finetune.optim.momentum": FloatDistribution(0, 0.9),
        }
    )
    kinds = {name: type(d).__name__ for name, d in mixed.distributions.items()}
    assert list(kinds.values()) == [
        "FloatDistribution", "IntDistribution", "CategoricalDistribution", "FloatDistribution",
    ]  # fmt: skip
    assert (
        mixed.distributions["finetune_lr"].log and mixed.distributions["pretrain_steps"].high == 4
    )
    values = {"finetune_lr": 0.5, "pretrain_steps": 3, "pretrain.augment": "freeze"}
    made = mixed.experiment(FixedTrial({**values, "finetune.optim.momentum": 0.1}))
    assert (made.pretrain.optim.steps, made.finetune.optim.momentum) == (3, 0.1)
    with pytest.raises(ValueError, match="an arm for each of its cells"):
        _ = smoke({"finetune_lr": tune.grid_search([1, 2])}).distributions


def test_a_trial_shares_its_training_with_studies_and_reads_no_test_video(smoke) -> None:
    search = smoke(space, seed=2)
    found = chain(search.experiment(FixedTrial({"augment": "mixup"})), search.data)
    study = Study(
        "s", (Arm("mixup", augmented("mixup")),), (2,), base=search.base, data=search.data
    )
    assert [stage.kind for stage in found.stages] == ["pretrain", "finetune", "validate"]
    assert {stage.id for stage in found.stages[:2]} <= plan(study).stages.keys()
    twice = from_checkpoint(augmented("freeze"), augmented("mixup"))(search.base).with_seed(2)
    both = replace(study, arms=(Arm("mixup", lambda _: twice),))
    longer = chain(twice, search.data)
    assert list(longer.ids) == ["start", "pretrain", "finetune", "validate"]
    assert {stage.id for stage in longer.stages[:3]} <= plan(both).stages.keys()
    without = replace(search.data)
    manifest = search.data.manifests["downstream"]
    rest = tuple(video for video in manifest.videos if video.split != "test")
    without.__dict__["manifests"] = {
        **search.data.manifests, "downstream": replace(manifest, videos=rest)
    }  # fmt: skip
    assert not without.split("downstream", "test").videos
    assert chain(search.experiment(FixedTrial({"augment": "mixup"})), without).ids == found.ids


def test_it_finds_the_optimum_and_says_what_mattered(smoke, store) -> None:
    knobs = {**LR, "finetune.optim.momentum": FloatDistribution(0, 0.9)}
    search = smoke(knobs, trials=25)
    found = drive(search, store, best_at_a_tenth)
    assert found.counts() == {"complete": 25}
    assert abs(found.best().params["finetune_lr"] - 0.1) < 0.05
    assert found.importance()["finetune_lr"] > 0.8
    assert found.best().stages == {
        **chain(search.chosen(found.best().params)(search.base).with_seed(0), search.data).ids
    }
    assert result(store, "test") == found
    assert set(found.best().stages.values()) <= stages_in_use(store)


def test_however_a_trial_ends_it_is_told_and_the_search_goes_on(smoke, store) -> None:
    ends = [
        [{"finished": True, "map": 0.5}],
        [{"finished": True, "map": float("nan")}],
        [{"error": "ValueError: no"}],
        [{"finished": True, "map": 0.0, "diverged": "loss is nan at step 3"}],
        [None],
        [{"finished": True}],
    ]
    search = smoke(LR, trials=6)
    found = drive(search, store, lambda number, config: ends[number])
    assert [trial.state for trial in found.trials] == [
        "complete", "failed", "failed", "diverged", "failed", "failed",
    ]  # fmt: skip
    assert states(search, store) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL"]
    reasons = [trial.error for trial in found.trials]
    assert reasons[1] == "map is nan: expected a number" and reasons[2] == "ValueError: no"
    assert "step 3" in reasons[3] and "died" in reasons[4] and "map is nan" in reasons[5]
    assert [trial.number for trial in found.ranked()] == [0]


def test_a_space_that_raises_fails_its_trial_alone(smoke, store) -> None:
    def broken(trial):
        kind = trial.suggest_categorical("augment", ["mixup", "mixdown"])
        if kind == "mixdown":
            raise KeyError(kind)
        return augmented(kind)

    def outcome(number, config):
        yield {"error": config["error"]} if config["error"] else {"finished": True, "map": 0.1}

    found = drive(smoke(broken, trials=8), store, outcome)
    assert set(found.counts()) == {"complete", "failed"}
    assert {t.error for t in found.trials if t.state == "failed"} == {"KeyError: 'mixdown'"}


class Killed(BaseException):
    """What no handler of errors catches."""


@contextmanager
def killed_at(write: int):
    """A kill before the database is written to for the time `write`, counted from 1; yields how
    often it was written to."""
    writes = []

    def count(connection, cursor, statement, *rest):
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            writes.append(statement)
            if len(writes) == write:
                raise Killed

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield writes
    finally:
        event.remove(Engine, "before_cursor_execute", count)


def record_of(found):
    """All that trials record, but for times."""
    return [replace(trial, seconds=0.0, ray_trial="") for trial in found.trials]


def by_halves(number, config):
    """Three validations, the last one of which is the result."""
    [last] = best_at_a_tenth(number, config)
    for rung in (1, 2, 3):
        yield {"rung": rung, "rungs": 3, "map": last["map"] * rung / 3}
    yield last


def test_a_kill_before_any_write_changes_nothing(smoke, tmp_path) -> None:
    search = smoke(LR, trials=3, scheduler="asha", first=({"finetune_lr": 0.1},))
    whole = Store.open(tmp_path / "whole")
    with killed_at(0) as writes:
        expected = record_of(drive(search, whole, by_halves))
    assert {trial.state for trial in expected} == {"complete", "pruned"}
    assert len(writes) > 30
    for write in range(1, len(writes) + 1):
        store = Store.open(tmp_path / str(write))
        with pytest.raises(Killed), killed_at(write):
            drive(search, store, by_halves)
        assert record_of(drive(search, store, by_halves)) == expected, writes[write - 1]


def test_a_search_that_is_killed_again_and_again_has_the_same_trials(smoke, tmp_path) -> None:
    def space(trial):  # drawn one by one, and where all trials have a name, jointly
        rate = trial.suggest_float("finetune_lr", 1e-4, 1.0, log=True)
        values = {"finetune_lr": rate}
        if trial.suggest_categorical("heavy", [True, False]):
            values["finetune.optim.momentum"] = trial.suggest_float("momentum", 0.0, 0.9)
        return with_values(values)

    search = smoke(space, trials=13)  # the sampler learns from ten trials on
    expected = drive(search, Store.open(tmp_path / "whole"), best_at_a_tenth)
    assert {"momentum" in trial.params for trial in expected.trials} == {True, False}
    store = Store.open(tmp_path / "killed")
    for write in itertools.count(8, 3):
        try:
            with killed_at(write):
                found = drive(search, store, best_at_a_tenth)
            break
        except Killed:
            pass
    assert record_of(found) == record_of(expected) and write > 30
    assert drive(search, store, best_at_a_tenth) == found  # nothing is left to do


def test_what_was_under_way_runs_again_under_its_number(smoke, store) -> None:
    search = smoke(LR, trials=6)
    before = drive(search, store, best_at_a_tenth, most=3)
    assert states(search, store) == ["COMPLETE"] * 3 + ["RUNNING"]
    found = drive(search, store, best_at_a_tenth)
    assert states(search, store) == ["COMPLETE"] * 6
    assert found.trials[:3] == before.trials[:3]
    assert found.trials[3].params == before.trials[3].params


def test_a_longer_search_goes_on_as_if_it_had_been_so_long(smoke, store, tmp_path) -> None:
    search = smoke(LR, trials=13)
    whole = drive(search, Store.open(tmp_path / "whole"), best_at_a_tenth)
    drive(replace(search, trials=6), store, best_at_a_tenth)
    assert record_of(drive(search, store, best_at_a_tenth)) == record_of(whole)


def test_optuna_alone_opens_a_search(smoke, store) -> None:
    search = smoke(LR, trials=3, objectives=("map", "macs"))

    def outcome(number, config):
        yield {"rung": 1, "rungs": 2, "map": 0.25}
        yield {"finished": True, "map": 0.5, "macs": 100.0}

    drive(search, store, outcome)
    study = optuna.load_study(
        study_name="test", storage=f"sqlite:///{store.root}/searches/test/optuna.db"
    )
    assert study.metric_names == ["map", "macs"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.user_attrs["declaration"]["seed"] == 0
    for trial in study.trials:
        assert trial.distributions == LR and trial.values == [0.5, 100.0]
        assert trial.intermediate_values == {1: 0.25}
        made = chain(search.experiment(trial), search.data)
        assert trial.user_attrs["stages"] == made.ids
    files = [path.name for path in (store.root / "searches" / "test").iterdir()]
    assert sorted(files) == ["drivers", "lock", "optuna.db"]


def test_another_declaration_under_the_same_name_is_refused(smoke, store) -> None:
    drive(smoke(LR, trials=1), store, best_at_a_tenth)
    base = smoke(LR).base
    longer = replace(base.finetune, optim=replace(base.finetune.optim, steps=5))
    for changed, what in [
        (smoke({"finetune_lr": FloatDistribution(1e-4, 2.0, log=True)}), "space.*2.0 now"),
        (smoke(space), "space"),
        (replace(smoke(LR), base=replace(base, finetune=longer)), "optim.steps: 4 there, 5 now"),
        (smoke(LR, seed=1), "seed"),
        (smoke(LR, scheduler="median"), "scheduler"),
    ]:
        with pytest.raises(ValueError, match=f"{what}.*another name"):
            drive(changed, store, best_at_a_tenth)


def test_a_function_is_the_same_declaration_however_it_is_laid_out(smoke) -> None:
    def made(rates, note):
        def space(trial):
            return with_values({"finetune_lr": trial.suggest_categorical("lr", rates)})

        return smoke(space).declaration()["space"], note

    assert made([1, 2], "a")[0] == made([1, 2], "b")[0]
    assert made([1, 2], "a")[0] != made([1, 3], "a")[0]


def test_two_drivers_share_a_search(smoke, store) -> None:
    search = smoke(LR, trials=5)
    with open_study(search, store) as one, open_study(search, store) as two:
        asked = [driver.ask() for driver in (one, two, one, two)]
        assert [trial.number for trial in asked] == [0, 1, 2, 3]
        rates = {search.experiment(trial).finetune.optim.lr for trial in asked}
        assert len(rates) == 4
        with pytest.raises(ValueError, match="is running"):
            collect(store)
        for driver, trial in zip((one, two, one), asked[:3], strict=True):
            driver.end(trial, TrialState.COMPLETE, [0.5])
        assert two.ask().number == 4 and one.ask() is None
        assert one.left == two.left == 2
        assert OptunaSearcher(one).suggest("a") is None  # it waits for the other's
    with open_study(search, store) as third:
        assert [third.ask().number, third.ask().number] == [3, 4]
        assert third.ask() is None
    collect(store)


def test_a_search_in_a_bucket_has_one_driver_and_goes_on_anywhere(
    smoke, bucket, on, quick, tmp_path
) -> None:
    search = smoke(LR, trials=5)
    whole = drive(search, Store.open(tmp_path / "whole"), best_at_a_tenth)
    store = Store.open(bucket.uri())
    drive(search, store, best_at_a_tenth, most=2)
    with open_study(search, store):
        for machine in ("a", "b"):
            on(machine)
            with pytest.raises(ValueError, match="another process"):
                drive(search, Store.open(bucket.uri()), best_at_a_tenth)
    found = drive(search, Store.open(bucket.uri()), best_at_a_tenth)
    assert record_of(found) == record_of(whole) and found.folder != store.root


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_trials_that_lag_behind_are_stopped_and_told_apart(smoke, store, scheduler) -> None:
    quality = [0.9, 0.8, 0.7, 0.6, 0.5, 0.95, 0.1]  # the median rule watches the first five

    def outcome(number, config):
        for rung in (1, 2, 3):
            yield {"rung": rung, "rungs": 3, "map": quality[number] * rung / 3}
        yield {"finished": True, "map": quality[number]}

    search = smoke(LR, trials=7, scheduler=scheduler)
    found = drive(search, store, outcome)
    told = [trial.state for trial in found.trials]
    assert told[0] == told[5] == "complete" and told[6] == "pruned"
    assert states(search, store) == [{"pruned": "PRUNED"}.get(s, "COMPLETE") for s in told]
    assert found.trials[6].rungs == {1: pytest.approx(0.1 / 3)}
    assert found.trials[0].rungs == {
        1: pytest.approx(0.3), 2: pytest.approx(0.6), 3: pytest.approx(0.9)
    }  # fmt: skip
    assert found.best().number == 5 and 6 not in {t.number for t in found.ranked()}


def test_the_pareto_set_is_that_of_optuna(smoke, store) -> None:
    def outcome(number, config):
        rate = learning_rate(config)
        yield {"finished": True, "map": min(rate, 0.5), "macs": 100 * rate + number % 3}

    search = smoke(LR, trials=15, objectives=("map", "macs"))
    found = drive(search, store, outcome)
    study = optuna.load_study(
        study_name="test", storage=f"sqlite:///{store.root}/searches/test/optuna.db"
    )
    assert {t.number for t in found.pareto()} == {t.number for t in study.best_trials}
    assert 0 < len(found.pareto()) < 15
    assert found.importance() == {"finetune_lr": pytest.approx(1)}


def test_the_command_lists_and_shows_searches(smoke, store, capsys) -> None:
    search = smoke(LR, trials=12)

    def outcome(number, config):
        yield {"error": "no luck"} if number == 3 else next(best_at_a_tenth(number, config))

    found = drive(search, store, outcome)
    place = ["--store", str(store.root)]
    assert main(["search", "ls", *place]) == 0
    assert "11 complete, 1 failed" in capsys.readouterr().out
    assert main(["search", "show", "test", *place, "--top", "3"]) == 0
    text = capsys.readouterr().out
    assert "finetune_lr 1.00" in text and "FAILED: no luck" in text and "sqlite:///" in text
    assert f"{found.best().values['map']:.4g}" in text
    assert main(["search", "show", "test", *place, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"complete": 11, "failed": 1} and len(told["trials"]) == 12
    assert main(["search", "show", "other", *place]) == 1
    assert "no search 'other'" in capsys.readouterr().err
    assert main(["search", "tune"]) == 2 and main(["search", "trust", "no.py"]) == 2


def test_the_space_of_the_experiment_holds_together(shapes) -> None:
    path = ROOT / "experiments" / "search_augmentation.py"
    assert len(path.read_text().splitlines()) <= 60
    search = load_search(path)
    base = preset("smoke").experiment
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        recipe = search.space(trial)(base).pretrain
        made = augmentation(recipe)  # refuses options that do not go together
        options = dict(recipe.augment_options)
        assert recipe.optim.lr == pytest.approx(base.pretrain.optim.lr * trial.params["lr_times"])
        assert all(getattr(made, name) == value for name, value in options.items())
        assert ("ramp" in options) == (options.get("mask") == "seamless")
        seen.add(recipe.augment)
    assert seen == {"none", "freeze", "mixup", "cutmix", "joint_single", "joint"}


def load_search(path: Path) -> Search:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SEARCH


@pytest.mark.parametrize(
    "domain",
    [
        tune.uniform(0, 1), tune.quniform(0, 1, 0.25), tune.loguniform(1e-4, 1), tune.randint(1, 9),
        tune.qrandint(2, 10, 2), tune.lograndint(1, 9), tune.choice(["a", "b"]),
    ],
    ids=lambda domain: type(domain).__name__,
)  # fmt: skip
def test_domains_of_ray_tune_become_what_rays_own_searcher_makes_of_them(domain, smoke) -> None:
    from ray.tune.search.optuna import OptunaSearch

    expected = OptunaSearch.convert_search_space({"finetune_lr": domain})
    assert smoke({"finetune_lr": domain}).distributions == expected
