"""Cost of the volume augmentations compared with copies and plain vectorised forms.

    python benchmarks/augment.py           # 8x3x80x224x224, needs 3 GB
    python benchmarks/augment.py --small   # 8x3x16x224x224

All forms run interleaved in one process on one thread; ratios of CPU time, median of the rounds.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ssdet.augment import OverlapDraws, create, spatial_window, temporal_alpha

LIMITS = {"fresh": 2.0, "out": 4.5, "inplace": 4.5}
CASES: dict[str, dict[str, Any]] = {
    "freeze": {},
    "mixup": {},
    "cutmix view": {"window": "view"},
    "cutmix transient": {"window": "transient"},
    "joint_single": {},
    "joint": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the volume augmentations.")
    parser.add_argument("--small", action="store_true", help="16 frames a clip, not 80")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = (8, 3, 16, 224, 224) if options.small else (8, 3, 80, 224, 224)
    clips, buffer = torch.rand(shape), torch.zeros(shape)
    print(f"{'x'.join(map(str, shape))} float32, median of {options.rounds} rounds")
    print("fresh / clone: no out, against clips.clone(); out, in place: against a warm copy")
    print(f"{'':24}{'fresh <= 2.0':>14}{'out <= 4.5':>14}{'inplace <= 4.5':>16}{'naive/fresh':>13}")
    for label, settings in CASES.items():
        row = measure(label.split()[0], settings, clips, buffer, options.rounds)
        marks = {key: " " if row[key] <= limit else "!" for key, limit in LIMITS.items()}
        naive = f"{row['naive']:>12.1f}" if "naive" in row else f"{'-':>12}"
        print(
            f"{label:24}{row['fresh']:>13.2f}{marks['fresh']}{row['out']:>13.2f}{marks['out']}"
            f"{row['inplace']:>15.2f}{marks['inplace']}{naive}"
        )


def measure(
    name: str, settings: dict[str, Any], clips: Tensor, buffer: Tensor, rounds: int
) -> dict[str, float]:
    """Ratios of each way of calling one augmentation."""
    batch, _, frames, _, width = clips.shape
    aug = create(name, **settings)
    draws = aug.draw(batch, frames, width, torch.Generator().manual_seed(1))
    targets = torch.full((batch, 401, frames), 1 / 401)
    ways: dict[str, Callable[[], Any]] = {
        "copy": lambda: buffer.copy_(clips),
        "clone": lambda: clips.clone(),
        "fresh": lambda: aug.apply(clips, targets, draws),
        "out": lambda: aug.apply(clips, targets, draws, out=buffer),
        "inplace": lambda: aug.apply(buffer, targets, draws, inplace=True),
    }
    naive = NAIVE.get((name, settings.get("window")))
    if naive:
        torch.testing.assert_close(naive(clips, draws), ways["fresh"]()[0])
        ways["naive"] = lambda: naive(clips, draws)
    seconds = interleaved(ways, rounds)
    bases = {"fresh": "clone", "out": "copy", "inplace": "copy", "naive": "fresh"}
    return {
        way: median(a / b for a, b in zip(seconds[way], seconds[base], strict=True))
        for way, base in bases.items()
        if way in seconds
    }


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each form in each round, after one warm-up round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            seconds[way].append(time.process_time() - start)
    return {way: values[1:] for way, values in seconds.items()}


def naive_freeze(clips: Tensor, draws: Any) -> Tensor:
    t = torch.arange(clips.shape[2])
    source_BT = t - (t - draws.starts).clamp(min=0).minimum(draws.lengths - 1)
    return clips.gather(2, source_BT[:, None, :, None, None].expand_as(clips))


def overlap(clips: Tensor, draws: OverlapDraws) -> tuple[Tensor, Tensor]:
    """Weights of the clips [B, T] and their partners, shifted."""
    frames = clips.shape[2]
    plan = torch.stack([draws.n1, draws.n2, draws.shift], 1).tolist()
    alpha_BT = torch.stack([temporal_alpha(n1, n2, shift, frames) for n1, n2, shift in plan])
    source_BT = (torch.arange(frames) - draws.shift[:, None]).clamp(min=0)
    index = source_BT[:, None, :, None, None].expand_as(clips)
    return alpha_BT, clips[draws.partner].gather(2, index)


def naive_mixup(clips: Tensor, draws: Any) -> Tensor:
    alpha_BT, other = overlap(clips, draws)
    return torch.lerp(other, clips, alpha_BT.float()[:, None, :, None, None])


def naive_transient(clips: Tensor, draws: Any) -> Tensor:
    alpha_BT, other = overlap(clips, draws)
    width = clips.shape[-1]
    rows_BTW = spatial_window((width * alpha_BT + 0.5).floor(), width, width // 16)
    sharp = (alpha_BT == 0) | (alpha_BT == 1)
    alone = sharp & ~((alpha_BT == 0) & (draws.n2 + draws.shift < draws.n1)[:, None])
    rows_BTW = torch.where(alone[..., None], alpha_BT[..., None], rows_BTW)
    return torch.lerp(other, clips, rows_BTW.float()[:, None, :, None])


def naive_view(clips: Tensor, draws: Any) -> Tensor:
    frames, width = clips.shape[2], clips.shape[-1]
    step_T1 = (torch.arange(frames) * (7 * width // 16) // frames)[:, None]
    columns_TW = torch.arange(width) + step_T1, torch.arange(width) - step_T1
    left, right = (i[:, None].remainder(width).expand_as(clips) for i in columns_TW)
    row_W = spatial_window((width + 1) // 2, width, width // 16).float()
    return torch.lerp(clips[draws.partner].gather(-1, right), clips.gather(-1, left), row_W)


NAIVE: dict[tuple[str, str | None], Callable[[Tensor, Any], Tensor]] = {
    ("freeze", None): naive_freeze,
    ("mixup", None): naive_mixup,
    ("cutmix", "view"): naive_view,
    ("cutmix", "transient"): naive_transient,
}


if __name__ == "__main__":
    main()
