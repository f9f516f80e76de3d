"""`ssdet data stats`: what an annotation holds, per split and per class."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import track
from rich.table import Table

from ssdet.plugins import Unknown
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.data.datasets.manifest import Manifest
    from ssdet.data.datasets.statistics import FrameRule, SplitStatistics
    from ssdet.data.video.clock import Clock

Named = Annotated[str, tyro.conf.Positional]
SPLITS = ("train", "val", "test")
MULTITHUMOS_FPS = 10.0
CHARADES_FPS = 24.0


def command(arguments: list[str]) -> int:
    """Print the statistics; exit status 0 done, 1 failed, 2 wrong usage."""
    try:
        tyro.cli(
            stats, args=arguments, prog="ssdet data stats", config=(tyro.conf.FlagCreatePairsOff,)
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, Unknown) else 1
    return 0


def stats(
    path: Named,
    format: str,
    more: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    videos: str | None = None,
    fps: float | None = None,
    times: Literal["frames", "grid"] | None = None,
    min_frames: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")] = False,
) -> None:
    """Videos, instances and labels of an annotation: at 25 points of each video and densely.

    Args:
        path: Annotation file, or folder.
        format: Its format.
        more: Further lists of the same data set.
        videos: Folder of the files; frames are then counted in them, else by the durations.
        fps: Frames a second where no file tells them (24; MultiTHUMOS 10).
        times: When a frame is: frames by their share of the duration, or a grid at f / fps
            (MultiTHUMOS).
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
    found = {name: split_statistics(manifest.split(name), rule, clocks) for name in SPLITS}
    found = {name: part for name, part in found.items() if part.videos or part.missing}
    if as_json:
        print(json.dumps(_json(manifest, rule, found, broken), indent=1))
        return
    _print_classes(manifest, found)
    _print_splits(manifest, rule, found, in_files=clocks is not None)
    for text, count in manifest.notes.items():
        print(f"{text}: {count:,}")
    for video, reason in broken.items():
        print(f"{video}: {reason}", file=sys.stderr)


def _clocks(manifest: Manifest) -> tuple[dict[str, Clock], dict[str, str]]:
    """Clock of each file by video id, and why of those that cannot be read."""
    from ssdet.data.loading.frame_readers import Decoder
    from ssdet.data.video.reader import CorruptVideo

    clocks: dict[str, Clock] = {}
    broken: dict[str, str] = {}
    reader = Decoder()
    quiet = not sys.stderr.isatty()
    console = plain_console(stderr=True)
    for video in track(manifest.videos, "Counting frames", console=console, disable=quiet):
        try:
            clocks[video.id] = reader.clock(video)
        except CorruptVideo as error:
            broken[video.id] = error.reason
    return clocks, broken


def _json(
    manifest: Manifest,
    rule: FrameRule,
    found: Mapping[str, SplitStatistics],
    broken: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "frames": {"fps": rule.fps, "times": rule.times, "min_frames": rule.min_frames},
        "splits": {name: part.summary() for name, part in found.items()},
        "classes": [
            {"name": name, **{split: _class(part, code) for split, part in found.items()}}
            for code, name in enumerate(manifest.classes)
        ],
        "notes": dict(manifest.notes),
        "quarantined": dict(manifest.quarantined),
        "broken": dict(broken),
    }


def _class(part: SplitStatistics, code: int) -> dict[str, int]:
    counts = {
        "instances": part.instances_per_class[code],
        "videos": part.videos_per_class[code],
    }
    if part.points and part.dense:
        counts |= {"points": part.points.positives[code], "frames": part.dense.positives[code]}
    return {name: int(count) for name, count in counts.items()}


def _print_classes(manifest: Manifest, found: Mapping[str, SplitStatistics]) -> None:
    columns = (
        [(split, _class(part, 0)) for split, part in found.items()] if manifest.classes else []
    )
    heads = [f"{split} {name}" for split, counts in columns for name in counts]
    rows = [
        [
            str(code),
            name,
            *(f"{n:,}" for part in found.values() for n in _class(part, code).values()),
        ]
        for code, name in enumerate(manifest.classes)
    ]
    _print_table(["", "class", *heads], rows)


def _print_splits(
    manifest: Manifest, rule: FrameRule, found: Mapping[str, SplitStatistics], in_files: bool
) -> None:
    from ssdet.data.datasets.statistics import POINTS

    told = {split: dict(_flat(part.summary())) for split, part in found.items()}
    rows = [
        [name, *(_cell(name, values.get(name)) for values in told.values())]
        for name in dict.fromkeys(name for values in told.values() for name in values)
    ]
    rate = f"{rule.fps:g} frames a second of the annotated duration"
    if rule.times == "grid":
        rate = f"{rule.fps:g} points a second"
    elif in_files:
        rate = "every frame of the files"
    least = f", videos from {rule.min_frames} frames on" if rule.min_frames else ""
    print(f"{manifest.name}: {manifest.num_classes} classes")
    print(f"points: {POINTS} a video, borders included; dense: {rate}, borders excluded{least}")
    _print_table(["", *told], rows)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        elif value is not None:
            yield f"{before}{name}".replace("_", " "), value


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f} %" if "share" in name else f"{value:.3f}"


def _print_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table()
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if name in ("", "class") and place < 2 else "right")
    for row in rows:
        table.add_row(*row)
    plain_console(200).print(table)
