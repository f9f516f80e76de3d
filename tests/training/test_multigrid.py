"""Multigrid: shapes and counts by hand, statistics, and runs that resume to the same bits."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssdet.data import load_manifest
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.frame_readers import Decoder
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.system.recipe_json import from_json, to_json
from ssdet.training import Context, ModelRecipe, OptimRecipe, TrainRecipe, checkpoint, train
from ssdet.training.loop import clips_per_worker
from ssdet.training.multigrid import Shape, batches, lr_scale, samples_before, shape_at, shaped

MODEL = ModelRecipe("x3d_tiny", {"dropout": 0.3})
RECIPE = TrainRecipe(
    "pretrain",
    MODEL,
    ClipRecipe(),
    OptimRecipe(steps=10, batch=2, lr=0.02, schedule="cosine"),
    augment="mixup",
    multigrid=True,
)


@pytest.mark.parametrize(
    ("step", "frames", "size", "batch", "lr", "stride"),
    [
        (0, 4, 111, 16, 8, 4),
        (1, 4, 158, 8, 8, 4),
        (99, 4, 158, 8, 8, 4),
        (100, 8, 111, 8, 4, 2),
        (101, 8, 158, 4, 4, 2),
        (200, 8, 224, 2, 2, 2),
        (201, 8, 112, 8, 2, 2),
        (202, 8, 158, 4, 2, 2),
        (300, 16, 112, 4, 1, 1),
        (301, 16, 158, 2, 1, 1),
        (302, 16, 224, 1, 1, 1),
        (399, 16, 112, 4, 1, 1),
        (400, 4, 111, 16, 8, 4),
        (462, 4, 111, 16, 8, 4),
        (463, 8, 158, 4, 4, 2),
        (649, 16, 158, 2, 1, 1),
        (650, 4, 111, 16, 8, 4),
        (849, 16, 112, 4, 1, 1),
        (850, 16, 224, 1, 1, 1),
        (851, 16, 224, 1, 1, 1),
        (999, 16, 224, 1, 1, 1),
    ],
)
def test_shapes_of_a_thousand_steps(step, frames, size, batch, lr, stride) -> None:
    """Phases begin at 0, 400, 650 and 850; their four parts take 100, 62.5 and 50 steps."""
    assert shape_at(step, 1000, 16, 224) == Shape(frames, size, batch, lr, stride)


def test_every_step_costs_as_much() -> None:
    full = 16 * 224**2
    for step in range(1000):
        shape = shape_at(step, 1000, 16, 224)
        assert 0.97 * full < shape.batch * shape.frames * shape.size**2 <= full


def test_samples_of_each_phase() -> None:
    """4,800 steps: phases of 1,920, 1,200, 960 and 720. A quarter of n steps takes 12 n clips (16
    and 8 in turn), 6 n (8, 4), 14 n / 3 (8, 4, 2) and 7 n / 3 (4, 2, 1) for each of the batch."""
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, steps=4800, batch=8))
    bounds = [samples_before(recipe, step) // 8 for step in (0, 1920, 3120, 4080, 4800)]
    assert np.diff(bounds).tolist() == [480 * 25, 300 * 25, 240 * 25, 720]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 19, 40])
def test_few_steps_have_shapes_too(steps) -> None:
    shapes = [shape_at(step, steps, 16, 24) for step in range(steps)]
    assert {shape.size for shape in shapes} <= {11, 12, 16, 24}
    assert shapes[-1] == Shape(16, 24, 1, 1, 1)
    if steps == 40:
        assert {shape.size for shape in shapes} == {11, 12, 16, 24}


def test_learning_rates_rise_with_the_batch_and_are_halved() -> None:
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, steps=100))
    rates = [lr_scale(recipe, step) for step in range(100)]
    assert rates[:40] == [8] * 10 + [4] * 10 + [2] * 10 + [1] * 10
    assert rates[85:] == [1] * 15
    assert {lr_scale(replace(recipe, multigrid=False), step) for step in range(100)} == {1}


class Numbered:
    """A reader of 40 pictures whose values are their numbers."""

    def frames(self, video: Any) -> int:
        return 40

    def read(self, video: Any, indices: list[int]) -> np.ndarray:
        return np.tile(np.array(indices, np.uint8)[:, None, None, None], (1, 48, 64, 3))


def numbered_clips(recipe: TrainRecipe) -> Clips:
    videos = [SimpleNamespace(id=str(i), label=i % 3) for i in range(50)]
    manifest: Any = SimpleNamespace(name="numbered", videos=videos, num_classes=3)
    return Clips(manifest, Numbered(), recipe.clip, recipe.seed)  # type: ignore[arg-type]


def test_batches_are_those_of_the_shapes_wherever_they_start() -> None:
    clips = numbered_clips(RECIPE)
    whole = list(batches(clips, RECIPE, 0))
    assert len(whole) == 10
    for step, batch in enumerate(whole):
        shape = shape_at(step, 10, 16, 24)
        expected = (2 * shape.batch, shape.frames, shape.size, shape.size, 3)
        assert batch.clips_BTHWC.shape == expected
    positions = torch.cat([batch.positions_B for batch in whole])
    assert torch.equal(positions, torch.arange(len(positions)))
    for start, loaders in ((4, 0), (7, 0), (8, 1)):
        for a, b in zip(whole[start:], batches(clips, RECIPE, start, loaders), strict=True):
            assert torch.equal(a.clips_BTHWC, b.clips_BTHWC)
            assert torch.equal(a.targets_BKF, b.targets_BKF)
    assert clips.recipe == RECIPE.clip


def test_strides_are_drawn_up_to_the_length_of_the_full_clip() -> None:
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, steps=100))
    recipe = replace(recipe, clip=replace(RECIPE.clip, stride=2))
    data = batches(numbered_clips(recipe), recipe, 0)
    seen: dict[int, Counter[int]] = {4: Counter(), 8: Counter(), 16: Counter()}
    for _, batch in zip(range(34), data, strict=False):
        numbers_BT = batch.clips_BTHWC[..., 0, 0, 0].int()
        strides_BT = numbers_BT.diff(dim=1)
        assert (strides_BT == strides_BT[:, :1]).all()
        seen[numbers_BT.shape[1]].update(strides_BT[:, 0].tolist())
    assert set(seen[4]) == {2, 4, 6, 8} and set(seen[8]) == {2, 4} and set(seen[16]) == {2}
    fractions = np.array(list(seen[4].values())) / seen[4].total()
    assert abs(fractions - 0.25).max() < 0.1


@pytest.mark.parametrize(
    ("batch", "accumulate", "group", "splits"),
    [(16, 1, 8, 32), (16, 2, 8, 16), (2, 1, 8, 16), (6, 1, 8, 16), (24, 1, 8, 48)],
)
def test_statistics_are_over_as_many_clips_whatever_the_batch(
    batch, accumulate, group, splits
) -> None:
    """16 times the clips, 16 times the groups; the running mean moves by a tenth as ever."""
    optim = replace(RECIPE.optim, batch=batch, accumulate=accumulate)
    recipe = replace(RECIPE, optim=optim, model=replace(MODEL, norm_group=group))
    norm = SubBatchNorm3d(2)
    clips = torch.randn(16 * batch // accumulate, 2, 2, 3, 3) + 1
    with shaped(recipe, norm, 0) as now:
        assert norm.splits == splits
        assert len(clips) / splits == now.model.norm_group == min(group, batch // accumulate)
        assert (now.clip.frames, now.clip.size, now.clip.short_side) == (4, 11, (11, 11))
        norm(clips)
    assert norm.splits == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * clips.mean((0, 2, 3, 4)))
    torch.testing.assert_close(norm.split_mean, norm.running_mean)


def run(folder: Path, recipe: TrainRecipe, manifest: Any, **options: Any) -> list[Any]:
    told: list[Any] = []
    stop = options.pop("stop", None)

    def report(metrics: Mapping[str, float]) -> None:
        told.append(metrics)
        if metrics["step"] == stop:
            raise InterruptedError

    clips = Clips(manifest, Decoder(), recipe.clip, recipe.seed)
    train(recipe, clips, Context(folder, device=torch.device("cpu"), report=report, **options))
    return told


def small(batch: int, **options: Any) -> OptimRecipe:
    return OptimRecipe(steps=10, batch=batch, lr=0.02, schedule="constant", **options)


VARIANTS = {
    "frame": replace(
        RECIPE,
        model=replace(MODEL, norm_group=2),
        optim=small(4, accumulate=2, ema=0.9),
        augment="joint_single",
    ),
    "clip": replace(RECIPE, optim=small(2), readout="clip", augment="none"),
}


@pytest.mark.parametrize("readout", VARIANTS)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, shapes, readout) -> None:
    """Stopped again and again: after the first long shape, inside others and at the full shape."""
    manifest = load_manifest("moving_shapes", shapes, split="upstream").split("train")
    recipe = VARIANTS[readout]
    told = run(tmp_path / "whole", recipe, manifest)
    assert [metrics["lr"] / 0.02 for metrics in told] == [8, 4, 2, 1, 8, 2, 8, 2, 1, 1]
    for stop in (2, 4, 7, 9):
        with pytest.raises(InterruptedError):
            run(tmp_path / "cut", recipe, manifest, stop=stop, checkpoint_every=0)
        assert checkpoint.load(tmp_path / "cut/checkpoints/last.pt")["step"] == stop - 1
        torch.manual_seed(stop)  # whatever state the new process happens to be in
    run(tmp_path / "cut", recipe, manifest)
    whole, cut = (checkpoint.load(tmp_path / d / "checkpoints/last.pt") for d in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 10
    for part in ("model", "averaged"):
        for key, value in (whole[part] or {}).items():
            assert torch.equal(value, cut[part][key]), key
    momenta = [state["optimizer"]["state"][0]["momentum_buffer"] for state in (whole, cut)]
    assert torch.equal(*momenta)


def test_recipes_without_it_are_what_they_were() -> None:
    plain = replace(RECIPE, multigrid=False)
    assert to_json(RECIPE) == {**to_json(plain), "multigrid": True}
    assert from_json(TrainRecipe, to_json(RECIPE)) == RECIPE
    with shaped(plain, SubBatchNorm3d(2, splits=3), 0) as now:
        assert now is plain


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="for pretraining"):
        TrainRecipe("finetune", multigrid=True)
    with pytest.raises(ValueError, match="for pretraining"):
        replace(RECIPE, model=ModelRecipe(norm_start="pooled"))
    with pytest.raises(ValueError, match="6 frames, needs 8"):
        replace(RECIPE, clip=ClipRecipe(frames=6))
    with pytest.raises(ValueError, match="one worker"):
        clips_per_worker(replace(RECIPE, optim=replace(RECIPE.optim, batch=32)), 2)
