"""Models of features: what they are shown, what they learn, and what they say of every frame."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdet.data import Manifest, Segment, Video
from ssdet.data.features.shards import FeatureSet, FeatureWriter
from ssdet.system.recipe_json import from_json, to_json
from ssdet.training import Context, ModelRecipe, OptimRecipe, checkpoint
from ssdet.training.heads.feature_heads import (
    FeatureBatches,
    HeadBatch,
    batch_loss,
    build_head,
    feature_width,
    fit_head,
    predict_head,
)
from ssdet.training.losses import head_loss
from ssdet.training.recipe import HeadRecipe

STRIDE, FPS = 4, 10.0
LENGTHS = {"a": 30, "b": 41, "c": 12, "d": 22, "e": 33, "gone": 20}
OPTIM = OptimRecipe(steps=8, batch=4, lr=0.05, optimizer="adamw", weight_decay=0.0)
RECIPE = HeadRecipe(ModelRecipe("linear", {"dropout": 0.3}), OPTIM)
TINY = ModelRecipe("ms_tct", {"dims": (4, 4, 8, 8), "blocks": 1, "heads": 2, "mlp_ratio": 2,
                              "final": 4})  # fmt: skip
STRETCHED = HeadRecipe(TINY, OPTIM, crop=5, heat_map=0.05)
CPU = torch.device("cpu")


def video(name: str) -> Video:
    """Class 0 in the first half, class 1 in the middle third; 10 frames a second as annotated."""
    seconds = LENGTHS[name] / FPS
    parts = (Segment(0, -0.01, seconds / 2), Segment(1, seconds / 3, 2 * seconds / 3))
    return Video(name, "", "train", segments=parts, duration=seconds)


MANIFEST = Manifest("m", ("half", "third", "never"), tuple(map(video, LENGTHS)))


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> FeatureSet:
    """Two of six channels are the labels, under noise; layer1 is no vector."""
    folder = tmp_path_factory.mktemp("features")
    draws = torch.Generator().manual_seed(0)
    with FeatureWriter(folder, "float32") as out:
        for name, frames in LENGTHS.items():
            if name == "gone":
                out.leave_out(name, "cut short")
                continue
            labels = MANIFEST.frame_targets(video(name), frames, FPS)[:, ::STRIDE]
            rows = torch.randn(labels.shape[1], 6, generator=draws) * 0.3
            rows[:, 2:4] += torch.from_numpy(labels[:2].T).float() * 2
            out.begin(name, frames, FPS, STRIDE)
            out.add({"features": rows, "layer1": torch.zeros(len(rows), 2, 7, 7)})
            out.commit()
    return FeatureSet.open(folder)


def test_a_batch_is_padded_and_masked(features) -> None:
    batches = FeatureBatches(MANIFEST, features, RECIPE)
    assert [v.id for v in batches.videos] == ["a", "b", "c", "d", "e"]
    batch = batches.collate(batches.videos)
    steps = [-(-LENGTHS[v.id] // STRIDE) for v in batches.videos]
    assert batch.lengths_B.tolist() == steps and batch.features_BDT.shape == (5, 6, max(steps))
    for place, (one, length) in enumerate(zip(batches.videos, steps, strict=True)):
        mine = torch.from_numpy(np.array(features[one.id]["features"]))
        assert torch.equal(batch.features_BDT[place, :, :length], mine.T)
        dense = MANIFEST.frame_targets(one, LENGTHS[one.id], FPS)[:, ::STRIDE]
        assert np.array_equal(batch.targets_BKT[place, :, :length].numpy(), dense)
        assert not batch.features_BDT[place, :, length:].any()
        assert not batch.targets_BKT[place, :, length:].any()
        assert batch.mask_BT[place].tolist() == [t < length for t in range(max(steps))]


def test_epochs_show_every_video_once_in_an_order_of_the_seed(features) -> None:
    def shown(seed: int) -> list[int]:
        recipe = replace(RECIPE, seed=seed, optim=replace(OPTIM, batch=5))
        batches = FeatureBatches(MANIFEST, features, recipe)
        return [n for step in range(4) for n in batches.batch(step).lengths_B.tolist()]

    for epoch in range(4):
        assert sorted(shown(0)[5 * epoch : 5 * epoch + 5]) == [3, 6, 8, 9, 11]
    assert shown(0) == shown(0) != shown(1)


def test_padding_changes_the_loss_only_as_the_published_code_has_it(features) -> None:
    batches = FeatureBatches(MANIFEST, features, RECIPE)
    model = build_head(RECIPE, 6, 3).eval()

    def loss(videos: list[Video], padding: str) -> tuple[float, int]:
        batch = batches.collate(videos)
        logits = model(batch.features_BDT, batch.lengths_B)
        found = head_loss(logits, batch.targets_BKT, batch.mask_BT, padding)
        return found.item() * int(batch.lengths_B.sum()), int(batch.lengths_B.sum())

    apart = sum(loss([one], "masked")[0] for one in batches.videos)
    assert loss(batches.videos, "masked")[0] == pytest.approx(apart, rel=1e-5)
    # Zeros in, bias out: what a filled step costs in every class.
    bias = model.per_frame.bias.detach()
    batch = batches.collate(batches.videos)
    filled = int((~batch.mask_BT).sum()) * float(torch.log1p(bias.exp()).sum())
    assert loss(batches.videos, "counted")[0] == pytest.approx(apart + filled, rel=1e-5)


def found_in(row: torch.Tensor, whole: torch.Tensor) -> list[int]:
    """Where a stretch [C, t] lies in [C, T]."""
    length = row.shape[1]
    starts = range(whole.shape[1] - length + 1)
    return [s for s in starts if torch.equal(whole[:, s : s + length], row)]


def test_stretches_are_random_parts_of_videos(features) -> None:
    batches = FeatureBatches(MANIFEST, features, STRETCHED)
    whole = batches.collate(batches.videos)
    starts: dict[int, set[int]] = {}
    for step in range(60):
        batch = batches.batch(step)
        assert batch.features_BDT.shape == (4, 6, 5) and batch.heat_BKT.shape == (4, 3, 5)
        for place, length in enumerate(batch.lengths_B.tolist()):
            parts = [
                part[place] for part in (batch.features_BDT, batch.targets_BKT, batch.heat_BKT)
            ]
            assert not any(part[:, length:].any() for part in parts)
            shown = [v for v in range(5) if found_in(parts[0][:, :length], whole.features_BDT[v])]
            assert len(shown) == 1 and length == min(5, whole.lengths_B[shown[0]])
            (start,) = found_in(parts[0][:, :length], whole.features_BDT[shown[0]])
            starts.setdefault(shown[0], set()).add(start)
            inside = slice(start, start + length)
            assert torch.equal(parts[1][:, :length], whole.targets_BKT[shown[0], :, inside])
            assert torch.equal(parts[2][:, :length], whole.heat_BKT[shown[0], :, inside])
    # Every place where 5 steps fit into 8, 11, 3, 6 and 9.
    assert starts == {0: {*range(4)}, 1: {*range(7)}, 2: {0}, 3: {0, 1}, 4: {*range(5)}}
    other = FeatureBatches(MANIFEST, features, STRETCHED)
    assert all(torch.equal(a, b) for a, b in zip(other.batch(7), batches.batch(7), strict=True))
    # The same videos at other steps.
    assert not torch.equal(batches.batch(0).features_BDT, batches.batch(5).features_BDT)


def test_a_batch_carries_the_middles_of_its_actions_where_asked(features) -> None:
    assert FeatureBatches(MANIFEST, features, RECIPE).batch(0).heat_BKT is None
    batches = FeatureBatches(MANIFEST, features, replace(STRETCHED, crop=0))
    batch = batches.collate(batches.videos[:1])
    # 3 s, a step lasts 0.4 s. Class 0 to 1.5 s: middle 0.745 s in step 1, so 2, 3 steps, radius 6.
    # Class 1 from 1 to 2 s: middle 1.5 s in step 3, so 4, 2 steps, radius 4.
    assert (batch.heat_BKT[0] == 1).nonzero().tolist() == [[0, 2], [1, 4]]
    near = [np.exp(-((4 / (2 * radius + 1)) ** 2)) for radius in (6, 4)]
    assert batch.heat_BKT[0, 0, 3].item() == pytest.approx(near[0])
    assert batch.heat_BKT[0, 1, 5].item() == pytest.approx(near[1])


def test_the_heat_map_is_learned_with_the_weight_it_is_given(features) -> None:
    batches = FeatureBatches(MANIFEST, features, STRETCHED)
    batch = batches.batch(0)

    def loss(weight: float, batch: HeadBatch) -> float:
        model = build_head(STRETCHED, 6, 3).eval()
        return batch_loss(replace(STRETCHED, heat_map=weight), model, batch).item()

    plain = loss(0.05, batch._replace(heat_BKT=None))
    heat = [loss(weight, batch) - plain for weight in (0.05, 0.5)]
    assert heat[0] > 0 and heat[1] == pytest.approx(10 * heat[0], rel=1e-3)
    # What stands in the padding is not learned.
    noise = batch.heat_BKT.masked_fill(~batch.mask_BT[:, None], 1)
    assert not torch.equal(noise, batch.heat_BKT)
    assert loss(0.05, batch._replace(heat_BKT=noise)) == loss(0.05, batch)


def test_videos_without_actions_are_left_out_where_asked(features) -> None:
    bare = tuple(replace(v, segments=()) if v.id in "bd" else v for v in MANIFEST.videos)
    manifest = replace(MANIFEST, videos=bare)
    assert len(FeatureBatches(manifest, features, RECIPE).videos) == 5
    left = FeatureBatches(manifest, features, replace(RECIPE, skip_empty=True))
    assert [v.id for v in left.videos] == ["a", "c", "e"]
    with pytest.raises(ValueError, match="none of its videos with features has actions"):
        only = replace(MANIFEST, videos=(bare[1],))
        FeatureBatches(only, features, replace(RECIPE, skip_empty=True))


def test_recipes_are_stored_as_json() -> None:
    values = to_json(STRETCHED)
    assert (values["crop"], values["heat_map"], values["skip_empty"]) == (5, 0.05, False)
    assert to_json(from_json(HeadRecipe, values)) == values


def trained(features: FeatureSet, folder: Path, recipe: HeadRecipe, **context) -> dict:
    return fit_head(recipe, FeatureBatches(MANIFEST, features, recipe),
                    Context(folder, device=CPU, **context))  # fmt: skip


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("recipe", [RECIPE, STRETCHED], ids=["linear", "ms_tct"])
def test_a_stopped_run_ends_with_the_same_bits(features, tmp_path, recipe) -> None:
    def stop(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 5:
            raise Stopped

    trained(features, tmp_path / "whole", recipe)
    with pytest.raises(Stopped):
        trained(features, tmp_path / "cut", recipe, report=stop, checkpoint_every=0)
    torch.manual_seed(5)
    assert trained(features, tmp_path / "cut", recipe)["steps"] == 8
    ends = [checkpoint.load_weights(tmp_path / n / "checkpoints/last.pt") for n in ("whole", "cut")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


class Kept:
    """A writer that keeps."""

    def __init__(self) -> None:
        self.probs: dict[str, tuple[np.ndarray, float]] = {}

    def add(self, video_id: str, probs_TK: torch.Tensor, fps: float) -> None:
        self.probs[video_id] = probs_TK.numpy(), fps


def test_a_rule_is_found_and_told_of_every_frame(features, tmp_path) -> None:
    recipe = replace(RECIPE, optim=replace(OPTIM, steps=300))
    trained(features, tmp_path, recipe)
    model = build_head(recipe, 6, 3)
    model.load_state_dict(checkpoint.load_weights(tmp_path / "checkpoints/last.pt"))
    sink = Kept()
    absent = predict_head(model.eval(), recipe, MANIFEST, features, sink, CPU)
    assert absent == {"gone": "cut short"} and sink.probs.keys() == {*LENGTHS} - {"gone"}
    weight, bias = (getattr(model.per_frame, n).detach().numpy() for n in ("weight", "bias"))
    right = []
    for name, (probs, fps) in sink.probs.items():
        frames = LENGTHS[name]
        assert probs.shape == (frames, 3) and fps == FPS
        logits = np.array(features[name]["features"]) @ weight[:, :, 0].T + bias
        # Step i stands for the frames from i · stride on, and for their middle.
        middles = STRIDE * np.arange(len(logits)) + (STRIDE - 1) / 2
        expected = [np.interp(np.arange(frames), middles, column) for column in logits.T]
        np.testing.assert_allclose(probs, 1 / (1 + np.exp(-np.stack(expected, 1))), atol=1e-5)
        truth = MANIFEST.frame_targets(video(name), frames, FPS).T
        right.append((probs[::STRIDE] > 0.5) == truth[::STRIDE])
    # Interpolation blurs what changes from one step to the next.
    assert np.concatenate(right).mean() > 0.9


@pytest.mark.parametrize("padding", ["released", "exact"])
def test_ms_tct_scores_whole_videos_however_it_was_trained(features, padding) -> None:
    model = replace(TINY, options={**TINY.options, "padding": padding})
    recipe = replace(STRETCHED, model=model)
    scorer, sink = build_head(recipe, 6, 3).eval(), Kept()
    predict_head(scorer, recipe, MANIFEST, features, sink, CPU)
    rows = torch.from_numpy(np.array(features["b"]["features"])).T[None]
    with torch.no_grad():
        logits = scorer(rows, torch.tensor([11]))[0]
    probs, _ = sink.probs["b"]
    middles = STRIDE * np.arange(11) + (STRIDE - 1) / 2
    expected = np.stack([np.interp(np.arange(41), middles, row) for row in logits.numpy()], 1)
    np.testing.assert_allclose(probs, 1 / (1 + np.exp(-expected)), atol=1e-5)


def test_what_no_head_can_read_is_refused(features) -> None:
    with pytest.raises(ValueError, match=r"'layer1' of shape \(2, 7, 7\): heads read one vector"):
        FeatureBatches(MANIFEST, features, replace(RECIPE, tensor="layer1"))
    with pytest.raises(ValueError, match="'conv5' of shape None"):
        feature_width(features, "conv5")
    other = replace(RECIPE, model=ModelRecipe("linear", {"in_features": 432}))
    with pytest.raises(ValueError, match=r"in_features=432, the features have 6"):
        build_head(other, 6, 3)
    with pytest.raises(ValueError, match=r"'linear' has no heat map to learn: .* found 0\.1"):
        build_head(replace(RECIPE, heat_map=0.1), 6, 3)
    with pytest.raises(ValueError, match="crop -1, heat_map 0.0: expected at least 0"):
        replace(RECIPE, crop=-1)
    with pytest.raises(ValueError, match="none of its videos has features"):
        FeatureBatches(replace(MANIFEST, videos=MANIFEST.videos[-1:]), features, RECIPE)
