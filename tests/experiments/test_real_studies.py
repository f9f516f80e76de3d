"""The two experiments on real videos, with synthetic features and as declarations."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ssdet.evaluation import dense_map
from ssdet.studies.presets import preset

ROOT = Path(__file__).resolve().parents[2]
DAYS = ("20200101_a", "20200101_b", "20200102_c", "20200102_d")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study():
    return loaded("_feature_heads")


@pytest.fixture(scope="module")
def made(study):
    """Videos whose class is written into one of 1,024 features, and clips of the same kind."""
    draws = torch.Generator().manual_seed(0)

    def features(kinds):
        noise = torch.randn(len(kinds), 1024, generator=draws)
        noise[torch.arange(len(kinds)), kinds] += 20
        return noise

    of_steps = {name: torch.arange(40 + 4 * n) // 5 % 3 for n, name in enumerate(DAYS)}
    frames = {
        name: np.eye(3, dtype=bool)[kinds.repeat_interleave(8)[:-3]]
        for name, kinds in of_steps.items()
    }
    clips = {f"clip{n}": torch.full((10,), n % 3) for n in range(18)}
    return study.Material(
        clips={name: features(kinds) for name, kinds in clips.items()},
        labels={name: int(kinds[0]) for name, kinds in clips.items()},
        kinds=3,
        videos={name: features(kinds) for name, kinds in of_steps.items()},
        frames=frames,
        steps={name: study.step_labels(labels) for name, labels in frames.items()},
    )


def test_a_step_has_what_half_of_its_frames_show(study):
    labels = np.zeros((13, 2), bool)
    labels[4:, 0] = True  # 4 of the first 8 frames, 5 of 5
    labels[10:, 1] = True  # 0 of 8; 3 of 5, and the last frame stands for the missing three
    assert study.step_labels(labels).tolist() == [[1, 0], [1, 1]]


def test_a_group_is_never_trained_on(study):
    for group, size in (("video", 1), ("day", 2)):
        seen = []
        for training, held in study.folds(DAYS, group):
            assert sorted([*training, *held]) == sorted(DAYS) and len(held) == size
            key = (lambda name: name[:8]) if group == "day" else (lambda name: name)
            assert not {key(name) for name in training} & {key(name) for name in held}
            seen += held
        assert sorted(seen) == sorted(DAYS)


def test_heads_learn_what_is_there_and_the_table_says_so(study, made, tmp_path):
    steps = {"pretrain_steps": 10, "finetune_steps": 40}
    options = loaded("real_videos").Options(Path(), "", Path(), "", **steps)
    runs = {
        arm: [study.cross_validated(made, options, arm, "day", seed) for seed in (0, 1)]
        for arm in ("cls", "mixup")
    }
    again = study.cross_validated(made, options, "mixup", "day", 1)
    assert all(np.array_equal(again[name], runs["mixup"][1][name]) for name in DAYS)
    assert not np.array_equal(again[DAYS[0]], runs["mixup"][0][DAYS[0]])
    table = study.rows(made, "day", runs)
    study.write(table, tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [line["arm"] for line in lines] == ["chance", "linear", "cls", "mixup"]
    assert float(lines[0]["map"]) < 0.45 < 0.8 < float(lines[2]["map"])
    assert float(lines[1]["map"]) > 0.5
    expected = np.mean([dense_map(scores, made.frames).value for scores in runs["mixup"]])
    assert float(lines[3]["map"]) == pytest.approx(expected, abs=1e-4)
    difference = float(lines[3]["difference"])
    assert difference == pytest.approx(expected - float(lines[2]["map"]), abs=2e-4)


def test_end_to_end_only_the_first_training_starts_from_the_weights():
    study = loaded("real_end_to_end").STUDY
    base = preset("small").experiment
    for arm in study.arms:
        made = arm.change(base)
        first, *later = [*made.pretrainings, made.finetune]
        assert first.model.weights == "i3d-kinetics400"
        assert not any(recipe.model.weights for recipe in later)
        assert {recipe.clip.mean for recipe in (first, *later)} == {(0.5, 0.5, 0.5)}
        assert made.predict.clip.mean == (0.5, 0.5, 0.5)
    assert {len(arm.change(base).pretrainings) for arm in study.arms} == {0, 1}
