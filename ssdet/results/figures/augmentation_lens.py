"""Figure of a clip before and after a volume augmentation, with its masks and labels.

It shows film strips of the mixed clips and of the result, the share of every clip in each frame,
and the soft label of each frame. No network is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssdet import augment
from ssdet.data.datasets.manifest import Manifest
from ssdet.data.loading.batches import collate
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.frame_readers import FrameReader
from ssdet.system.drawing import COLOURS, DASHES, MARKERS, save
from ssdet.system.text_files import printable
from ssdet.training.losses import pretrain_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 16
"""Maximum number of frames in a strip; of longer clips every n-th is drawn."""


@dataclass(frozen=True)
class AugmentedClip:
    """One augmented clip and the data of its figure."""

    before_CTHW: Mapping[int, Tensor]
    """Source clips by their index in the batch, its own first."""
    after_CTHW: Tensor
    classes: Mapping[int, int]
    """Class of each source clip."""
    shares_T: Mapping[int, Tensor]
    """Share of each source clip in the picture, from the components' weights."""
    frozen_T: Tensor
    """bool, frames in which a clip is frozen and labelled as background."""
    targets_KT: Tensor
    """Soft labels of the loss."""


def lens(
    clips_BCTHW: Tensor,
    targets_BKT: Tensor,
    name: str,
    options: Mapping[str, Any],
    seed: int,
    path: Path,
    classes: Sequence[str] = (),
    clip: int | None = None,
) -> Path:
    """Draw one clip of a batch before and after the augmentation `name` of `ssdet.augment.create`.

    Clips uint8, or float in 0 … 1; targets [B, K, T] whose class 0 is the background where the
    augmentation labels it so; `classes` names the K. `clip`: index in the batch, by default the
    clip that changes the most. `seed` determines the draws. Raises ValueError for other pixel
    values, and the errors of the augmentation.
    """
    mixing = augment.create(name, **options)
    clip_data = augment_clip(clips_BCTHW, targets_BKT, mixing, seed, clip)
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    background = getattr(mixing, "background", "class") == "class"
    return _draw(clip_data, f"{name}({arguments}), seed {seed}", classes, background, path)


def sample(
    manifest: Manifest, reader: FrameReader, recipe: ClipRecipe, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The first `count` clips of a pretraining with this seed: uint8 [B, C, T, H, W], and
    targets [B, K + 1, T] whose class 0 is the background."""
    clips = Clips(manifest, reader, recipe, seed)
    batch = collate([clips[position] for position in range(count)])
    targets_BKT = pretrain_targets(batch.targets_BKF[:, :, 0], recipe.frames, "class")
    return batch.clips_BTHWC.permute(0, 4, 1, 2, 3), targets_BKT


def augment_clip(
    clips_BCTHW: Tensor,
    targets_BKT: Tensor,
    mixing: augment.Augmentation,
    seed: int,
    clip: int | None = None,
) -> AugmentedClip:
    """Data of the figure that `lens` draws."""
    pictures = _as_floats(clips_BCTHW)
    batch, _, frames, _, width = pictures.shape
    draws = mixing.draw(batch, frames, width, torch.Generator().manual_seed(seed))
    after_BCTHW, mixed_BKT = mixing.apply(pictures, targets_BKT.float(), draws)
    # One label per clip, so that the components' labels identify their clips.
    owners_BKT = torch.eye(batch + 1)[1:, :, None].repeat(1, 1, frames)
    _, _, parts = mixing.apply(pictures, owners_BKT, draws, return_components=True)
    shares_BOT, still_BT = _shares(parts, batch)
    if clip is None:
        own_BT = shares_BOT[range(batch), range(batch)]
        clip = int((1 - own_BT + still_BT.float()).sum(1).argmax())
    shown = [o for o in range(batch) if o != clip and shares_BOT[clip, o].any()]
    order = [clip, *sorted(shown, key=lambda o: -float(shares_BOT[clip, o].sum()))]
    return AugmentedClip(
        {o: pictures[o] for o in order},
        after_BCTHW[clip],
        {o: int(targets_BKT[o, :, 0].argmax()) for o in order},
        {o: shares_BOT[clip, o] for o in order},
        still_BT[clip],
        mixed_BKT[clip],
    )


def _as_floats(clips_BCTHW: Tensor) -> Tensor:
    if clips_BCTHW.dtype == torch.uint8:
        return clips_BCTHW.float().contiguous() / 255
    low, high = float(clips_BCTHW.min()), float(clips_BCTHW.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"clips: values {low:.3g} to {high:.3g}, expected uint8 or 0 to 1: pass clips that "
            "are not normalised"
        )
    return clips_BCTHW.float().contiguous()


def _shares(parts: augment.Components, batch: int) -> tuple[Tensor, Tensor]:
    """Weight of every clip of the batch in each frame of each clip [B, B, T], and frames in which
    a component is frozen [B, T]."""
    owner_MB = parts.labels[:, :, 1:].sum(3).argmax(2)
    shares_BOT = torch.zeros(batch, batch, parts.weights.shape[2])
    for owners_B, weights_BT in zip(owner_MB, parts.weights.float(), strict=True):
        shares_BOT[torch.arange(batch), owners_B] += weights_BT
    moving_MBT = parts.labels[:, :, 1:].sum(2) > 0
    still_BT = (~moving_MBT & (parts.weights > 0)).any(0)
    return shares_BOT, still_BT


def _draw(
    view: AugmentedClip, title: str, classes: Sequence[str], background: bool, path: Path
) -> Path:
    from matplotlib.figure import Figure

    frames = view.after_CTHW.shape[1]
    rows_K = [k for k in range(len(view.targets_KT)) if view.targets_KT[k].any()]
    if background and 0 not in rows_K:
        rows_K = [0, *rows_K]
    columns = min(frames, COLUMNS)
    side = 10.6 / columns * view.after_CTHW.shape[2] / view.after_CTHW.shape[3]
    strips = len(view.before_CTHW) + 1
    heights = [side] * strips + [1.3, 0.3 * len(rows_K)]
    figure = Figure(figsize=(12.6, sum(heights) + 0.1 * len(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    called = [*classes, *(f"class {k}" for k in range(len(classes), len(view.targets_KT)))]
    for panel, (o, clip_CTHW) in zip(panels, view.before_CTHW.items(), strict=False):
        _strip(panel, clip_CTHW, f"clip {o}, before\n{called[view.classes[o]]}")
    after = f"clip {next(iter(view.before_CTHW))}, after"
    if view.frozen_T.any():
        after += "\n(dashed: frozen)"
    _strip(panels[strips - 1], view.after_CTHW, after, view.frozen_T)
    _curve(panels[strips], view)
    _labels(panels[strips + 1], view.targets_KT[rows_K], [called[k] for k in rows_K], background)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def _strip(panel: "Axes", clip_CTHW: Tensor, label: str, frozen_T: Tensor | None = None) -> None:
    """Frames side by side, frame t at t - ½ … t + ½ with a gap; frozen ones are framed."""
    channels, frames = clip_CTHW.shape[:2]
    step = -(-frames // COLUMNS)
    for t in range(0, frames, step):
        picture = clip_CTHW[:, t].permute(1, 2, 0).clamp(0, 1).numpy()
        if channels == 1:
            picture = np.repeat(picture, 3, axis=2)
        extent = (t - 0.48, t - 0.52 + step, 0, 1)
        panel.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
        if frozen_T is not None and frozen_T[t]:
            for colour, wide in (("white", 4.5), ("black", 2.0)):
                panel.plot(
                    [extent[0], extent[1], extent[1], extent[0], extent[0]], [0, 0, 1, 1, 0],
                    color=colour, lw=wide, ls="-" if colour == "white" else "--", clip_on=False,
                )  # fmt: skip
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)


def _curve(panel: "Axes", view: AugmentedClip) -> None:
    """The share of each clip, constant within a frame; grey where a clip is frozen."""
    frames = len(view.frozen_T)
    for place, (clip, share_T) in enumerate(view.shares_T.items()):
        colour, marker, dash = (look[place % len(look)] for look in (COLOURS, MARKERS, DASHES))
        front = min(place, 3)  # equal shares hide each other, so markers in front are smaller
        panel.plot(
            range(frames), share_T, color=colour, marker=marker, ls=dash, label=f"clip {clip}",
            lw=(3.4, 2, 1.5, 1)[front], ms=(10, 6, 4.5, 3.5)[front], drawstyle="steps-mid",
        )  # fmt: skip
    for t in range(frames):
        if view.frozen_T[t]:
            panel.axvspan(t - 0.5, t + 0.5, color="#d9dbde", zorder=0, lw=0)
    panel.set_ylim(-0.08, 1.08)
    panel.set_yticks([0, 0.5, 1])
    panel.grid(axis="y", alpha=0.3)
    panel.set_ylabel("share of\nthe picture", fontsize=9, rotation=0, ha="right", va="center")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def _labels(panel: "Axes", targets_KT: Tensor, labels: Sequence[str], background: bool) -> None:
    """Soft targets as shades with their numbers; hatched: the background's row where it has no
    weight, and frames without any label."""
    classes, frames = targets_KT.shape
    panel.imshow(
        targets_KT, cmap="Blues", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest",
        extent=(-0.5, frames - 0.5, classes - 0.5, -0.5),
    )  # fmt: skip
    for k in range(classes):
        for t in range(0, frames, -(-frames // (2 * COLUMNS))):
            value = float(targets_KT[k, t])
            if value > 0:
                text = "1" if value > 0.995 else f"{value:.2f}"[1:]
                panel.text(t, k, text, ha="center", va="center", fontsize=7,
                           color="white" if value > 0.75 else "black")  # fmt: skip
    for t in range(frames):
        unlabelled = not targets_KT[:, t].any()
        if unlabelled or (background and not targets_KT[0, t]):
            low = classes - 0.5 if unlabelled else 0.5
            panel.fill_between([t - 0.5, t + 0.5], -0.5, low, facecolor="none", hatch="////",
                               edgecolor="#b5b9bf", lw=0)  # fmt: skip
    if background:
        labels = ["background", *labels[1:]]
    panel.set_yticks(range(classes), [*map(printable, labels)], fontsize=8)
    panel.set_xticks(range(0, frames, max(1, frames // COLUMNS)))
    panel.tick_params(length=0, labelsize=8)
    panel.set_xlim(-0.5, frames - 0.5)
    panel.set_xlabel("frame", fontsize=9)
