"""Questions to a store that was made by hand, in Python and on the command line."""

import json
import re
import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ssdet import results
from ssdet.cli.__main__ import main
from ssdet.evaluation import paired_bootstrap
from ssdet.results.cleaning import collect
from ssdet.results.queries.stage_files import TICK
from ssdet.results.tables.result_table import result_table
from ssdet.studies import Arm, Table, augmented, classification, plan
from ssdet.studies.graph.record import write_record
from ssdet.system.safe_files import write_json
from ssdet.training import checkpoint
from ssdet.training.loop import network

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "results.md").read_text()


@pytest.fixture
def opened(made):
    return results.open(made.store.root)


def score(made, arm, seed=0, readout="predict", split="test") -> float:
    return made.store.result(made.id(arm, seed, readout))["scores"][split]["value"]


def another_study(finished, name: str, **arms: Arm):
    """A study of other arms on the same base and data, not run."""
    study = finished.plan.study
    other = plan(replace(study, name=name, arms=tuple(arms.values()), table=Table()))
    write_record(finished.store, other)
    return other


def test_a_row_for_every_finished_run(made, opened) -> None:
    frame = opened.runs.set_index("id")
    assert sorted(frame["kind"]) == ["ensemble"] * 3 + ["probe"] * 9 + ["single"] * 9
    row = frame.loc[made.id("view", 1)]
    assert row["studies"] == ("ablate_cutmix",) and row["arms"] == ("view",)
    assert row["dense_map"] == score(made, "view", 1)
    assert row["probe_map"] == score(made, "view", 1, "probe")
    assert row["dense_map_val"] == score(made, "view", 1, split="val")
    assert (row["seed"], row["augment"], row["readout"]) == (1, "cutmix", "frame")
    assert json.loads(row["augment_options"]) == {"window": "view"}
    base = made.plan.study.base
    assert (
        row["pretrain_steps"] == base.pretrain.optim.steps and row["lr"] == base.finetune.optim.lr
    )
    assert (row["videos_scored"], row["videos_expected"]) == (8, 8)
    assert row["protocol"] == "dense_map/v1" and row["host"] == "alices-laptop"
    assert row["seconds"] == 3 * 2.0  # pretrain, finetune, predict
    fresh = frame.loc[made.id("fresh")]
    assert pd.isna(fresh["augment"]) and fresh["pretrain_steps"] == 0 and fresh["seconds"] == 4.0
    assert fresh["probe_map"] == score(made, "fresh", 0, "probe")
    pair = frame.loc[made.id("pair", 2)]
    assert pair["seed"] == 2 and pd.isna(pair["augment"]) and pair["lr"] == base.finetune.optim.lr
    assert pair["parents"] == tuple(sorted([made.id("cls", 2), made.id("view", 2)]))
    assert pair["seconds"] == 7 * 2.0


def test_the_best_of_each_kind(made, opened) -> None:
    for metric, arm, readout in (
        ("dense_map", "view", "predict"), ("probe_map", "view", "probe"),
        ("ensemble_map", "pair", "predict"),
    ):  # fmt: skip
        for split in ("test", "val"):
            best = opened.best(metric, split, arms=arm)
            scores = {
                made.id(arm, s, readout): score(made, arm, s, readout, split) for s in range(3)
            }
            assert best.id == max(scores, key=scores.__getitem__)
    assert opened.best("dense_map", augment="none", readout="clip", seed=2).id == made.id("cls", 2)
    chosen = opened.best("dense_map", augment_options={"window": "view"}, seed=1)
    assert chosen.id == made.id("view", 1)
    assert opened.best("dense_map", augment=None, seed=1).id == made.id("fresh", 1)
    assert [member.id for member in opened.best("ensemble_map", seed=0).members] == sorted(
        [made.id("cls"), made.id("view")]
    )


def test_what_cannot_be_ranked_is_refused(made, finished) -> None:
    opened = results.open(finished.store.root)
    with pytest.raises(ValueError, match="no column augmentation: choose from id, kind"):
        opened.best("dense_map", augmentation="cutmix")
    with pytest.raises(ValueError, match="choose from dense_map, probe_map"):
        opened.best("accuracy")
    with pytest.raises(ValueError, match="no finished single run"):
        opened.best("dense_map", augment="freeze")
    name = finished.id("cls")
    for change in ({"protocol": "dense_map_apmeter/v1"}, {"videos_scored": 7}):
        result = made.store.result(name)
        result["scores"]["test"] |= change
        write_json(finished.store.folder(name) / "DONE", result)
        opened = results.open(finished.store.root)
        with pytest.raises(ValueError, match=f"differ in {next(iter(change))}"):
            opened.best("dense_map")
        assert opened.best("dense_map", arms="view")
        with pytest.raises(ValueError, match="are not compared"):
            opened.compare("cls", "view")


def test_a_run_has_its_weights_recipes_and_predictions(finished) -> None:
    stage = finished.plan.of("view")[0].predict.parents[0]
    trained = network(stage.recipe, 10)
    torch.nn.init.normal_(next(trained.parameters()), generator=torch.Generator().manual_seed(1))
    path = finished.store.folder(stage.id) / "checkpoints" / "last.pt"
    checkpoint.save(path, {"model": trained.state_dict()})
    run = results.open(finished.store.root).run(finished.id("view"))
    assert run.checkpoint == path
    assert run.recipe == stage.recipe and run.pretrain_recipe == stage.parents[0].recipe
    assert set(run.predictions()) == set(finished.targets["test"])
    assert set(run.predictions("val")) == set(finished.targets["val"])
    assert run.provenance["revision"] == "abc"
    model = run.load_model()
    assert not model.training
    clip_BCTHW = torch.rand(1, 3, 16, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(clip_BCTHW), trained.eval()(clip_BCTHW))


def test_a_run_says_what_it_lacks(made, opened) -> None:
    with pytest.raises(ValueError, match="no pretrain stage"):
        _ = opened.run(made.id("fresh")).pretrain_recipe
    for name in (made.id("pair"), made.id("view", 0, "probe")):
        with pytest.raises(ValueError, match="has no network"):
            opened.run(name).load_model()
    with pytest.raises(ValueError, match="no weights of its own"):
        _ = opened.run(made.id("pair")).checkpoint
    with pytest.raises(FileNotFoundError, match="are gone"):
        _ = opened.run(made.id("view")).checkpoint
    with pytest.raises(ValueError, match="no finished run"):
        opened.run("predict-0123456789abcdef")


def test_arms_are_compared_over_videos_and_seeds(made, opened) -> None:
    for readout, end in (("finetuned", "predict"), ("probe", "probe")):
        found = opened.compare("cls", "view", readout=readout, resamples=200)
        sets = [
            [opened.run(made.id(arm, seed, end)).predictions() for seed in range(3)]
            for arm in ("cls", "view")
        ]
        assert found.bootstrap == paired_bootstrap(*sets, made.targets["test"], 200)
        assert found.seeds == (0, 1, 2)
        assert found.mean_b == pytest.approx(
            np.mean([score(made, "view", s, end) for s in range(3)])
        )
    with pytest.raises(ValueError, match="no study that ran here has an arm 'nothing'"):
        opened.compare("cls", "nothing")


def test_an_arm_of_several_studies_has_to_be_told_apart(finished) -> None:
    another_study(
        finished, "twin", cls=Arm("cls", classification), view=finished.plan.study.arm("view")
    )
    opened = results.open(finished.store.root)
    assert opened.compare("cls", "view").seeds == (0, 1, 2)  # the same runs in both
    other = Arm("view", augmented("cutmix", window="transient"))
    another_study(finished, "third", cls=Arm("cls", classification), view=other)
    opened = results.open(finished.store.root)
    with pytest.raises(ValueError, match="'view' stands for other runs .* ablate_cutmix.*third"):
        opened.compare("cls", "view")
    assert opened.compare("cls", "view", study="ablate_cutmix").study_b == "ablate_cutmix"
    with pytest.raises(ValueError, match="no finished seed in common"):
        opened.compare("cls", "view", study="third")
    assert opened.run(finished.id("cls")).row["studies"] == ("third", "twin", "ablate_cutmix")


def test_the_table_needs_no_experiment_file(made, opened) -> None:
    assert opened.table("ablate_cutmix") == result_table(made.plan, made.store)
    with pytest.raises(ValueError, match="no record of study 'x'.*of: ablate_cutmix"):
        opened.table("x")


def test_what_is_damaged_is_left_out_with_a_warning(finished) -> None:
    (finished.store.folder(finished.id("cls")) / "DONE").write_text("{")
    (finished.store.studies / "ablate_cutmix" / "0.json").write_text("{")
    with pytest.warns(UserWarning, match="left out"):
        opened = results.open(finished.store.root)
    assert len(opened.faults) == 2 and len(opened.runs) == 20
    with pytest.raises(ValueError, match="nothing was removed"):
        collect(finished.store)


def test_no_store_is_made_by_looking_for_one(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no store"):
        results.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="mount"):
        results.open("file://elsewhere/x")


def test_an_empty_store_has_no_runs(tmp_path) -> None:
    (tmp_path / "stages").mkdir()
    assert results.open(tmp_path).runs.empty


def test_opening_needs_no_ray_and_importing_needs_nothing(made) -> None:
    code = (
        "import sys, ssdet.results as r; assert not {'torch', 'pandas', 'ray'} & {*sys.modules};"
        f"assert len(r.open({str(made.store.root)!r}).runs) == 21; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_listing_and_ranking_import_no_framework(finished) -> None:
    root = str(finished.store.root)
    time.sleep(2 * TICK / 1e9)  # what has just been written is read once more
    results.open(root)
    for command in ("ls", "best"):
        code = (
            "import sys; from ssdet.cli.__main__ import main\n"
            f"assert main(['results', {command!r}, '--store', {root!r}, '--json']) == 0\n"
            "print(*{'torch', 'ray', 'pandas', 'matplotlib', 'av', 'pydantic'} & {*sys.modules},"
            " file=sys.stderr)"
        )
        ran = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, text=True,
                             capture_output=True)  # fmt: skip
        assert json.loads(ran.stdout) and not ran.stderr.strip()


def test_a_table_lists_the_runs_that_finished_last(made, capsys) -> None:
    store = str(made.store.root)
    times = results.open(store).runs.set_index("id")["finished"]
    rows = json.loads(told(capsys, "results", "ls", "--limit", "3", "--json", "--store", store))
    assert [row["id"] for row in rows] == list(times.sort_values(kind="stable").index[-3:])
    text = told(capsys, "results", "ls", "--limit", "3", "--store", store)
    assert "the last 3 of 21 runs, 36 finished stages; studies: ablate_cutmix" in text
    assert sum("│ predict-" in line or "│ ensemble-" in line for line in text.splitlines()) == 3
    assert "21 runs" in told(capsys, "results", "ls", "--limit", "0", "--store", store)


def told(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def test_the_commands_say_it_in_json(made, capsys, monkeypatch) -> None:
    monkeypatch.setenv("SSDET_STORE", str(made.store.root))
    rows = json.loads(told(capsys, "results", "ls", "--json"))
    assert len(rows) == 21
    best = json.loads(
        told(capsys, "results", "best", "dense_map", "--where", "arms=view", "seed=1", "--json")
    )
    assert best["id"] == made.id("view", 1)
    found = json.loads(told(capsys, "results", "compare", "cls", "view", "--json"))
    assert found["bootstrap"]["difference"] > 0 and found["seeds"] == [0, 1, 2]
    shown = json.loads(told(capsys, "results", "show", "ablate_cutmix", "--json"))
    assert len(shown["runs"]) == 12 and shown["stages"] == "36 of 36 finished"
    stage = json.loads(told(capsys, "results", "show", made.id("view"), "--json"))
    assert any(name.startswith("ablate_cutmix/") for name in stage["needed by"])
    assert made.id("pair") in stage["needed by"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("results best dense_map --where x=1", 1),
        ("results show predict-0123456789abcdef", 1),
        ("results show nothing", 1),
        ("results rm nothing", 1),
        ("results ls --store /nonexistent", 1),
        ("results frobnicate", 2),
        ("results best accuracy", 2),
        ("verify", 2),
        ("verify nothing.zip", 1),
    ],
)
def test_wrong_commands_fail(made, monkeypatch, capsys, arguments, status) -> None:
    monkeypatch.setenv("SSDET_STORE", str(made.store.root))
    try:
        found = main(arguments.split())
    except SystemExit as end:
        found = end.code
    assert found == status
    assert capsys.readouterr().err


def test_gc_keeps_what_a_record_needs(finished, capsys) -> None:
    store = finished.store
    stages = set(finished.plan.stages)
    lonely = plan(
        replace(finished.plan.study, arms=(Arm("odd", augmented("mixup")),), table=Table())
    )
    for stage in lonely.stages.values():
        store.folder(stage.id).mkdir()
        (store.folder(stage.id) / "recipe.json").write_text(json.dumps(stage.identity))
        store.finish(stage.id, {"scores": {}})
    end = lonely.runs[0].predict
    partial = store.folder(finished.id("view")) / "DONE.1.partial"
    partial.write_bytes(b"x" * 1000)
    lock = store.root / "stages" / "predict-0123456789abcdef.lock"
    lock.touch()
    (store.root / "trash" / "old").mkdir(parents=True)
    (store.folder(end.id) / "DONE").unlink()
    with store.lock(end.id):  # it runs, and needs its ancestors
        removed = collect(store)
    kept = {end.id, *(p.id for p in end.parents), *(p.id for p in end.parents[0].parents)}
    left = {path.name for path in (store.root / "stages").iterdir() if path.is_dir()}
    assert left == stages | kept and removed.busy == (end.id,)
    assert not partial.exists() and not lock.exists()
    assert removed.sizes[str(partial.relative_to(store.root))] == 1000
    before = sorted(store.root.rglob("*"))
    capsys.readouterr()
    assert main(["results", "gc", "--dry-run", "--store", str(store.root)]) == 0
    assert end.id in capsys.readouterr().out
    assert {path for path in before if path.is_dir()} <= set(store.root.rglob("*"))
    collect(store)
    assert {path.name for path in (store.root / "stages").iterdir() if path.is_dir()} == stages
    assert not list((store.root / "trash").iterdir())


def test_what_is_needed_is_not_removed_by_name(finished, capsys) -> None:
    root, name = finished.store.root, finished.id("cls")
    assert main(["results", "rm", name, "--store", str(root)]) == 1
    assert "ablate_cutmix/" in capsys.readouterr().err and finished.store.folder(name).is_dir()
    assert main(["results", "rm", name, "--force", "--store", str(root)]) == 0
    assert not finished.store.folder(name).exists()
    finished.store.table_folder("ablate_cutmix")
    assert main(["results", "rm", "ablate_cutmix", "--store", str(root)]) == 0
    assert not (finished.store.studies / "ablate_cutmix").exists()
    assert not (root / "tables" / "ablate_cutmix").exists()
    removed = collect(finished.store)
    assert len(removed.sizes) == 35 and removed.bytes > 0
    assert not [path for path in (root / "stages").iterdir()]


def test_the_guide_does_what_it_says(finished, tmp_path, monkeypatch, capsys) -> None:
    for run in finished.plan.runs:
        if run.predict.kind == "predict":
            tuned = run.predict.parents[0]
            path = finished.store.folder(tuned.id) / "checkpoints" / "last.pt"
            checkpoint.save(path, {"model": network(tuned.recipe, 10).state_dict()})
    (tmp_path / "runs").symlink_to(finished.store.root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSDET_STORE", raising=False)
    space: dict = {}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", GUIDE, re.DOTALL):
        if language == "python":
            exec(compile(block, "docs/results.md", "exec"), space)
            continue
        for line in block.strip().splitlines():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert main(shlex.split(line)[1:]) == 0, line
    assert space["run"].id == finished.id("view") and space["table"].study == "ablate_cutmix"
    assert "the table holds" in capsys.readouterr().out


def test_gc_takes_ensembles_along_of_which_a_member_goes(finished) -> None:
    store = finished.store
    kept = [finished.id("cls"), finished.id("view")]
    for name, members in {"stays": kept, "goes": [kept[0], "predict-0123456789abcdef"]}.items():
        folder = store.root / "ensembles" / name
        folder.mkdir(parents=True)
        described = {"members": [[member, None] for member in members]}
        (folder / "ensemble.json").write_text(json.dumps(described))
    removed = collect(store)
    assert [name for name in removed.sizes if "ensembles" in name] == ["ensembles/goes"]
    assert [path.name for path in (store.root / "ensembles").iterdir()] == ["stays"]
