"""`ssdet data`: check the files of a data set, convert them, count labels, import features."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ssdet.cli import shared
from ssdet.cli.data_stats import stats
from ssdet.cli.import_features import import_files
from ssdet.data.storage.filesystem import is_remote
from ssdet.data.storage.folders import quarantine_file

if TYPE_CHECKING:
    from ssdet.data.maintenance.check import CheckReport
    from ssdet.data.maintenance.convert import ConversionReport

Annotation = Annotated[tuple[str, ...], tyro.conf.Positional]


@shared.report_errors(interrupted=shared.RESUMABLE)
def command(arguments: list[str]) -> int:
    """Run one of the subcommands; return the exit status."""
    commands = {
        "check": check, "convert": convert, "stats": stats, "import-features": import_files,
    }  # fmt: skip
    return shared.run_subcommand(commands, arguments, "ssdet data", __doc__)


def check(
    path: Annotation,
    format: str,
    videos: str | None = None,
    quarantine: Path | None = None,
    with_suspicious: bool = False,
    processes: int | None = None,
    seconds: float = 300,
    strict: bool = False,
    thorough: bool = False,
    as_json: shared.AsJson = False,
) -> int:
    """Decode both ends and the middle of every video, and compare with the annotation. Unreadable
    videos are listed in a quarantine file, which readers of the annotation leave out. An
    interrupted check resumes; files that have not changed are not checked again.

    Args:
        path: Annotation: a file, several of them, or a folder.
        format: Its format.
        videos: Folder of the videos (kinetics: by default beside the annotation).
        quarantine: List to write (quarantine.json beside the annotation).
        with_suspicious: Also quarantine videos of another duration (by more than 0.5 s and 1 %) or
            frame rate (by more than 1 % from that of most).
        processes: How many at once (one a core).
        seconds: A video that takes longer is unreadable.
        strict: Exit status 1 if anything is wrong, quarantined or not.
        thorough: Decode every frame and look for zeros in place of data, which some decoders show
            as pictures; read whole files to know whether they have changed.
    """
    from ssdet.data.datasets.load import load_manifest
    from ssdet.data.maintenance.check import check as check_files

    manifest = load_manifest(format, path, videos=videos, quarantine=False)
    if quarantine is None and is_remote(path[0]):
        raise ValueError(f"{path[0]}: give --quarantine, a file on this machine for the list")
    file = quarantine or quarantine_file(Path(path[0]))
    with shared.Progress("checked", resumes=True) as progress:
        report = check_files(
            manifest, file, processes, seconds, with_suspicious, progress, thorough
        )
    if as_json:
        shared.print_json({**asdict(report), "fine": report.fine, "quarantine": str(file)})
    else:
        _print_report(report, file, with_suspicious)
    return int(bool(report.unchecked) or (strict and report.fine < report.annotated))


def convert(
    path: Annotation,
    format: str,
    out: Path,
    videos: str | None = None,
    short_side: int = 256,
    gop: int = 12,
    crf: int = 23,
    packed: bool = False,
    processes: int | None = None,
    seconds: float = 300,
    strict: bool = False,
    as_json: shared.AsJson = False,
) -> int:
    """Write small H.264 copies of all videos, or packs of JPEG pictures, for fast reading in
    training. The annotation stays the same: give OUT as the folder of videos. An interrupted
    conversion resumes; only changed files are converted again.

    Args:
        path: Annotation: a file, several of them, or a folder.
        format: Its format.
        out: Folder to write.
        videos: Folder of the videos (kinetics: by default beside the annotation).
        short_side: Pixels; smaller videos are not enlarged.
        gop: Frames from keyframe to keyframe.
        crf: Quality of H.264, 0 lossless to 51.
        packed: Packs of JPEGs: several times the disk, several times as fast.
        processes: How many at once (one a core).
        seconds: A video that makes no headway for so long has failed.
        strict: Exit status 1 if any video is missing or failed.
    """
    from ssdet.data.datasets.load import load_manifest
    from ssdet.data.maintenance.convert import ConvertOptions
    from ssdet.data.maintenance.convert import convert as convert_files

    manifest = load_manifest(format, path, videos=videos)
    options = ConvertOptions(short_side, gop, crf, packed)
    first = Path(path[0])
    source = videos or (first if first.is_dir() else first.parent)
    with shared.Progress("converted", resumes=True) as progress:
        done = convert_files(manifest, source, out, options, processes, seconds, progress)
    if as_json:
        shared.print_json({**asdict(done), "out": str(out)})
    else:
        _print_conversion(done, out)
    incomplete = strict and done.converted < done.annotated
    return int(not done.converted or bool(done.unread) or incomplete)


def _print_report(report: CheckReport, file: Path, with_suspicious: bool) -> None:
    unreadable, suspicious, unchecked = report.unreadable, report.suspicious, report.unchecked
    missing = {name: report.missing_reasons.get(name, "no file") for name in report.missing}
    shared.print_section("missing", shared.reasons(missing))
    shared.print_section("unreadable", shared.reasons(unreadable))
    shared.print_section("suspicious", shared.reasons(suspicious))
    shared.print_section("not checked, run again", shared.reasons(unchecked))
    shared.print_section("frames with times of their own (no fault)", shared.reasons(report.notes))
    print(
        f"{report.annotated} annotated videos: {report.fine} fine, {len(missing)} missing, "
        f"{len(unreadable)} unreadable, {len(suspicious)} suspicious"
        + (f", {len(unchecked)} could not be checked" if unchecked else "")
    )
    listed = len(unreadable) + (len(suspicious) if with_suspicious else 0)
    left = "" if with_suspicious or not suspicious else "; suspicious ones are left in"
    print(f"{file}: {listed} in quarantine{left}")


def _print_conversion(done: ConversionReport, out: Path) -> None:
    shared.print_section("missing", shared.reasons(done.missing))
    shared.print_section("failed", shared.reasons(done.failed))
    shared.print_section("failed, run again", shared.reasons(done.unread))
    print(
        f"{done.annotated} annotated videos: {done.converted} converted, {len(done.missing)} "
        f"missing, {len(done.failed) + len(done.unread)} failed; {done.frames:,} frames, "
        f"{done.bytes / 1e9:.2f} GB in {out}"
    )
