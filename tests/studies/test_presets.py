"""The paper's recipe for real data, what the published code does instead, and how it is planned."""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ssdet.cli.experiment import Options, main, resolve
from ssdet.data import Segment, Video
from ssdet.data.datasets.manifest import Manifest
from ssdet.data.datasets.moving_shapes import write_video
from ssdet.data.loading.frame_rate import ResampledReader
from ssdet.data.loading.frame_readers import dense_targets
from ssdet.data.video.clock import Clock
from ssdet.execution.planning.estimate import Estimate
from ssdet.models import create
from ssdet.stages.job import Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import (
    Arm,
    Study,
    Table,
    augmented,
    classification,
    from_checkpoint,
    plan,
    pretraining,
    scratch,
)
from ssdet.studies.data import moving_shapes
from ssdet.studies.graph.identity import Stage
from ssdet.studies.presets import preset
from ssdet.training.pretrained_weights import NORMALISATION

ARMS = (Arm("cls", classification), Arm("scratch", scratch), Arm("mixup", augmented("mixup")))
STUDY = Study("paper", ARMS, seeds=(0,), table=Table(baseline="cls"))
CHARADES = {
    "train": ["46GP8", "N11GT", "0IH69", "KRF68"],
    "test": ["YSKX3", "WGIVQ"],
}


def real_names(folder: Path) -> Options:
    """A dozen tiny files under real ids, in the layouts that Charades and Kinetics come in."""
    pictures = np.random.default_rng(0).integers(0, 256, (20, 32, 40, 3), np.uint8)
    (folder / "Charades_v1_480").mkdir(parents=True)
    columns = ["id", "subject", "actions", "length"]
    for split, names in CHARADES.items():
        with open(folder / f"Charades_v1_{split}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for name in names:
                write_video(folder / "Charades_v1_480" / f"{name}.mp4", pictures, 30)
                row = {"id": name, "subject": "X", "actions": "c092 0.00 0.50;c147 0.10 0.60"}
                writer.writerow({**row, "length": "0.67"})
    clips = folder / "k400"
    clips.mkdir()
    with open(folder / "clips.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split"])
        for n, label in enumerate(["abseiling", "air drumming", "abseiling", "zumba"]):
            write_video(clips / f"{n}.mp4", pictures, 30)
            writer.writerow([f"{n}.mp4", label, "val" if n == 3 else "train"])
    return Options(
        data="charades", preset="paper", seeds=1, store=str(folder / "store"),
        upstream=str(folder / "clips.csv"), upstream_videos=str(clips),
        downstream=str(folder), downstream_videos=str(folder / "Charades_v1_480"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Options:
    return real_names(tmp_path_factory.mktemp("real"))


def test_the_numbers_are_the_papers() -> None:
    """Experiments section: Kinetics-400 Detection Pretraining, Charades Evaluation, Table A.1f."""
    chosen = preset("paper", "charades", "somebody-k400")
    pretrain, tuned = chosen.experiment.pretrain, chosen.experiment.finetune
    assert (pretrain.optim.steps, pretrain.optim.batch, pretrain.optim.lr) == (100_000, 64, 0.05)
    assert pretrain.optim.milestones == (0.8,) and pretrain.optim.head_lr_mult == 1
    assert (pretrain.clip.frames, pretrain.clip.stride, pretrain.clip.size) == (16, 5, 224)
    assert pretrain.clip.short_side == (256, 320) and pretrain.clip.flip == 0.5
    assert pretrain.model.name == "x3d_m" and pretrain.model.options["dropout"] == 0.5
    assert pretrain.model.weights == "somebody-k400" and not tuned.model.weights
    assert preset("paper").experiment.pretrain.optim.steps == 300_000
    assert (tuned.optim.batch, tuned.optim.lr, tuned.clip.stride) == (16, 0.02, 10)
    assert tuned.optim.steps == pytest.approx(100 * 7985 / 16, abs=1)
    assert tuned.optim.milestones == (0.8,) and tuned.clip.frames == 16
    assert chosen.experiment.predict.clip.stride == 10 and chosen.fps == 24
    # The longest video of Charades lasts 194 seconds.
    assert chosen.experiment.predict.window >= 195 * 24 / 10
    clips = (pretrain.clip, tuned.clip, chosen.experiment.predict.clip)
    assert {(clip.mean, clip.std) for clip in clips} == {NORMALISATION["facebook"]}
    thumos = preset("paper", "multithumos")
    assert thumos.fps == 10 and thumos.experiment.finetune.optim.steps == 100 * 200 // 16
    seconds = 16 * thumos.experiment.finetune.clip.stride / thumos.fps
    assert seconds == pytest.approx(16 * 10 / 24, abs=0.3)


def test_what_the_published_code_does_instead() -> None:
    """Specification of the models, sections 2, 4 and 13."""
    chosen = preset("released", "charades", "somebody-k400").experiment
    pretrain, tuned = chosen.pretrain, chosen.finetune
    assert (pretrain.optim.head_lr_mult, pretrain.optim.warmup) == (10, 8000)
    assert (pretrain.loss, pretrain.background) == ("released", "class0")
    assert pretrain.clip.scales == (0.875,) and pretrain.clip.window == 80 + 1
    scratch = preset("released", "charades").experiment.pretrain
    assert scratch.clip.scales == (0.875, 0.7)
    assert pretrain.clip.short_videos == tuned.clip.short_videos == "drop"
    assert pretrain.clip.mean == pytest.approx((110.637 / 255, 103.161 / 255, 96.290 / 255))
    assert pretrain.model.norm_group == 16 and tuned.model.norm_group == 8
    assert tuned.clip.window == 162 and tuned.model.norm_start == "pooled"
    assert (tuned.optim.schedule, tuned.optim.patience, tuned.optim.decay) == ("plateau", 10, 0.1)
    assert tuned.validations == 50 and tuned.validate_on == "test"
    assert tuned.clip.mean == chosen.predict.clip.mean == (0.413, 0.368, 0.338)
    assert chosen.probe.predict.clip.mean == pretrain.clip.mean


@pytest.mark.parametrize("name", ["paper", "released"])
def test_a_small_folder_under_real_names_is_planned(name, options) -> None:
    planned = plan(resolve(STUDY, replace(options, preset=name)))
    kinds = [stage.kind for stage in planned.stages.values()]
    assert sorted(kinds) == sorted(["pretrain"] * 2 + ["finetune", "predict", "probe"] * 3)
    data = planned.study.data
    assert data.manifests["downstream"].num_classes == 157
    assert [len(data.split("downstream", s).videos) for s in ("train", "val", "test")] == [4, 0, 2]
    # 20 frames at 30 a second are 16 on the grid of Charades.
    video = data.split("downstream", "test").videos[0]
    assert data.reader("downstream").frames(video) == 16
    assert data.reader("upstream").frames(data.split("upstream", "train").videos[0]) == 20


def test_the_dry_run_prints_it(options, monkeypatch) -> None:
    def measured(planned) -> Estimate:
        zero = dict.fromkeys(planned.stages, 0)
        return Estimate({k: 0.0 for k in zero}, zero, (), "cpu")

    monkeypatch.setattr("ssdet.cli.plan.estimate", measured)
    out = Console(file=StringIO(), width=120)
    assert main(STUDY, replace(options, dry_run=True), out) == 0
    assert "11 stages, 0 done" in out.file.getvalue()


def test_stages_change_with_the_grid_and_with_the_test_videos_they_follow(options) -> None:
    def ids(options: Options, change=lambda data: data) -> dict[str, set[str]]:
        study = resolve(STUDY, options)
        planned = plan(replace(study, data=change(study.data)))
        kinds = {s.kind for s in planned.stages.values()}
        return {k: {i for i, s in planned.stages.items() if s.kind == k} for k in kinds}

    plain, finer = ids(options), ids(options, lambda data: replace(data, fps=12.0))
    assert plain["pretrain"] == finer["pretrain"] and not plain["finetune"] & finer["finetune"]
    base = replace(options, preset="released")
    study = resolve(STUDY, base)
    prints = {
        split: next(s for s in plan(replace(study, base=replace(
            study.base, finetune=replace(study.base.finetune, validate_on=split,
                                         optim=replace(study.base.finetune.optim, schedule="step")),
        ))).stages.values() if s.kind == "finetune").fingerprint
        for split in ("val", "test")
    }  # fmt: skip
    followed = study.data.split("downstream", "test").fingerprint
    assert set(prints["test"].split(",")) - set(prints["val"].split(",")) == {followed}


def test_pictures_that_a_stage_does_not_know_are_refused_before_anything_runs(options) -> None:
    study = resolve(STUDY, options)
    strange = (0.1, 0.2, 0.3)

    def with_clips(**changes) -> Study:
        finetune = replace(study.base.finetune, **changes)
        predict = replace(study.base.predict, clip=replace(study.base.predict.clip, mean=strange))
        return replace(study, base=replace(study.base, finetune=finetune, predict=predict))

    clip = replace(study.base.finetune.clip, mean=strange)
    with pytest.raises(ValueError, match=r"pretraining with x3d_m: trained on.*constants='own'"):
        plan(with_clips(clip=clip))
    assert plan(with_clips(clip=clip, constants="own")).stages
    with pytest.raises(ValueError, match=r"give predict.clip the mean and std of finetune.clip"):
        plan(with_clips())


def test_only_the_first_of_a_chain_starts_from_published_weights(options, tmp_path) -> None:
    path = tmp_path / "x3d.pt"
    model = create("x3d_m", 5, generator=torch.Generator().manual_seed(0))
    torch.save({k: v for k, v in model.state_dict().items() if ".split_" not in k}, path)
    arms = (*ARMS, Arm("chain", from_checkpoint(classification, pretraining(augment="mixup"))))
    study = resolve(replace(STUDY, arms=arms), replace(options, weights=str(path)))
    (run,) = plan(study).of("chain")
    tuned = run.predict.parents[0]
    last, first = tuned.parents[0], tuned.parents[0].parents[0]
    assert first.recipe.model.weights == str(path) and first.recipe.optim.steps == 100_000
    assert not last.recipe.model.weights and not tuned.recipe.model.weights
    with pytest.raises(FileNotFoundError, match="neither a file nor a published name"):
        plan(resolve(STUDY, replace(options, weights=str(tmp_path / "no.pt"))))
    with pytest.raises(ValueError, match="leave out weights=.*choose paper or released"):
        preset("tiny", weights=str(path))


class Rated:
    """60 frames of a video at some rate; pictures tell their number."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def frames(self, video: Video) -> int:
        return 60

    def fps(self, video: Video) -> float:
        return self.rate

    def clock(self, video: Video) -> Clock:
        return Clock.regular(60, self.rate)

    def read(self, video: Video, indices: list[int]) -> np.ndarray:
        assert all(0 <= index < 60 for index in indices)
        return np.array(indices, np.uint8)[:, None, None, None]


@pytest.mark.parametrize("rate", [10.0, 12.0, 23.976, 24.0, 29.97, 30.0, 48.0, 60.0])
def test_a_grid_takes_the_frame_nearest_in_time(rate) -> None:
    video, grid = Video("v", "", "test"), ResampledReader(Rated(rate), 24.0)
    assert grid.frames(video) == round(60 / rate * 24) and grid.fps(video) == 24.0
    shown = grid.read(video, range(grid.frames(video)))[:, 0, 0, 0]
    for number, frame in enumerate(shown):
        away = abs(frame / rate - number / 24)
        assert away <= 0.5 / rate + 1e-6 or frame == 59
    if rate in (24.0, 48.0):
        assert shown.tolist() == list(range(0, 60, round(rate / 24)))


def test_labels_on_a_grid_are_those_of_its_times() -> None:
    video = Video("v", "", "test", segments=(Segment(0, 0.45, 1.05),), duration=2.0)
    manifest = Manifest("m", ("x",), (video,))
    found = dense_targets(manifest, video, ResampledReader(Rated(30.0), 10.0))
    assert found.shape == (1, 20) and found[0].nonzero()[0].tolist() == [5, 6, 7, 8, 9, 10]


def test_fine_tuning_as_released_runs(shapes, tmp_path) -> None:
    """All of its deviations at once, on the embedded data and a small network."""
    asked = preset("released").experiment.finetune
    data = moving_shapes(preset("smoke").shapes)
    clip = replace(asked.clip, size=24, short_side=(24, 24), frames=8, stride=4, window=34)
    optim = replace(asked.optim, steps=4, lr=0.1, patience=0)
    recipe = replace(asked, model=replace(asked.model, name="x3d_tiny", options={"dropout": 0.0}),
                     clip=clip, optim=optim, validations=4, localisation="coarse_fine",
                     align_corners=True)  # fmt: skip
    stage = Stage("finetune", recipe, (), "shapes")
    result = run_stage(Job(stage, str(tmp_path), data))
    assert result["steps"] == 4 and result["validation_loss"] > 0 and not result["replaced"]
    short = replace(recipe, clip=replace(clip, window=49))
    with pytest.raises(RuntimeError, match="48 frames, the recipe's window is 49: left out"):
        run_stage(Job(Stage("finetune", short, (), "shapes"), str(tmp_path), data))
