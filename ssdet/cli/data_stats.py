"""`ssdet data stats`: videos, instances and labels of an annotation per split and class."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import track

from ssdet.cli.shared import AsJson, Name, note, print_json, print_table
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.data.datasets.manifest import Manifest
    from ssdet.data.datasets.statistics import FrameRule, SplitStatistics
    from ssdet.data.video.clock import Clock

SPLITS = ("train", "val", "test")
MULTITHUMOS_FPS = 10.0
CHARADES_FPS = 24.0


def stats(
    path: Name,
    format: str,
    more: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    videos: str | None = None,
    fps: float | None = None,
    times: Literal["frames", "grid"] | None = None,
    min_frames: int = 0,
    as_json: AsJson = False,
) -> None:
    """Videos, instances and labels of an annotation: at 25 points of each video and densely.

    Args:
        path: Annotation file, or folder.
        format: Its format.
        more: Further lists of the same data set.
        videos: Folder of the files; frames are then counted in them, else by the durations.
        fps: Frames per second without --videos (24; MultiTHUMOS 10).
        times: Times of frames: by their share of the duration (frames), or f / fps (grid, by
            default for MultiTHUMOS).
        min_frames: Leave shorter videos out of the dense counts (published code: 162).
    """
    from ssdet.data.datasets.load import load_manifest
    from ssdet.data.datasets.statistics import FrameRule, split_statistics

    thumos = format == "multithumos"
    rule = FrameRule(
        (MULTITHUMOS_FPS if thumos else CHARADES_FPS) if fps is None else fps,
        times or ("grid" if thumos else "frames"),
        min_frames,
    )
    manifest = load_manifest(format, [path, *more], videos=videos)
    clocks, broken = (None, {}) if videos is None else _clocks(manifest)
    every = {name: split_statistics(manifest.split(name), rule, clocks) for name in SPLITS}
    parts = {name: part for name, part in every.items() if part.videos or part.missing}
    if as_json:
        print_json(_json(manifest, rule, parts, broken))
        return
    _print_classes(manifest, parts)
    _print_splits(manifest, rule, parts, in_files=clocks is not None)
    for text, count in manifest.notes.items():
        print(f"{text}: {count:,}")
    for video, reason in broken.items():
        note(f"{video}: {reason}")


def _clocks(manifest: Manifest) -> tuple[dict[str, Clock], dict[str, str]]:
    """Clocks of the files by video id, and reasons of those that cannot be read."""
    from ssdet.data.loading.frame_readers import Decoder
    from ssdet.data.video.reader import CorruptVideo

    clocks: dict[str, Clock] = {}
    broken: dict[str, str] = {}
    reader = Decoder()
    console, disable = plain_console(stderr=True), not sys.stderr.isatty()
    for video in track(manifest.videos, "Counting frames", console=console, disable=disable):
        try:
            clocks[video.id] = reader.clock(video)
        except CorruptVideo as error:
            broken[video.id] = error.reason
    return clocks, broken


def _json(
    manifest: Manifest,
    rule: FrameRule,
    parts: Mapping[str, SplitStatistics],
    broken: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "frames": {"fps": rule.fps, "times": rule.times, "min_frames": rule.min_frames},
        "splits": {name: part.summary() for name, part in parts.items()},
        "classes": [
            {"name": name, **{split: _class_counts(part, code) for split, part in parts.items()}}
            for code, name in enumerate(manifest.classes)
        ],
        "notes": dict(manifest.notes),
        "quarantined": dict(manifest.quarantined),
        "broken": dict(broken),
    }


def _class_counts(part: SplitStatistics, code: int) -> dict[str, int]:
    counts = {"instances": part.instances_per_class[code], "videos": part.videos_per_class[code]}
    if part.points and part.dense:
        counts |= {"points": part.points.positives[code], "frames": part.dense.positives[code]}
    return {name: int(count) for name, count in counts.items()}


def _print_classes(manifest: Manifest, parts: Mapping[str, SplitStatistics]) -> None:
    titles, rows = ["", "class"], []
    for code, name in enumerate(manifest.classes):
        counts = {split: _class_counts(part, code) for split, part in parts.items()}
        if not code:
            titles += [f"{split} {title}" for split, values in counts.items() for title in values]
        numbers = [f"{n:,}" for values in counts.values() for n in values.values()]
        rows.append([str(code), name, *numbers])
    print_table(titles, rows, left=2)


def _print_splits(
    manifest: Manifest, rule: FrameRule, parts: Mapping[str, SplitStatistics], in_files: bool
) -> None:
    from ssdet.data.datasets.statistics import POINTS

    columns = {split: dict(_flat(part.summary())) for split, part in parts.items()}
    names = dict.fromkeys(name for values in columns.values() for name in values)
    rows = [
        [name, *(_cell(name, values.get(name)) for values in columns.values())] for name in names
    ]
    rate = f"{rule.fps:g} frames a second of the annotated duration"
    if rule.times == "grid":
        rate = f"{rule.fps:g} points a second"
    elif in_files:
        rate = "every frame of the files"
    shortest = f", videos from {rule.min_frames} frames on" if rule.min_frames else ""
    print(f"{manifest.name}: {manifest.num_classes} classes")
    print(f"points: {POINTS} a video, borders included; dense: {rate}, borders excluded{shortest}")
    print_table(["", *columns], rows, left=1)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is not None:
            yield f"{prefix}{name}".replace("_", " "), value


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f} %" if "share" in name else f"{value:.3f}"
