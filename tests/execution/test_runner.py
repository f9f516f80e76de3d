"""Studies on Ray: the whole way to a table, once; then nothing twice."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from ssdet.cli.experiment import Options, main, resolve
from ssdet.evaluation import PredictionSet
from ssdet.execution.tuner import GraphSearch
from ssdet.results.tables.result_table import result_table
from ssdet.studies import Arm, StagesFailed, Store, Study, Table, augmented, plan, pretraining, run
from ssdet.studies import classification as cls

ARMS = (
    Arm("cls", cls),
    Arm("view", augmented("cutmix", window="view")),
    Arm("pair", members=("cls", "view")),
)
STUDY = Study("runner_test", ARMS, table=Table("A test", "cls", {"view": 18.99}, "nowhere"))


@pytest.fixture(scope="module")
def options(shapes, ray_session, tmp_path_factory) -> Options:
    return Options(preset="smoke", seeds=2, store=str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def finished(options) -> Store:
    assert main(STUDY, options) == 0
    return Store.open(options.store)


def test_a_table_stands_in_the_store(finished) -> None:
    folder = finished.root / "tables" / "runner_test"
    lines = (folder / "table.csv").read_text().splitlines()
    arms = [line.split(",")[:2] for line in lines[1:]]
    assert arms == [["cls", "finetuned"], ["cls", "probe"], ["view", "finetuned"],
                    ["view", "probe"], ["pair", "finetuned"]]  # fmt: skip
    markdown = (folder / "table.md").read_text()
    assert "18.99" in markdown and "Quoted, not measured here" in markdown
    assert (folder / "figure.png").stat().st_size > 5000


def test_every_stage_says_what_it_is_and_how_it_ran(finished) -> None:
    folders = [path for path in (finished.root / "stages").iterdir() if path.is_dir()]
    assert len(folders) == 2 * (2 + 2 + 2 + 2 + 1)
    for folder in folders:
        recipe = json.loads((folder / "recipe.json").read_text())
        assert folder.name.startswith(recipe["kind"])
        how = json.loads((folder / "provenance.json").read_text())
        assert how["seconds"] > 0 and how["packages"]["torch"]
        if recipe["kind"] in ("pretrain", "finetune"):
            steps = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
            assert steps[-1]["step"] == 4
            assert (folder / "checkpoints" / "last.pt").is_file()


def test_the_ensemble_is_the_mean_of_its_members(finished, options) -> None:
    study = resolve(STUDY, options)
    run_ = plan(study).of("pair")[0]
    sets = [
        PredictionSet.open(finished.folder(stage.id) / "predictions" / "test")
        for stage in (run_.predict, *run_.predict.parents)
    ]
    for video in sets[0].videos:
        mean = (sets[1][video].astype("f4") + sets[2][video].astype("f4")) / 2
        assert abs(sets[0][video].astype("f4") - mean).max() < 1e-3


def test_the_same_command_trains_nothing_again(finished, options) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished.root / "stages").rglob("*")}
    table = finished.root / "tables" / "runner_test" / "table.csv"
    first = table.read_bytes()
    assert main(STUDY, options) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (finished.root / "stages").rglob("*")}
    assert table.read_bytes() == first


def test_a_failing_arm_fails_alone(finished, options) -> None:
    def hopeless(experiment):
        optim = replace(experiment.pretrain.optim, lr=1e30, schedule="constant")
        return pretraining(optim=optim)(experiment)

    study = resolve(replace(STUDY, arms=(*ARMS, Arm("hopeless", hopeless))), options)
    with pytest.raises(StagesFailed) as failure:
        run(replace(study, seeds=(0,)), finished)
    reasons = sorted(failure.value.errors.items())
    assert [name.split("-")[0] for name, _ in reasons] == [
        "finetune", "predict", "pretrain", "probe"]  # fmt: skip
    assert "learning rate" in dict(reasons)[next(n for n, _ in reasons if "pretrain" in n)]
    assert all("needs" in why for name, why in reasons if "pretrain" not in name)


def test_a_table_of_unfinished_runs_is_refused(finished, options) -> None:
    more = plan(replace(resolve(STUDY, options), seeds=(0, 1, 2)))
    with pytest.raises(ValueError, match="seed 2.*not finished"):
        result_table(more, finished)


def test_a_cluster_that_is_too_small_is_refused_before_anything_runs(finished, options) -> None:
    study = replace(resolve(STUDY, options), seeds=(7,))
    with pytest.raises(ValueError, match="GPU"):
        run(study, finished, gpus_per_worker=8)


def test_a_spent_budget_starts_nothing_more_and_the_next_command_goes_on(
    options, tmp_path, capsys
) -> None:
    study = Study("runner_test", ARMS[:1])
    modest = replace(options, seeds=1, store=str(tmp_path), concurrent=1, budget=1e-7)
    assert main(study, modest) == 1
    assert "core-hours spent, 3 stages are left" in capsys.readouterr().err
    store = Store.open(tmp_path)
    done = [p.parent.name.split("-")[0] for p in (tmp_path / "stages").glob("*/DONE")]
    assert done == ["pretrain"]  # what had been started came to its end
    assert main(study, replace(modest, budget=None)) == 0
    assert (store.root / "tables" / "runner_test" / "table.csv").is_file()


def test_a_smoke_run_tries_the_whole_plan_beside_the_real_one(options, tmp_path) -> None:
    def longer(experiment):
        optim = replace(experiment.pretrain.optim, steps=10**6)
        return pretraining(optim=optim)(experiment)

    study = Study("runner_test", (ARMS[0], Arm("long", longer)))
    quick = replace(options, seeds=1, store=str(tmp_path), smoke=True)
    assert main(study, quick) == 0
    assert not list((tmp_path / "stages").iterdir())
    smoke = tmp_path / "smoke"
    for path in smoke.glob("stages/*/recipe.json"):
        stage = json.loads(path.read_text())
        if stage["kind"] in ("pretrain", "finetune"):
            assert stage["recipe"]["optim"]["steps"] == 2
    assert (smoke / "tables" / "runner_test" / "report.html").stat().st_size > 10_000
    rows = (smoke / "tables" / "runner_test" / "table.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["cls", "cls", "long", "long"]


DECLARED = (
    "import sys; from ssdet.cli.experiment import Options, main;"
    "from ssdet.studies import Arm, Study, classification;"
    "STUDY = Study('both', (Arm('cls', classification),))"
)


def test_two_drivers_share_the_work_and_run_no_stage_twice(options, tmp_path) -> None:
    """The second has stages of its own, and waits for the first's without holding a slot."""
    settings = {"preset": "smoke", "seeds": 2, "store": str(tmp_path), "concurrent": 1}
    code = f"{DECLARED}; sys.exit(main(STUDY, Options(**{settings!r})))"
    drivers = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [driver.communicate(timeout=300)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    attempts = [json.loads(p.read_text())["number"] for p in tmp_path.glob("stages/*/attempt.json")]
    assert attempts == [1] * 8
    for text in told:  # each saw all of the plan come to its end
        assert "[8/8] done" in text


def test_a_stage_whose_process_died_for_good_is_failed_in_the_store(options, tmp_path) -> None:
    """Ray tells the driver; nobody else is left to note it for those who watch."""
    planned = plan(resolve(STUDY, options))
    store = Store.open(str(tmp_path / "store"))
    search = GraphSearch(planned.stages, store)
    first = search.suggest("trial")["stage"]
    search.on_trial_complete("trial", error=True)
    assert "died again and again" in (store.folder(first) / "error.txt").read_text()
    assert "died again and again" in search.errors[first]
    assert all("needs" in why for stage, why in search.errors.items() if stage != first)
    assert len(search.errors) > 1 and len(search.errors) < len(planned.stages)
