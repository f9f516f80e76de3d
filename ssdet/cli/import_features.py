"""`ssdet data import-features`: feature files of other tools as the project's own shards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ssdet.cli import shared
from ssdet.data.datasets.video_names import ID, VideoNames
from ssdet.data.loading.recipe import Dtype, Layout
from ssdet.plugins import UsageError

if TYPE_CHECKING:
    from ssdet.data.features.importing import ImportReport

SECTIONS = {
    "broken": "left out",
    "other_length": "of another length than the video",
    "missing": "annotated, without features",
    "unused": "not used",
}
"""Fields of the report and their titles."""


@shared.report_errors(ImportError, interrupted="interrupted: nothing was written")
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
    as_json: shared.AsJson = False,
) -> None:
    """Import feature files of other tools (.npy, .npz, .h5, .pkl, .pt) for heads: a folder with one
    file per video, or one file with the arrays of all videos. No code in the files is executed.

    Args:
        source: Folders with a file for each video, or files with arrays by video.
        out: Folder to write; it must not exist.
        annotation: Annotation of the videos: ids, and durations where no rate is given.
        format: Its format.
        stride: Frames from one feature to the next; with --fps.
        fps: Frames a second of the videos that features were made from.
        rate: Features a second, in place of --stride and --fps.
        layout: td for arrays [T, D], dt for [D, T]; by default from the axis that is equal in all
            videos.
        key: Array of each video, where it has several (rgb, or a/b for nested ones).
        names: Pattern of file names around the video id, such as {id}_rgb.
        dtype: Type that is written; others are rounded to it.
        skip_broken: Leave out videos whose features contain NaN or cannot be read.
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
    ids = VideoNames(video.id for video in manifest.videos) if manifest else None
    features, others = find_features(source, key, names, ids)
    with shared.Progress("imported", " videos") as progress:
        report = import_features(
            features, out, timing, manifest, layout, dtype, skip_broken, progress
        )
    report.unused += others
    if as_json:
        shared.print_json({**asdict(report), "out": str(out)})
    else:
        _print_report(report, out)


def _print_report(report: ImportReport, out: Path) -> None:
    for name, title in SECTIONS.items():
        entries = getattr(report, name)
        shared.print_section(
            title, shared.reasons(entries) if isinstance(entries, dict) else entries
        )
    counts = [f"{len(getattr(report, name))} {title}" for name, title in SECTIONS.items()]
    layout = "[T, D]" if report.layout == "td" else "[D, T]"
    print(
        f"{report.videos} videos with {report.steps:,} features of {report.channels} channels, "
        f"read as {layout}, in {out}; {', '.join(counts)}"
    )
