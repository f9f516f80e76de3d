"""`ssdet report`: write a finished study as one HTML page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ssdet.cli.shared import Name, StoreOption, default_store, parse, report_errors

if TYPE_CHECKING:
    from ssdet.results.report.writer import Written


@dataclass(frozen=True)
class Options:
    """Write a finished study as one HTML page that needs no network."""

    study: Name
    """Name of the study, as `ssdet results ls` lists it."""
    store: StoreOption = field(default_factory=default_store)
    out: Path | None = None
    """File to write; STORE/tables/STUDY/report.html by default."""
    videos: int = 12
    """Test videos in the timeline viewer."""
    megabytes: float = 4.0
    """Size of the page beyond which videos are left out."""
    resamples: int | None = None
    """Bootstrap resamples for intervals; 1000 by default, more for many arms."""
    planned: Path | None = None
    """Output of `ssdet plan EXPERIMENT --json` before the run, shown beside the actual cost."""


@report_errors()
def command(arguments: list[str]) -> None:
    """Write the page."""
    options = parse(Options, arguments, "ssdet report")
    from ssdet.results.queries.results import Results
    from ssdet.results.report.writer import write_report

    results = Results.open(options.store)
    plan = results.record(options.study).plan()
    path = options.out or results.store.table_folder(options.study) / "report.html"
    written = write_report(
        plan, results.store, path, options.videos, options.megabytes, options.resamples,
        options.planned,
    )  # fmt: skip
    if options.out is None:
        results.store.publish_files(path)
    print(_summary(written))


def _summary(written: "Written") -> str:
    shown = written.viewer
    text = f"{written.path}: {written.bytes / 1e6:.1f} MB, timelines of {shown.videos} of "
    text += f"{shown.of} test videos"
    if shown.for_size:
        text += f" ({shown.for_size} more did not fit: raise --megabytes)"
    return text
