"""`ssdet data import-features`: feature files of other tools as the project's own shards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ssdet.data.datasets.video_names import ID, VideoNames
from ssdet.data.loading.recipe import Dtype, Layout
from ssdet.plugins import Unknown, UsageError

if TYPE_CHECKING:
    from ssdet.data.features.importing import ImportReport

MAX_SHOWN = 20
SECTIONS = {
    "broken": "left out",
    "other_length": "of another length than the video",
    "missing": "annotated, without features",
    "unused": "not used",
}
"""Fields of the report and their titles."""


def command(arguments: list[str]) -> int:
    """Import features; exit status 0 done, 1 failed, 2 wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        tyro.cli(import_files, args=arguments, prog="ssdet data import-features", config=config)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, Unknown | UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def import_files(
    source: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path,
    annotation: tuple[str, ...] = (),
    format: str = "",
    stride: int | None = None,
    fps: float | None = None,
    rate: float | None = None,
    layout: Layout | None = None,
    key: str = "",
    names: str = ID,
    dtype: Dtype = "float32",
    skip_broken: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")] = False,
) -> None:
    """Import feature files of other tools (.npy, .npz, .h5, .pkl, .pt) for heads: one file a video
    in a folder, or one file with the arrays of all. Nothing in the files is run.

    Args:
        source: Folders with a file for each video, or files with arrays by video.
        out: Folder to write; it must not be there.
        annotation: Annotation of the videos: ids, and durations where no rate is given.
        format: Its format.
        stride: Frames from one feature to the next; with --fps.
        fps: Frames a second of the videos that features were made from.
        rate: Features a second, in place of --stride and --fps.
        layout: td for arrays [T, D], dt for [D, T]; by default from the axis that is equal in all
            videos.
        key: Array of each video, where it has several (rgb, or a/b for nested ones).
        names: How the names of files hold the video id, such as {id}_rgb.
        dtype: Type that is written; others are rounded to it.
        skip_broken: Leave out videos whose features hold NaN or cannot be read.
    """
    if not source:
        raise UsageError("give a folder with feature files, or files")
    if bool(annotation) != bool(format):
        raise UsageError("--annotation and --format go together")
    from ssdet.data.datasets.load import load_manifest
    from ssdet.data.features.foreign_files import find_features
    from ssdet.data.features.importing import Rate, import_features

    timing = Rate(stride, fps, rate)
    manifest = load_manifest(format, annotation) if annotation else None
    known = VideoNames(v.id for v in manifest.videos) if manifest else None
    features, others = find_features(source, key, names, known)
    report = import_features(features, out, timing, manifest, layout, dtype, skip_broken, _progress)
    report.unused += others
    if as_json:
        print(json.dumps({**asdict(report), "out": str(out)}, indent=1, ensure_ascii=False))
    else:
        _print(report, out)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"imported {done} of {total} videos", end=end, file=sys.stderr)


def _print(report: ImportReport, out: Path) -> None:
    for name, title in SECTIONS.items():
        entries = getattr(report, name)
        _print_section(title, [f"{v}: {entries[v]}" if isinstance(entries, dict) else v
                               for v in entries])  # fmt: skip
    counts = [f"{len(getattr(report, name))} {title}" for name, title in SECTIONS.items()]
    layout = "[T, D]" if report.layout == "td" else "[D, T]"
    print(
        f"{report.videos} videos with {report.steps:,} features of {report.channels} channels, "
        f"read as {layout}, in {out}; {', '.join(counts)}"
    )


def _print_section(title: str, lines: Iterable[str]) -> None:
    lines = list(lines)
    if lines:
        print(f"{title}:")
    for line in lines[:MAX_SHOWN]:
        print(f"  {line}")
    if len(lines) > MAX_SHOWN:
        print(f"  … and {len(lines) - MAX_SHOWN} more (--json lists all)")
