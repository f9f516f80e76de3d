"""Temporal heads on stored features of real videos: training, scoring, table."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet import augment
from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.clips import normalise
from ssdet.data.loading.frame_readers import Decoder, dense_targets
from ssdet.data.loading.recipe import ClipRecipe
from ssdet.data.loading.sampling import generator_for
from ssdet.data.storage.cache import cache_folder
from ssdet.data.video.reader import probe, read_clip
from ssdet.evaluation import (
    dense_map,
    detectable_difference,
    holm,
    mean_and_sd,
    paired_bootstrap,
    paired_sd,
    verdict,
)
from ssdet.models.layers.resampling import interpolate
from ssdet.models.weights import published
from ssdet.training.heads.probe import fit
from ssdet.training.losses import localisation_loss, pretrain_targets
from ssdet.training.losses import soft_cross_entropy as cross_entropy
from ssdet.training.recipe import ProbeRecipe

if TYPE_CHECKING:
    from real_videos import Options

WEIGHTS, SIDE, WINDOW, STEP = "i3d-kinetics400", 128, 128, 8
Scores = dict[str, np.ndarray]
Group = Literal["video", "day"]


class Head(nn.Module):
    """Features [B, S, D] -> logits [B, K, S], with a context of 2 steps on each side."""

    def __init__(self, classes: int, features: int = 1024, width: int = 64) -> None:
        super().__init__()
        self.reduce = nn.Linear(features, width)
        self.mix = nn.Conv1d(width, width, 5, padding=2)
        self.score = nn.Conv1d(width, classes, 1)

    def hidden(self, features_BSD: Tensor) -> Tensor:
        x_BWS = F.dropout(F.gelu(self.reduce(features_BSD)), 0.3, self.training).mT
        return x_BWS + F.gelu(self.mix(x_BWS))

    def forward(self, features_BSD: Tensor) -> Tensor:
        return self.score(self.hidden(features_BSD))

    def classify(self, features_BSD: Tensor) -> Tensor:
        return self.score(self.hidden(features_BSD).mean(2, keepdim=True))[..., 0]


@dataclass(frozen=True)
class Material:
    """Features [S, D] by video, one step for 8 frames, and labels."""

    clips: dict[str, Tensor]
    labels: dict[str, int]
    kinds: int
    videos: dict[str, Tensor]
    frames: dict[str, np.ndarray]
    """bool [T, K]"""
    steps: dict[str, Tensor]
    """[S, K]: classes that at least half of a step's frames show."""


def step_labels(labels_TK: np.ndarray) -> Tensor:
    """Labels [S, K] of steps of 8 frames."""
    padding = ((0, -len(labels_TK) % STEP), (0, 0))
    whole_TK = np.pad(labels_TK.astype(np.float32), padding, mode="edge")
    shares_SK = whole_TK.reshape(-1, STEP, whole_TK.shape[1]).mean(1)
    return torch.from_numpy((shares_SK >= 0.5).astype(np.float32))


@torch.inference_mode()
def extract(model: nn.Module, video: Video, clip: ClipRecipe) -> np.ndarray:
    """Features [S, 1024] of a video's uncropped frames, in passes of 128 frames."""
    total, parts = probe(video.path).frames, []
    for start in range(0, total, WINDOW):
        frames = np.arange(start, min(start + WINDOW, total))
        frames = np.pad(frames, (0, -len(frames) % STEP), mode="edge")
        pictures = torch.from_numpy(read_clip(video.path, frames.tolist(), size=SIDE))
        inputs = normalise(pictures[None], clip, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            features_DT = model.features(inputs)[0].float()  # type: ignore[operator]
        parts.append(features_DT.unflatten(1, (-1, STEP)).mean(2))
    return torch.cat(parts, 1).T.numpy()


def features_of(manifest: Manifest, folder: Path) -> dict[str, Tensor]:
    """Features by video id; those that the folder lacks are computed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {video.id: folder / f"{Path(video.id).name}.npy" for video in manifest.videos}
    absent = [video for video in manifest.videos if not paths[video.id].is_file()]
    if absent:
        loaded = published.load(WEIGHTS)
        model = loaded.model.to(memory_format=torch.channels_last_3d)
        for video in track(absent, f"features of {manifest.name}"):
            with open(partial := paths[video.id].with_suffix(".partial"), "wb") as file:
                np.save(file, extract(model, video, loaded.clip))
            partial.rename(paths[video.id])
    return {name: torch.from_numpy(np.load(path)) for name, path in paths.items()}


def material(options: "Options") -> Material:
    """Features and labels of both data sets."""
    folder = options.features or cache_folder() / f"features-{WEIGHTS}-{SIDE}"
    clips = load_manifest("kinetics", options.clips, videos=options.clips_folder)
    videos = load_manifest("segments", options.videos, videos=options.videos_folder)
    if missing := (*clips.missing, *videos.missing):
        raise ValueError(f"no file of {', '.join(missing[:5])}: look at the folders")
    reader = Decoder()
    frames = {video.id: dense_targets(videos, video, reader).T for video in videos.videos}
    upstream, downstream = features_of(clips, folder), features_of(videos, folder)
    # One scale for all, from the clips only, so that no held-out video influences it.
    scale = torch.cat(list(upstream.values())).square().mean().sqrt()
    return Material(
        clips={name: values / scale for name, values in upstream.items()},
        labels={video.id: int(video.label or 0) for video in clips.videos},
        kinds=clips.num_classes,
        videos={name: values / scale for name, values in downstream.items()},
        frames=frames,
        steps={name: step_labels(values) for name, values in frames.items()},
    )


def segment(length: int, steps: int, draws: torch.Generator) -> Tensor:
    """Indices [steps] of a random segment; a shorter video is repeated."""
    start = int(torch.randint(max(1, length - steps + 1), (), generator=draws))
    return (start + torch.arange(steps)) % length


def trained(
    head: Head, steps: int, seed: int, loss_of: Callable[[torch.Generator], Tensor]
) -> Head:
    """Train by AdamW with a one-cycle schedule; `loss_of` gets the generator of the step."""
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.05, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        torch.manual_seed(generator_for(seed, "dropout", step).initial_seed())
        optimizer.zero_grad()
        loss_of(generator_for(seed, "step", step)).backward()
        optimizer.step()
        rate.step()
    return head.eval()


def fresh(classes: int, seed: int, task: str) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(generator_for(seed, "weights", task).initial_seed())
        return Head(classes)


def pretrained(data: Material, arm: str, seed: int, steps: int) -> Head:
    """A head pretrained on batches of 16 clips, 16 steps (5 s) each; class 0 is the background."""
    names = sorted(data.clips)
    mixing = augment.create("none" if arm == "cls" else arm)
    head = fresh(data.kinds + 1, seed, "pretrain")

    def loss_of(draws: torch.Generator) -> Tensor:
        chosen = [names[i] for i in torch.randperm(len(names), generator=draws)[:16].tolist()]
        whole = [data.clips[name] for name in chosen]
        clips_BSD = torch.stack([clip[segment(len(clip), 16, draws)] for clip in whole])
        labels_BK = F.one_hot(torch.tensor([data.labels[n] for n in chosen]), data.kinds).float()
        targets_BKS = pretrain_targets(labels_BK, 16, "class")
        if arm == "cls":
            return cross_entropy(head.classify(clips_BSD), targets_BKS[..., 0])
        mixed, soft = mixing(clips_BSD.mT[..., None, None], targets_BKS, draws)
        return cross_entropy(head(mixed[..., 0, 0].mT), soft)

    return trained(head.train(), steps, seed, loss_of)


def finetuned(
    data: Material, start: Head | None, names: Sequence[str], seed: int, steps: int
) -> Head:
    """A head fine-tuned on the videos `names`: batches of 8 clips, 32 steps (10 s) each."""
    head = fresh(data.steps[names[0]].shape[1], seed, "finetune")
    if start is not None:
        head.reduce.load_state_dict(start.reduce.state_dict())
        head.mix.load_state_dict(start.mix.state_dict())
    shares = torch.tensor([float(len(data.steps[name])) for name in names])
    valid = torch.ones(8, 32, dtype=torch.bool)

    def loss_of(draws: torch.Generator) -> Tensor:
        clips, targets = [], []
        for i in torch.multinomial(shares, 8, replacement=True, generator=draws).tolist():
            steps_S = segment(len(data.steps[names[i]]), 32, draws)
            clips.append(data.videos[names[i]][steps_S])
            targets.append(data.steps[names[i]][steps_S].T)
        return localisation_loss(head(torch.stack(clips)), torch.stack(targets), valid)

    return trained(head.train(), steps, seed, loss_of)


def frame_scores(data: Material, name: str, logits_BKS: Tensor) -> np.ndarray:
    """Probabilities [T, K] of a video's frames."""
    logits_BKT = interpolate(logits_BKS, STEP * logits_BKS.shape[2])
    return logits_BKT[0].T[: len(data.frames[name])].sigmoid().numpy()


def folds(names: Sequence[str], group: Group) -> Iterator[tuple[list[str], list[str]]]:
    """(training videos, held-out videos) for each group."""
    group_of = {name: name.partition("_")[0] if group == "day" else name for name in names}
    for held in sorted(set(group_of.values())):
        yield (
            [name for name in names if group_of[name] != held],
            [name for name in names if group_of[name] == held],
        )


def cross_validated(
    data: Material, options: "Options", arm: str, group: Group, seed: int
) -> Scores:
    """Scores of every video by a head that was trained without its group."""
    start = None if arm == "scratch" else pretrained(data, arm, seed, options.pretrain_steps)
    scores: Scores = {}
    for training, held in folds(sorted(data.videos), group):
        head = finetuned(data, start, training, seed, options.finetune_steps)
        with torch.inference_mode():
            logits = {name: head(data.videos[name][None]) for name in held}
        scores |= {name: frame_scores(data, name, logits[name]) for name in held}
    return scores


def prior(data: Material, group: Group) -> Scores:
    """Chance: every frame scored by the frequency of the classes in the training videos."""
    return {
        name: np.broadcast_to(
            np.concatenate([data.frames[other] for other in training]).mean(0, dtype=np.float32),
            data.frames[name].shape,
        )
        for training, held in folds(sorted(data.videos), group)
        for name in held
    }


def linear(data: Material, group: Group) -> Scores:
    """Logistic regression on single steps; convex, so without seeds."""
    scores: Scores = {}
    for training, held in folds(sorted(data.videos), group):
        inputs_ND = torch.cat([data.videos[name] for name in training])
        labels_NK = torch.cat([data.steps[name] for name in training])
        probe_model = fit(lambda features_BDS: features_BDS, inputs_ND, labels_NK, ProbeRecipe())
        for name in held:
            scores[name] = frame_scores(data, name, probe_model(data.videos[name].T[None]))
    return scores


def rows(data: Material, group: Group, runs: Mapping[str, Sequence[Scores]]) -> list[dict]:
    """A row for each arm: mean and standard deviation over seeds, and its difference from `cls`."""
    maps = {arm: [dense_map(s, data.frames).value for s in seeds] for arm, seeds in runs.items()}
    others = [arm for arm in runs if arm != "cls"]
    differences = {
        arm: paired_bootstrap(runs["cls"], runs[arm], data.frames, resamples=2000) for arm in others
    }
    p_values = holm([differences[arm].p_value for arm in others])
    adjusted = dict(zip(others, p_values, strict=True))
    table: list[dict] = []
    for name, reference in (("chance", prior), ("linear", linear)):
        value = dense_map(reference(data, group), data.frames).value
        table.append({"group": group, "arm": name, "seeds": 1, "map": value})
    for arm, values in maps.items():
        mean, sd = mean_and_sd(values)
        row = {"group": group, "arm": arm, "seeds": len(values), "map": mean, "sd": sd}
        if arm in differences:
            spread = paired_sd(dict(enumerate(maps["cls"])), dict(enumerate(values)))
            least = spread and detectable_difference(spread, len(values), comparisons=len(others))
            b = differences[arm]
            row |= {"difference": b.difference, "low": b.low, "high": b.high, "p": adjusted[arm]}
            row["verdict"] = verdict(b.difference, b.low, b.high, adjusted[arm], len(values), least)
        table.append(row)
    return table


def write(table: Sequence[Mapping], path: Path) -> None:
    """Write the table as CSV and print its rows."""
    columns = ("group", "arm", "seeds", "map", "sd", "difference", "low", "high", "p", "verdict")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in table:
            rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(rounded)
            print("  ".join(f"{key} {value}" for key, value in rounded.items()))
