"""Scores of finished runs under further protocols: where they are, who sees them, what they leave
as it was."""

import json
import time

import numpy as np
import pandas as pd
import pytest

from ssdet import results
from ssdet.cli.__main__ import main
from ssdet.evaluation import average_precision, dense_map
from ssdet.results.cleaning import collect
from ssdet.results.proof.bundle import write_bundle
from ssdet.results.proof.verify import verify
from ssdet.results.queries import index
from ssdet.results.queries.rescore import rescore
from ssdet.results.queries.stage_files import TICK
from ssdet.system.safe_files import write_json


def files(store, stage):
    """Content of a stage's own files."""
    folder = store.folder(stage)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "scores"]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def by_points(finished, stage, split="test"):
    """The official score of a run from the segments, by loops."""
    data = finished.plan.study.data
    manifest = data.split("downstream", split)
    predictions = results.open(finished.store.root).run(stage).predictions(split)
    rows, hits = [], []
    for video in manifest.videos:
        probs = predictions[video.id].astype(float)
        for j in range(25):
            at = j / 25 * video.duration
            step = min(at * predictions.fps(video.id), len(probs) - 1)
            low, high = int(step), min(int(step) + 1, len(probs) - 1)
            pair = np.clip(probs[[low, high]], 2.0**-25, 1 - 2.0**-12)
            logits = np.log(pair / (1 - pair))
            rows.append(logits[0] * (1 - step + low) + logits[1] * (step - low))
            shown = {s.label for s in video.segments if s.start <= at <= s.end}
            hits.append([k in shown for k in range(manifest.num_classes)])
    return average_precision(np.array(rows), np.array(hits))


def test_numbers_become_columns_of_their_own(finished) -> None:
    store, stage = finished.store, finished.id("view", 1)
    before, columns = files(store, stage), results.open(store.root).columns
    found = rescore(results.open(store.root), stage, ["charades_official", "sampled25_mstct"])
    assert not found.refused and files(store, stage) == before
    opened = results.open(store.root)
    added = {*opened.columns} - {*columns}
    assert added == {"charades_official_map", "charades_official_wap", "sampled25_map_mstct"}
    row = opened.runs.set_index("id").loc[stage]
    ap_K = by_points(finished, stage)
    assert row["charades_official_map"] == pytest.approx(np.mean(ap_K), abs=1e-9)
    assert row["dense_map"] == store.result(stage)["scores"]["test"]["value"]
    others = opened.runs[opened.runs["id"] != stage]
    assert others["charades_official_map"].isna().all()
    assert opened.runs["charades_official_wap"].dtype == "float64"
    assert [reading.protocol for reading in found.readings["test"]] == [
        "charades_official_map/v1",
        "charades_official_wap/v1",
        "sampled25_map_mstct/v1",
    ]


def test_every_protocol_that_applies_and_both_splits(finished) -> None:
    opened, stage = results.open(finished.store.root), finished.id("cls")
    found = rescore(opened, stage, splits=("test", "val"))
    assert {name.split(",")[0] for name in found.refused} == {"dense_min162"}
    kept = sorted(path.stem for path in (finished.store.folder(stage) / "scores").iterdir())
    assert "strata" in kept and "segments" in kept and "dense" not in kept
    again = results.open(finished.store.root)
    row = again.rows[stage]
    for column in (
        "dense_map_pdan",
        "dense_map.acts=1",
        "segment_map_tiou0.5",
        "conditional_f1_t0",
    ):
        assert isinstance(row[column], float) and isinstance(row[f"{column}_val"], float)
    assert row["dense_map_pdan"] == pytest.approx(row["dense_map"], abs=1e-12)
    assert pd.api.types.is_float_dtype(again.runs["conditional_f1_t0_val"])


def test_the_index_remembers_and_follows(finished, monkeypatch) -> None:
    store, stage = finished.store, finished.id("view")
    rescore(results.open(store.root), stage, ["dense_apmeter"])
    score = rescored(store, stage)["test"]["dense_map_apmeter"]
    assert score["videos_expected"] == 8 and "per_class" not in score
    time.sleep(2 * TICK / 1e9)  # what has just been written is read once more
    before = index.load(store.root).runs
    with monkeypatch.context() as patched:
        patched.setattr(index, "read_stages", only_nothing)
        assert index.load(store.root).runs == before
    rescore(results.open(store.root), stage, ["dense_apmeter"], ["val"])
    assert rescored(store, stage).keys() == {"test", "val"}
    (store.folder(stage) / "scores" / "dense_apmeter.json").unlink()
    assert not rescored(store, stage)


def rescored(store, stage):
    """Scores of a stage under further protocols, as the index has them."""
    return index.load(store.root).lineage.summaries[stage].rescored


def only_nothing(folder, stamps):
    assert not stamps
    return {}, {}


def test_best_ranks_by_a_further_protocol(finished) -> None:
    store = finished.store
    runs = [finished.id(arm, seed) for arm in ("cls", "view") for seed in range(2)]
    for run in runs:
        rescore(results.open(store.root), run, ["charades_official"])
    opened = results.open(store.root)
    values = {run: opened.rows[run]["charades_official_map"] for run in runs}
    assert opened.best("charades_official_map").id == max(values, key=values.__getitem__)
    cls = opened.best("charades_official_map", arms="cls")
    assert cls.id == max(runs[:2], key=values.__getitem__)
    with pytest.raises(ValueError, match="no finished single run"):
        opened.best("charades_official_map", split="val")
    path = store.folder(runs[0]) / "scores" / "charades_official.json"
    kept = json.loads(path.read_text())
    kept["scores"]["test"]["charades_official_map"]["videos_scored"] = 3
    path.unlink()
    path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="runs differ in videos_scored"):
        results.open(store.root).best("charades_official_map")


def test_gc_and_bundles_know_them(finished, tmp_path) -> None:
    store, stage = finished.store, finished.id("view")
    before = write_bundle(
        results.open(store.root), "ablate_cutmix", tmp_path / "a.zip"
    ).read_bytes()
    rescore(results.open(store.root), stage, ["dense_apmeter"])
    after = write_bundle(results.open(store.root), "ablate_cutmix", tmp_path / "b.zip").read_bytes()
    assert before == after and verify(tmp_path / "b.zip").holds
    collect(store)
    assert (store.folder(stage) / "scores" / "dense_apmeter.json").is_file()
    store.remove(stage)
    assert "dense_map_apmeter" not in results.open(store.root).columns


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("ssdet-scores/1", "ssdet-scores/9"),
        lambda text: json.dumps({**json.loads(text), "result": "0" * 16}),
        lambda text: json.dumps({**json.loads(text), "scores": {"test": {"x": 1}}}),
    ],
)
def test_scores_of_another_result_are_left_out_and_said(finished, damage) -> None:
    store, stage = finished.store, finished.id("view")
    rescore(results.open(store.root), stage, ["dense_apmeter"])
    path = store.folder(stage) / "scores" / "dense_apmeter.json"
    text = path.read_text()
    path.unlink()
    path.write_text(damage(text))
    for _ in range(2):  # from the folders, and from the index
        with pytest.warns(UserWarning, match=r"scores/dense_apmeter.json.*score the run again"):
            opened = results.open(store.root)
        assert stage in opened.rows and "dense_map_apmeter" not in opened.columns
    rescore(opened, stage, ["dense_apmeter"])
    assert "dense_map_apmeter" in results.open(store.root).columns


def test_predictions_that_do_not_give_the_reported_score_are_refused(finished) -> None:
    store, stage = finished.store, finished.id("view")
    result = store.result(stage)
    result["scores"]["test"]["value"] += 0.01
    write_json(store.folder(stage) / "DONE", result)
    with pytest.raises(ValueError, match="dense_map of split test is .* the stage reported"):
        rescore(results.open(store.root), stage)
    assert not (store.folder(stage) / "scores").exists()


def test_what_cannot_be_scored_is_named(finished) -> None:
    opened, stage = results.open(finished.store.root), finished.id("cls")
    for protocols, told in (
        (["dense"], "what runs report themselves"),
        (["official"], "protocol official: choose from dense,"),
        (["dense_min162"], "dense_min162 does not apply to split test: no scored video has 162"),
    ):
        with pytest.raises(ValueError, match=told):
            rescore(opened, stage, protocols)
    with pytest.raises(ValueError, match="no finished run"):
        rescore(opened, "predict-0000000000000000")


def test_the_command(finished, capsys, monkeypatch) -> None:
    monkeypatch.setenv("SSDET_STORE", str(finished.store.root))
    runs = [finished.id("cls"), finished.id("view")]
    asked = ["--protocol", "charades_official", "dense_apmeter"]
    assert main(["results", "rescore", *runs, *asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    opened = results.open(finished.store.root)
    assert [told[run]["test"][0]["value"] for run in runs] == [
        opened.rows[run]["charades_official_map"] for run in runs
    ]
    assert main(["results", "rescore", runs[0], "--protocol", "dense_apmeter"]) == 0
    assert "dense_map_apmeter/v1" in capsys.readouterr().out
    best = ["results", "best", "charades_official_map", "--where", "arms=cls", "--json"]
    assert main(best) == 0 and json.loads(capsys.readouterr().out)["id"] == runs[0]
    assert main(["results", "rescore", runs[0], "--protocol", "dense"]) == 1
    assert "what runs report themselves" in capsys.readouterr().err
    scored = dense_map(opened.run(runs[0]).predictions(), opened.targets(runs[0]))
    assert scored.value == opened.rows[runs[0]]["dense_map"]
