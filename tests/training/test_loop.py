"""The training loop: it learns, resumes to the same bits, and does not mind its surroundings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdet.data import load_manifest
from ssdet.data.loading.batches import Batch, batches
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.frame_readers import Decoder
from ssdet.data.loading.sampling import generator_for
from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d
from ssdet.training import Context, ModelRecipe, OptimRecipe, TrainRecipe, checkpoint, losses, train
from ssdet.training.loop import (
    Readout,
    augmentation,
    batch_loss,
    clips_per_worker,
    is_due,
    join_components,
    mix,
    network,
    start_splits,
)
from ssdet.training.losses import pretrain_targets

MODEL = ModelRecipe("x3d_tiny", {"dropout": 0.3})
OPTIM = OptimRecipe(steps=6, batch=8, lr=0.05, schedule="onecycle")
PRETRAIN = TrainRecipe("pretrain", MODEL, ClipRecipe(), OPTIM, augment="mixup")
FINETUNE = TrainRecipe("finetune", MODEL, ClipRecipe(), OPTIM)


@pytest.fixture(scope="module")
def upstream(shapes: Path):
    return load_manifest("moving_shapes", shapes, split="upstream").split("train")


@pytest.fixture(scope="module")
def downstream(shapes: Path):
    return load_manifest("moving_shapes", shapes, split="downstream").split("train")


def run(folder: Path, recipe: TrainRecipe, manifest: Any, **options: Any) -> dict[str, Any]:
    clips = Clips(manifest, Decoder(), recipe.clip, recipe.seed)
    context = Context(folder, device=torch.device("cpu"), **options)
    return train(recipe, clips, context)


class Stopped(Exception):
    """Stands for a kill."""


def stop_at(step: int):
    def report(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == step:
            raise Stopped

    return report


VARIANTS = {
    "pretraining": PRETRAIN,
    "fine-tuning": FINETUNE,
    "average": replace(PRETRAIN, optim=replace(OPTIM, ema=0.9, optimizer="adamw")),
    "accumulated": replace(PRETRAIN, optim=replace(OPTIM, batch=16, accumulate=2, clip_grad=1.0)),
    "bf16": replace(FINETUNE, optim=replace(OPTIM, amp="bf16")),
    "joint, released": replace(
        PRETRAIN, augment="joint", augment_options={"compat": "released"}, loss="released"
    ),
    "random depth": replace(
        PRETRAIN, optim=replace(OPTIM, batch=16, accumulate=2), augment="joint", mix_depth="random"
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, upstream, downstream, name) -> None:
    recipe = VARIANTS[name]
    manifest = upstream if recipe.task == "pretrain" else downstream
    run(tmp_path / "whole", recipe, manifest)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", recipe, manifest, report=stop_at(4), checkpoint_every=0)
    assert checkpoint.load(tmp_path / "cut/checkpoints/last.pt")["step"] == 3
    torch.manual_seed(123)  # whatever state the new process happens to be in
    run(tmp_path / "cut", recipe, manifest)
    whole, cut = (checkpoint.load(tmp_path / d / "checkpoints/last.pt") for d in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 6
    for part in ("model", "averaged"):
        for key, value in (whole[part] or {}).items():
            assert torch.equal(value, cut[part][key]), key
    momenta = [s["optimizer"]["state"][0] for s in (whole, cut)]
    for key, value in momenta[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(momenta[1][key])), key


def test_a_plateau_lowers_the_rate_and_survives_a_stop(tmp_path, downstream) -> None:
    """Losses of four validations: no better than the first for longer than the patience once."""
    optim = replace(OPTIM, steps=8, lr=0.02, schedule="plateau", patience=1)
    recipe = replace(FINETUNE, optim=optim, validations=8)
    told = [0.7, 0.6, 0.6, 0.65, 0.5, 0.55, 0.55, 0.4]
    rates: dict[str, dict[int, float]] = {"whole": {}, "cut": {}}

    def train_in(name: str, stop: int | None = None) -> None:
        def report(metrics: Mapping[str, float]) -> None:
            if "lr" in metrics:
                rates[name][int(metrics["step"])] = metrics["lr"]
                if metrics["step"] == stop:
                    raise Stopped

        seen = iter(told[max(0, len(rates[name]) - 1) :])
        clips = Clips(downstream, Decoder(), recipe.clip, recipe.seed)
        context = Context(tmp_path / name, device=torch.device("cpu"), report=report)
        context.checkpoint_every = 0
        judge = lambda model: {"validation": 0.0, "validation_loss": next(seen)}  # noqa: E731
        train(recipe, clips, context, validate=judge)

    train_in("whole")
    with pytest.raises(Stopped):
        train_in("cut", stop=6)
    train_in("cut")
    assert (
        rates["whole"]
        == rates["cut"]
        == pytest.approx({step: 0.02 * 0.1 ** ((step > 4) + (step > 7)) for step in range(1, 9)})
    )
    ends = [checkpoint.load(tmp_path / n / "checkpoints/last.pt")["model"] for n in rates]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.parametrize(("start", "expected"), [
    ("running", [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), ("pooled", [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]),
])  # fmt: skip
def test_what_the_statistics_of_groups_start_from(start, expected) -> None:
    """16 clips in groups of 8; the published code stretches statistics over channels and groups."""
    recipe = replace(FINETUNE, model=ModelRecipe(norm_start=start), optim=replace(OPTIM, batch=16))
    norm = SubBatchNorm3d(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    start_splits(torch.nn.Sequential(norm), recipe, workers=1)
    assert norm.split_mean.tolist() == expected and norm.split_var.tolist() == [1.0] * 6
    if start == "pooled":
        with pytest.raises(ValueError, match="use one worker"):
            start_splits(torch.nn.Sequential(norm), recipe, workers=2)


@pytest.mark.parametrize("form", ["ssdet", "coarse_fine"])
@pytest.mark.parametrize("aligned", [False, True])
def test_fine_tuning_takes_the_loss_that_is_asked_for(downstream, form, aligned) -> None:
    clip = ClipRecipe(frames=8, stride=2)
    recipe = replace(FINETUNE, clip=clip, localisation=form, align_corners=aligned)
    batch = next(batches(Clips(downstream, Decoder(), clip, 0), 4, 0, 1, 0, 1))
    logits = torch.randn(4, 10, 8, generator=generator_for(0))
    scored = torch.nn.Module()
    scored.forward = lambda clips, fine=None: logits
    loss = batch_loss(recipe, scored, augmentation(recipe), batch, 0, Context(Path()))
    found = {
        "ssdet": losses.localisation_loss, "coarse_fine": losses.masked_localisation_loss,
    }[form](logits, batch.targets_BKF, batch.mask_BF, aligned)  # fmt: skip
    torch.testing.assert_close(loss, found)


@pytest.mark.parametrize("name", ["mixup", "joint"])
def test_features_are_mixed_the_same_by_any_number_of_workers(name) -> None:
    recipe = replace(PRETRAIN, augment=name, augment_options={}, mix_depth="random")
    features = torch.randn(16, 4, 6, 3, 5, generator=generator_for(1))
    targets = torch.eye(16)[:, :, None].repeat(1, 1, 6)

    def mixed(members: slice, gradient: bool = True):
        mine = features[members].clone().requires_grad_(gradient)
        nothing = torch.empty(len(mine))
        batch = Batch(nothing, nothing, nothing, torch.arange(16)[members], {}, [], nothing)
        result, labels, parts = mix(
            recipe, augmentation(recipe), mine, targets[members], batch, step=5
        )
        if gradient:
            result.square().sum().backward()
        return result.detach(), labels, parts.soft_targets(), mine.grad

    whole = mixed(slice(None))
    torch.testing.assert_close(mixed(slice(None), gradient=False)[0], whole[0])
    torch.testing.assert_close(whole[1], whole[2])
    for rank in range(2):
        part = mixed(slice(rank, None, 2))
        for mine, all_of_them in zip(part, whole, strict=True):
            torch.testing.assert_close(mine, all_of_them[rank::2], rtol=0, atol=1e-6)


def test_a_batch_has_one_level_whatever_its_parts_and_workers(upstream) -> None:
    recipe = replace(PRETRAIN, mix_depth="random", optim=replace(OPTIM, batch=16))
    clips = Clips(upstream, Decoder(), recipe.clip, recipe.seed)
    batch = next(batches(clips, 16, 0, 1, 0, 1))
    seen: dict[int, set[int]] = {}

    class Watched(Readout):
        def forward(self, clips_BCTHW, mix=None, generator=None):
            def noted(features):
                seen.setdefault(step, set()).add(features.shape[-1])
                return mix(features)

            return super().forward(clips_BCTHW, noted, generator)

    scored = Watched(network(recipe, 12), "frame")
    for step in range(24):
        for part in batch.split(2):
            loss = batch_loss(recipe, scored, augmentation(recipe), part, step, Context(Path()))
            assert loss.isfinite()
    assert all(len(widths) == 1 for widths in seen.values())
    assert set().union(*seen.values()) == {24, 6, 3}  # the last two stages are equally wide


def test_loss_falls(tmp_path, upstream) -> None:
    recipe = replace(PRETRAIN, augment="none", optim=replace(OPTIM, steps=30, batch=16))
    seen: list[float] = []
    run(tmp_path, recipe, upstream, report=lambda m: seen.append(m.get("loss", float("nan"))))
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])


def test_loaders_change_nothing(tmp_path, downstream) -> None:
    for loaders in (0, 2):
        run(tmp_path / str(loaders), FINETUNE, downstream, loaders=loaders)
    first, second = (checkpoint.load(tmp_path / n / "checkpoints/last.pt")["model"] for n in "02")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, downstream) -> None:
    run(tmp_path, FINETUNE, downstream)
    with pytest.raises(ValueError, match="another recipe"):
        run(tmp_path, replace(FINETUNE, seed=1), downstream)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, downstream) -> None:
    recipe = replace(FINETUNE, optim=replace(OPTIM, lr=1e30, schedule="constant"))
    with pytest.raises(FloatingPointError, match="learning rate"):
        run(tmp_path, recipe, downstream)


def test_a_batch_that_does_not_fit_the_groups_is_refused(tmp_path, downstream) -> None:
    with pytest.raises(ValueError, match="groups of 8"):
        run(tmp_path, replace(FINETUNE, optim=replace(OPTIM, batch=12)), downstream)


def test_unreadable_videos_are_replaced_and_reported(tmp_path, downstream) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    first = replace(downstream.videos[0], path=str(broken))
    manifest = replace(downstream, videos=(first, *downstream.videos[1:]))
    result = run(tmp_path / "run", FINETUNE, manifest)
    assert list(result["replaced"]) == [first.id] and result["steps"] == 6
    assert result["replaced"][first.id]


def test_initial_weights_keep_all_but_the_classifier() -> None:
    start = network(PRETRAIN, 12).state_dict()
    tuned = network(FINETUNE, 10, start).state_dict()
    fresh = network(FINETUNE, 10).state_dict()
    for key, value in tuned.items():
        source = fresh if ".proj." in key else start
        assert torch.equal(value, source[key]), key


def test_running_statistics_of_pretraining_are_where_fine_tuning_starts() -> None:
    start = {k: v for k, v in network(PRETRAIN, 12).state_dict().items() if ".split_" not in k}
    for key, value in start.items():
        if key.endswith(("running_mean", "running_var")):
            start[key] = value + 0.5
    model = network(FINETUNE, 10, start)
    start_splits(model, FINETUNE, 1)
    model.train().eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            assert torch.equal(value, start[key]), key
            split = value.repeat(
                len(model.state_dict()[key.replace("running", "split")]) // len(value)
            )
            assert torch.equal(model.state_dict()[key.replace("running", "split")], split), key


def test_weights_of_another_network_are_refused() -> None:
    start = network(replace(PRETRAIN, model=replace(MODEL, options={"head_dim": 32})), 12)
    with pytest.raises(ValueError, match="do not fit"):
        network(FINETUNE, 10, start.state_dict())


def test_due_spreads_events_evenly() -> None:
    assert [step for step in range(1, 11) if is_due(step, 10, 2)] == [5, 10]
    assert [step for step in range(1, 8) if is_due(step, 7, 3)] == [3, 5, 7]
    assert not any(is_due(step, 10, 0) for step in range(1, 11))


def test_groups_with_fewer_components_are_filled_with_nothing() -> None:
    from ssdet.augment import Components

    def part(count: int) -> Components:
        weights = torch.full((count, 2, 4), 1 / count)
        return Components(torch.ones(count, 2, 3, 4), weights, torch.ones(count, 2, 4))

    joined = join_components([part(1), part(2)])
    assert joined.weights.shape == (2, 4, 4)
    torch.testing.assert_close(joined.soft_targets(), torch.ones(4, 3, 4))


@pytest.mark.parametrize(("background", "column"), [("class", 0), ("class0", 0), ("zero", None)])
def test_frozen_frames_are_labelled_as_the_recipe_says(background, column) -> None:
    recipe = replace(PRETRAIN, augment="freeze", background=background)
    targets = pretrain_targets(torch.eye(3)[[1, 2]], 8, background)
    _, mixed = augmentation(recipe)(
        torch.randn(2, 3, 8, 4, 4, generator=generator_for(0)), targets, generator_for(1)
    )
    frozen = (mixed != targets).any(1)
    assert frozen.any(1).all()
    labels = mixed.mT[frozen]
    expected = torch.zeros(labels.shape[1])
    if column is not None:
        expected[column] = 1
    assert (labels == expected).all()


@pytest.mark.parametrize(("batch", "accumulate", "workers", "each"), [
    (16, 1, 1, 16), (16, 1, 2, 8), (16, 1, 4, None), (32, 2, 2, 8), (12, 1, 1, 12),
    (12, 1, 2, None), (8, 1, 2, None), (24, 1, 3, 8), (24, 1, 2, None), (4, 1, 1, 4),
])  # fmt: skip
def test_workers_get_whole_normalisation_groups(batch, accumulate, workers, each) -> None:
    recipe = replace(PRETRAIN, optim=replace(OPTIM, batch=batch, accumulate=accumulate))
    if each is not None:
        assert clips_per_worker(recipe, workers) == each
    else:
        with pytest.raises(ValueError, match="fewer workers"):
            clips_per_worker(recipe, workers)
