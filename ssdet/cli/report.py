"""`ssdet report`: a finished study as one HTML page."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from ssdet.results.report.writer import Written


@dataclass(frozen=True)
class Options:
    """Write a finished study as one HTML page that needs no network."""

    study: Annotated[str, tyro.conf.Positional]
    """Name of the study, as `ssdet results ls` lists it."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Folder or file:// URI of the store (SSDET_STORE)."""
    out: Path | None = None
    """File to write; STORE/tables/STUDY/report.html by default."""
    videos: int = 12
    """Test videos in the timeline viewer."""
    megabytes: float = 4.0
    """Size of the page beyond which videos are left out."""
    resamples: int | None = None
    """How often videos and seeds are drawn for intervals; 1000 by default, more for many arms."""
    planned: Path | None = None
    """What `ssdet plan EXPERIMENT --json` printed before the run, to show beside what it took."""


def command(arguments: list[str]) -> int:
    """Run the command; exit status 0 done, 1 failed, 2 wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet report", config=config)
    from ssdet.results.queries.results import Results
    from ssdet.results.report.writer import write_report

    try:
        results = Results.open(options.store)
        plan = results.record(options.study).plan()
        path = options.out or results.store.table_folder(options.study) / "report.html"
        written = write_report(
            plan, results.store, path, options.videos, options.megabytes, options.resamples,
            options.planned,
        )  # fmt: skip
        if options.out is None:
            results.store.publish_files(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_told(written))
    return 0


def _told(written: "Written") -> str:
    shown = written.viewer
    text = f"{written.path}: {written.bytes / 1e6:.1f} MB, timelines of {shown.videos} of "
    text += f"{shown.of} test videos"
    if shown.for_size:
        text += f" ({shown.for_size} more did not fit: raise --megabytes)"
    return text
