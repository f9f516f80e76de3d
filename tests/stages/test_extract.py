"""Features as stages: equal to what the network says, resumed, scored, and read by heads."""

import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdet.cli.__main__ import main
from ssdet.data.features.shards import FeatureSet
from ssdet.evaluation import PredictionSet
from ssdet.execution.executor import RayExecutor
from ssdet.inference.scoring import passes
from ssdet.stages.features import (
    StreamJob,
)
from ssdet.stages.job import FEATURES, Job
from ssdet.stages.kinds import run_stage
from ssdet.store.base import Store
from ssdet.studies.data import Data, moving_shapes
from ssdet.studies.graph.builder import StageGraph
from ssdet.studies.graph.identity import Stage, data_fingerprint, stored_stage
from ssdet.studies.presets import preset
from ssdet.training.loop import network
from ssdet.training.recipe import ExtractRecipe, HeadRecipe, OptimRecipe

CPU = torch.device("cpu")
OPTIM = OptimRecipe(steps=60, batch=4, lr=0.01, optimizer="adamw", weight_decay=0.0)


@pytest.fixture(scope="module")
def data(shapes) -> Data:
    return moving_shapes(preset("smoke").shapes)


@pytest.fixture(scope="module")
def recipe() -> ExtractRecipe:
    base = preset("smoke").experiment
    clip = replace(base.predict.clip, stride=3)
    return ExtractRecipe(replace(base.predict, clip=clip, window=6), "float32", base.finetune)


def features_of(store: Store, stage) -> FeatureSet:
    return FeatureSet.open(store.folder(stage.id) / FEATURES)


@pytest.fixture(scope="module")
def extracted(data, recipe, tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("store"))
    stage = StageGraph(data).features(recipe)
    result = run_stage(Job(stage, str(store.root), data))
    return store, stage, result


def test_rows_are_what_the_network_says(extracted, data, recipe) -> None:
    store, stage, result = extracted
    features = features_of(store, stage)
    features.verify()
    manifest = data.manifests["downstream"]
    assert result["videos"] == result["videos_expected"] == len(manifest.videos) == len(features)
    reader = data.reader("downstream")
    model = network(recipe.fresh, 1).eval()
    for video in manifest.videos[:3]:
        rows = features[video.id]["features"]
        with torch.inference_mode():
            said = [model.features(c)[0].T for _, c in passes(video, reader, recipe.predict, CPU)]
        torch.testing.assert_close(torch.from_numpy(np.array(rows)), torch.cat(said))
        entry = features.entries[video.id]
        assert (entry.frames, entry.stride) == (reader.frames(video), 3)
        assert entry.steps == -(-entry.frames // 3) and entry.fps == reader.fps(video)


def test_the_name_tells_weights_preprocessing_and_data(data, recipe, tmp_path) -> None:
    ids = {StageGraph(data).features(recipe).id}
    window = replace(recipe, predict=replace(recipe.predict, window=7))
    for other in (
        window,
        replace(recipe, dtype="float16"),
        replace(recipe, fresh=replace(recipe.fresh, seed=1)),
    ):
        ids.add(StageGraph(data).features(other).id)
    ids.add(StageGraph(replace(data, decode_size=20)).features(recipe).id)
    assert len(ids) == 5
    with pytest.raises(ValueError, match="give one"):
        StageGraph(data).features(replace(recipe, fresh=None))


def test_a_head_is_trained_and_scored_without_any_video(extracted, data, monkeypatch) -> None:
    store, stage, _ = extracted
    head = StageGraph(data).head(HeadRecipe(optim=OPTIM, validations=3), stage)
    scored = StageGraph(data).head_scoring(head)
    monkeypatch.setattr(Data, "reader", None)
    fitted = run_stage(Job(head, str(store.root), data))
    assert fitted["steps"] == 60 and 0 < fitted["validation"] < 1
    assert fitted["videos"] == len(data.split("downstream", "train").videos)
    result = run_stage(Job(scored, str(store.root), data))
    assert result["scores"]["test"]["protocol"] == "dense_map/v1"
    test = data.split("downstream", "test")
    assert result["scores"]["test"]["videos_scored"] == len(test.videos)
    predictions = PredictionSet.open(store.folder(scored.id) / "predictions" / "test")
    features = features_of(store, stage)
    for video in test.videos:
        assert predictions.frames(video.id) == features.frames(video)
    again = stored_stage(store.fetch, scored.id)
    assert again.id == scored.id and again.parents[0].recipe == head.recipe
    assert again.parents[0].parents[0].recipe == stage.recipe


KILLED = """
import sys, time, pickle
from ssdet.data.loading import frame_readers as frames
from ssdet.stages.kinds import run_stage
job = pickle.load(open(sys.argv[1], "rb"))
read = frames.FrameCache.read
def slow(self, video, indices):
    time.sleep(0.01)
    print(video.id, flush=True)
    return read(self, video, indices)
frames.FrameCache.read = slow
run_stage(job)
"""


def test_a_kill_costs_at_most_one_video(extracted, data, recipe, tmp_path) -> None:
    job = Job(StageGraph(data).features(recipe), str(tmp_path / "store"), data)
    Store.open(job.store)
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    asked: list[list[str]] = []
    for stop in (17, None):
        run = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "job")], stdout=subprocess.PIPE, text=True
        )
        asked.append([])
        for line in run.stdout:
            asked[-1].append(line.strip())
            if len(asked[-1]) == stop:
                os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert run.returncode == 0
    for before, after in itertools.pairwise(asked):
        repeated = {*before} & {*after}
        assert len(repeated) <= 1 and len(before) > 0
    whole = features_of(*extracted[:2])
    resumed = FeatureSet.open(job.folder / FEATURES)
    assert [*resumed] == [*whole]
    for video in whole:
        assert np.array_equal(resumed[video]["features"], whole[video]["features"])


@pytest.fixture(scope="module")
def broken(data, tmp_path_factory) -> tuple[Data, str]:
    """The data set with one file that is no video, and its name."""
    folder = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(Path(data.downstream.path).parent, folder)
    name = data.manifests["downstream"].videos[2].id
    (folder / "videos" / f"{name}.mp4").write_bytes(b"no video at all")
    place = replace(
        data.downstream, path=str(folder / "annotations.json"), videos=str(folder / "videos")
    )
    return Data(data.upstream, place, cache=False), name


def test_broken_videos_are_counted_with_their_reasons(broken, recipe, tmp_path) -> None:
    broken, name = broken
    stage = StageGraph(broken).features(recipe)
    result = run_stage(Job(stage, str(tmp_path / "store"), broken))
    assert list(result["unreadable"]) == [name] and result["unreadable"][name]
    assert result["videos"] == result["videos_expected"] - 1
    features = features_of(Store.open(tmp_path / "store"), stage)
    assert name not in features and features.broken == result["unreadable"]
    head = StageGraph(broken).head(HeadRecipe(optim=OPTIM, validations=1), stage)
    run_stage(Job(head, str(tmp_path / "store"), broken))
    scored = run_stage(Job(StageGraph(broken).head_scoring(head), str(tmp_path / "store"), broken))
    split = next(v.split for v in broken.manifests["downstream"].videos if v.id == name)
    if split != "train":
        assert scored["unreadable"] == result["unreadable"]
        score = scored["scores"][split]
        assert score["videos_scored"] == score["videos_expected"] - 1


def test_ray_data_writes_the_same_files(broken, recipe, ray_session, tmp_path) -> None:
    data, name = broken
    stage = StageGraph(data).features(recipe)
    whole = run_stage(Job(stage, str(tmp_path / "one"), data))
    stream = StreamJob(
        stage, str(tmp_path / "many"), data, executor=RayExecutor(), actors=1, decoders=1
    )
    assert run_stage(stream) == whole and list(whole["unreadable"]) == [name]
    ours = features_of(Store.open(tmp_path / "one"), stage)
    other = FeatureSet.open(stream.folder / FEATURES)
    other.verify()
    assert [*other] == [*ours] and other.broken == ours.broken
    for video, entry in ours.entries.items():
        assert replace(other.entries[video], checksums=entry.checksums) == entry
        np.testing.assert_allclose(
            other[video]["features"], ours[video]["features"], rtol=1e-5, atol=1e-5
        )


def command(*arguments: str) -> int:
    try:
        return main(["extract", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_the_command_reads_a_run_or_a_checkpoint(broken, tmp_path, capsys) -> None:
    data, name = broken
    base = preset("smoke").experiment
    store = tmp_path / "store"
    tuned = Stage("finetune", base.finetune, (), data_fingerprint(data, "finetune"))
    run_stage(Job(tuned, str(store), data))
    asked = [data.downstream.path, "--format", "segments", "--videos", data.downstream.videos,
             "--dtype", "float32", "--decode-size", "None"]  # fmt: skip
    assert command(*asked, "--store", str(store), "--run", tuned.id) == 0
    told = capsys.readouterr()
    assert name in told.err and "19 of 20 videos" in told.out
    (folder,) = store.glob("stages/extract-*/features")
    assert str(folder) in told.out
    # The same weights from a file, in another store: another name, the same features.
    path = str(store / "stages" / tuned.id / "checkpoints" / "last.pt")
    given = ["--checkpoint", path, "--model", "x3d_tiny", "--size", "24", "--stride", "1"]
    assert command(*asked, *given, "--out", str(tmp_path / "other")) == 0
    assert command(*asked, "--store", str(store), "--run", tuned.id,
                   "--out", str(tmp_path / "third")) == 0  # fmt: skip
    (second,) = (tmp_path / "other").glob("stages/extract-*/features")
    (third,) = (tmp_path / "third").glob("stages/extract-*/features")
    first = FeatureSet.open(folder)
    for again in map(FeatureSet.open, (second, third)):
        assert all(np.array_equal(first[v]["features"], again[v]["features"]) for v in first)
    capsys.readouterr()
    assert command(*asked, "--store", str(store)) == 2
    assert "--checkpoint: one of them" in capsys.readouterr().err
    assert command(*asked, "--checkpoint", str(tmp_path / "no.pt")) == 2
    assert "neither a file nor a published name" in capsys.readouterr().err
    assert command(*asked, "--store", str(store), "--run", "finetune-0123456789abcdef") == 2
