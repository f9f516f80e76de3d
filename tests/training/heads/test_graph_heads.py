"""Networks of detections: what they are shown, whether a relation is learned, and the document."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from ssdet.data import Manifest, Segment, Video
from ssdet.data.features.detections import DetectionSet
from ssdet.models import create
from ssdet.training import Context, ModelRecipe, OptimRecipe, checkpoint
from ssdet.training.heads.graph_heads import (
    GraphBatches,
    GraphRecipe,
    fit_graph,
    graph_loss,
    graph_network,
    predict_graph,
)

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "graphs.md").read_text()
STRIDE, FPS, TYPES = 4, 10.0, 3
CPU = torch.device("cpu")
OPTIM = OptimRecipe(steps=8, batch=4, lr=0.01, optimizer="adamw", schedule="cosine", clip_grad=1.0)
MODELS = {
    "stgcn": ModelRecipe("stgcn", {"width": 32}),
    "vs_st_mpnn": ModelRecipe("vs_st_mpnn", {"width": 32, "symbols": 16, "rounds": 2}),
}


def wander(steps: int, draws: torch.Generator) -> Tensor:
    """Boxes [steps, 4, 4] on slow curves."""
    speed = 0.15 + 0.5 * torch.rand(4, 2, generator=draws)
    phase = 6.28 * torch.rand(4, 2, generator=draws)
    centre = 0.5 + 0.3 * torch.sin(phase + speed * torch.arange(steps)[:, None, None])
    half = 0.075 + 0.075 * torch.rand(4, 2, generator=draws)
    return torch.cat([centre - half, centre + half], -1)


def relations(boxes: Tensor, types: list[int]) -> Tensor:
    """Classes 0 to 2: the actor (type 3) overlaps the object of that type; class 3: it moves away
    from the object of type 0."""
    actor, *others = (boxes[:, types.index(k)] for k in (3, 0, 1, 2))
    rows = [
        ((actor[:, :2] < other[:, 2:]) & (other[:, :2] < actor[:, 2:])).all(1) for other in others
    ]
    gap = (actor[:, :2] + actor[:, 2:] - others[0][:, :2] - others[0][:, 2:]).norm(dim=1)
    return torch.stack([*rows, torch.diff(gap, append=2 * gap[-1:] - gap[-2:-1]) > 0])


def write(folder: Path, count: int, seed: int, shuffle: bool = False) -> Manifest:
    """Videos of an actor and one object of each type, whose features tell types and nothing else;
    `shuffle` deals the boxes of a video out anew, after it was labelled."""
    folder.mkdir(parents=True)
    videos = []
    for number in range(count):
        draws = torch.Generator().manual_seed(1000 * seed + number)
        steps = int(torch.randint(8, 21, (), generator=draws))
        types = torch.randperm(4, generator=draws)
        boxes = wander(steps, draws)
        labels_KT = relations(boxes, types.tolist())
        if shuffle:
            order = torch.randperm(steps * 4, generator=draws)
            boxes = boxes.flatten(0, 1)[order].view_as(boxes)
        features = F.one_hot(types, 8) + 0.3 * torch.randn(steps, 4, 8, generator=draws)
        name = f"{seed}-{number}"
        np.savez(
            folder / f"{name}.npz", boxes=boxes.numpy(), features=features.numpy(), fps=FPS,
            kind=(types != 3).long().expand(steps, 4).numpy(), stride=STRIDE,
            frames=steps * STRIDE - number % STRIDE, rgb=np.ones((steps, 5), np.float32),
        )  # fmt: skip
        acts = [
            Segment(k, (t * STRIDE - 0.5) / FPS, (t * STRIDE + STRIDE - 0.5) / FPS)
            for k, t in labels_KT.nonzero().tolist()
        ]
        videos.append(Video(name, "", "train", segments=tuple(acts)))
    return Manifest("graphs", ("touch a", "touch b", "touch c", "leave a"), tuple(videos))


class Kept:
    """A writer that keeps."""

    def __init__(self) -> None:
        self.probs: dict[str, tuple[np.ndarray, float]] = {}

    def add(self, video_id: str, probs_TK: Tensor, fps: float) -> None:
        self.probs[video_id] = probs_TK.numpy(), fps


def held_out(root: Path, recipe: GraphRecipe, shuffle: bool) -> np.ndarray:
    """Train, and say the average precision of each class on other videos."""
    train, test = (write(root / n, c, s, shuffle) for n, c, s in (("a", 128, 1), ("b", 32, 2)))
    seen, new = DetectionSet.open(root / "a"), DetectionSet.open(root / "b")
    fit_graph(recipe, GraphBatches(train, seen, recipe), Context(root, device=CPU))
    model = graph_network(recipe, seen, 4)
    model.load_state_dict(checkpoint.load_weights(root / "checkpoints/last.pt"))
    sink = Kept()
    assert predict_graph(model.eval(), recipe, test, new, sink, CPU) == {}
    scores = np.concatenate([sink.probs[v.id][0][::STRIDE] for v in test.videos])
    truth = np.concatenate([GraphBatches(test, new, recipe).targets(v).T for v in test.videos])
    return np.array([average_precision_score(truth[:, k], scores[:, k]) for k in range(4)])


@pytest.mark.parametrize("name", MODELS)
def test_a_relation_is_learned_and_lost_without_boxes(name, tmp_path) -> None:
    """A quarter of the steps show each of the first three classes, half of them the last."""
    optim = replace(OPTIM, steps=140, batch=8)
    recipe = GraphRecipe(MODELS[name], optim=optim)
    found = held_out(tmp_path / "whole", recipe, shuffle=False)
    blind = held_out(tmp_path / "shuffled", recipe, shuffle=True)
    assert found[:TYPES].mean() > 0.65 and blind[:TYPES].mean() < 0.4
    assert found[TYPES] > blind[TYPES] + 0.03


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, DetectionSet]:
    folder = tmp_path_factory.mktemp("graphs") / "few"
    return write(folder, 6, 3), DetectionSet.open(folder)


def test_batches_hold_the_labels_of_every_step(graphs) -> None:
    manifest, detections = graphs
    data = GraphBatches(manifest, detections, GraphRecipe())
    batch = data.collate(manifest.videos)
    assert batch.detections.rgb_BTD is None
    lengths = [detections.entries[v.id].steps for v in manifest.videos]
    assert batch.detections.lengths_B.tolist() == lengths
    assert batch.targets_BKT.shape == (6, 4, max(lengths))
    for row, (video, steps) in enumerate(zip(manifest.videos, lengths, strict=True)):
        boxes = torch.from_numpy(detections[video.id]["boxes"])
        types = torch.from_numpy(detections[video.id]["features"]).mean(0)[:, :4].argmax(1)
        expected = relations(boxes, types.tolist())
        assert torch.equal(batch.targets_BKT[row, :, :steps].bool(), expected)
        assert not batch.targets_BKT[row, :, steps:].any()
    recipe = GraphRecipe(segments=("rgb",), optim=replace(OPTIM, batch=6))
    shown = GraphBatches(manifest, detections, recipe).batch(1).detections
    assert sorted(shown.lengths_B.tolist()) == sorted(lengths) and shown.rgb_BTD is not None


def test_every_stage_is_trained_and_padding_is_not(graphs) -> None:
    manifest, detections = graphs
    recipe = GraphRecipe(MODELS["stgcn"])
    model, data = graph_network(recipe, detections, 4), GraphBatches(manifest, detections, recipe)
    total = 0.0
    for video in manifest.videos:
        batch = data.collate([video])
        for logits in model.stages(batch.detections):  # type: ignore[operator]
            each = F.binary_cross_entropy_with_logits(logits, batch.targets_BKT, reduction="sum")
            total += each.item() / 2
    batch = data.collate(manifest.videos)
    steps = int(batch.detections.lengths_B.sum())
    assert graph_loss(model, batch).item() * steps == pytest.approx(total, rel=1e-4)


def test_the_label_graph_is_that_of_the_training_videos(graphs, tmp_path) -> None:
    manifest, detections = graphs
    recipe = GraphRecipe(MODELS["vs_st_mpnn"], optim=replace(OPTIM, steps=1))
    data = GraphBatches(manifest, detections, recipe)
    fit_graph(recipe, data, Context(tmp_path, device=CPU))
    kept = checkpoint.load_weights(tmp_path / "checkpoints/last.pt")["labels.cooccurrence_KK"]
    rows = np.concatenate([data.targets(v) for v in manifest.videos], 1).astype(float)
    counts = np.array([[(a * b).sum() for b in rows] for a in rows])
    np.testing.assert_allclose(kept, counts / counts.sum(1, keepdims=True), rtol=1e-6)


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("name", MODELS)
def test_a_stopped_run_ends_with_the_same_bits(graphs, name, tmp_path) -> None:
    manifest, detections = graphs
    recipe = GraphRecipe(MODELS[name], optim=OPTIM)

    def trained(folder: str, **context: Any) -> dict[str, Any]:
        data = GraphBatches(manifest, detections, recipe)
        return fit_graph(recipe, data, Context(tmp_path / folder, device=CPU, **context))

    def stop(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 5:
            raise Stopped

    trained("whole")
    with pytest.raises(Stopped):
        trained("cut", report=stop, checkpoint_every=0)
    torch.manual_seed(5)
    assert trained("cut")["steps"] == 8
    ends = [checkpoint.load_weights(tmp_path / n / "checkpoints/last.pt") for n in ("whole", "cut")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_every_frame_gets_a_score(graphs) -> None:
    manifest, detections = graphs
    gone = Video("gone", "", "train")
    recipe = GraphRecipe(MODELS["stgcn"], segments=("rgb",))
    model, sink = graph_network(recipe, detections, 4).eval(), Kept()
    wanted = replace(manifest, videos=(*manifest.videos, gone))
    absent = predict_graph(model, recipe, wanted, detections, sink, CPU)
    assert absent == {"gone": f"no detections in {detections.folder}"}
    for video in manifest.videos:
        probs, fps = sink.probs[video.id]
        assert probs.shape == (detections.frames(video), 4) and fps == FPS
        batch = detections.batch([video.id])
        steps = model(batch)[0].detach().numpy()
        # Step i stands for the frames from i · stride on, and for their middle.
        middles = STRIDE * np.arange(steps.shape[1]) + (STRIDE - 1) / 2
        rows = [np.interp(np.arange(len(probs)), middles, row) for row in steps]
        np.testing.assert_allclose(probs, 1 / (1 + np.exp(-np.stack(rows, 1))), atol=1e-5)


def test_what_does_not_fit_is_refused(graphs) -> None:
    manifest, detections = graphs
    with pytest.raises(ValueError, match="no flow in these files: they have rgb"):
        graph_network(GraphRecipe(MODELS["stgcn"], ("flow",)), detections, 4)
    wrong = ModelRecipe("stgcn", {"in_features": 9})
    with pytest.raises(ValueError, match="in_features=9, the detections have 8 channels"):
        graph_network(GraphRecipe(wrong), detections, 4)
    without = ModelRecipe("stgcn", {"in_features": 0, "width": 8})
    assert graph_network(GraphRecipe(without, ("rgb",)), detections, 4)
    other = replace(manifest, videos=(Video("gone", "", "train"),))
    with pytest.raises(ValueError, match="no video of it has detections in"):
        GraphBatches(other, detections, GraphRecipe())


def test_the_documents_example_runs(capsys) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(compile(example, "docs/graphs.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["a (90, 2) 24.0", "b (90, 2) 24.0"]


def test_the_documents_sizes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\D+ \d+.*?) \| ([\d,]+) \| ([\d,]+) \|$", DOCUMENT, re.M)
    assert len(rows) == 5
    for name, reads, *sizes in rows:
        widths = {word: int(n) for word, n in re.findall(r"(\w+) (\d+)", reads)}
        options = {"in_features": widths.pop("boxes", 0), **widths}
        for classes, size in zip((157, 65), sizes, strict=True):
            with torch.device("meta"):
                model = create(name, classes, **options)
            assert f"{sum(p.numel() for p in model.parameters()):,}" == size
