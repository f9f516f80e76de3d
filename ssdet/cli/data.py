"""`ssdet data`: check the files of a data set, convert them, count labels, import features."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ssdet.cli.data_stats import command as stats_command
from ssdet.cli.data_stats import stats
from ssdet.cli.import_features import command as import_command
from ssdet.cli.import_features import import_files
from ssdet.data.storage.filesystem import is_remote
from ssdet.data.storage.folders import quarantine_file
from ssdet.plugins import Unknown
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.data.maintenance.check import CheckReport
    from ssdet.data.maintenance.convert import ConversionReport

Annotation = Annotated[tuple[str, ...], tyro.conf.Positional]
AsJson = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")]
SECONDS_BETWEEN_LINES = 10.0
MOST_SHOWN = 20


def command(arguments: list[str]) -> int:
    """Run one of the subcommands; exit status 0 done, 1 failed, 2 wrong usage."""
    if arguments[:1] == ["stats"]:
        return stats_command(arguments[1:])
    if arguments[:1] == ["import-features"]:
        return import_command(arguments[1:])
    commands: dict[str, Callable[..., int | None]] = {
        "check": check,
        "convert": convert,
        "stats": stats,
        "import-features": import_files,
    }
    try:
        status = tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments,
            prog="ssdet data",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, Unknown) else 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 1
    return status or 0


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
    as_json: AsJson = False,
) -> int:
    """Decode both ends and the middle of every video, and compare with the annotation. What cannot
    be read is listed in a quarantine file, which readers of the annotation heed. An interrupted
    check goes on where it was; files that have not changed are not checked again.

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
        raise ValueError(
            f"{path[0]}: say with --quarantine where on this machine to write the list"
        )
    place = quarantine or quarantine_file(Path(path[0]))
    with Counter("checked") as counter:
        report = check_files(
            manifest, place, processes, seconds, with_suspicious, counter, thorough
        )
    if as_json:
        _print_json({**asdict(report), "fine": report.fine, "quarantine": str(place)})
    else:
        _tell_check(report, place, with_suspicious)
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
    as_json: AsJson = False,
) -> int:
    """Write small H.264 copies of all videos, or packs of JPEG pictures, for fast reading in
    training. The annotation stays the same: give OUT as the folder of videos. An interrupted
    conversion goes on where it was; only changed files are converted again.

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
    with Counter("converted") as counter:
        done = convert_files(manifest, source, out, options, processes, seconds, counter)
    if as_json:
        _print_json({**asdict(done), "out": str(out)})
    else:
        _tell_conversion(done, out)
    nothing = not done.converted
    return int(nothing or bool(done.unread) or (strict and done.converted < done.annotated))


class Counter:
    """Shows how many files are done: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, verb: str, console: Console | None = None) -> None:
        self._console = console or plain_console(stderr=True)
        self._verb = verb
        self._started = self._spoke = time.monotonic()
        self._first = -1
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        # Without a thread: processes are forked beside it.
        self._bars = Bars(*columns, TimeRemainingColumn(), console=self._console,
                          auto_refresh=False)  # fmt: skip
        self._task = self._bars.add_task(verb, total=None)

    def __enter__(self) -> Counter:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._first = done
            if done:
                self._console.print(f"{done} of {total} {self._verb} before", markup=False)
        pause = 0.1 if self._console.is_terminal else SECONDS_BETWEEN_LINES
        if done < total and now - self._spoke < pause:
            return
        self._spoke = now
        if self._console.is_terminal:
            self._bars.update(self._task, completed=done, total=total, refresh=True)
        else:
            self._console.print(f"{self._verb} {done} of {total}{self._left(done, total, now)}")

    def _left(self, done: int, total: int, now: float) -> str:
        if not self._first < done < total:
            return ""
        seconds = (now - self._started) / (done - self._first) * (total - done)
        return f", about {seconds / 60:.0f} min left"


def _tell_check(report: CheckReport, place: Path, with_suspicious: bool) -> None:
    unreadable, odd, unchecked = report.unreadable, report.suspicious, report.unchecked
    _tell("missing", {name: report.missing_reasons.get(name, "no file") for name in report.missing})
    _tell("unreadable", unreadable)
    _tell("suspicious", odd)
    _tell("not checked, run again", unchecked)
    _tell("frames with times of their own (no fault)", report.notes)
    print(
        f"{report.annotated} annotated videos: {report.fine} fine, {len(report.missing)} missing, "
        f"{len(unreadable)} unreadable, {len(odd)} suspicious"
        + (f", {len(unchecked)} could not be checked" if unchecked else "")
    )
    listed = len(unreadable) + (len(odd) if with_suspicious else 0)
    left = "" if with_suspicious or not odd else "; suspicious ones are left in"
    print(f"{place}: {listed} in quarantine{left}")


def _tell_conversion(done: ConversionReport, out: Path) -> None:
    _tell("missing", done.missing)
    _tell("failed", done.failed)
    _tell("failed, run again", done.unread)
    print(
        f"{done.annotated} annotated videos: {done.converted} converted, {len(done.missing)} "
        f"missing, {len(done.failed) + len(done.unread)} failed; {done.frames:,} frames, "
        f"{done.bytes / 1e9:.2f} GB in {out}"
    )


def _tell(what: str, reasons: Mapping[str, str]) -> None:
    if not reasons:
        return
    print(f"{what}:")
    for name, reason in list(reasons.items())[:MOST_SHOWN]:
        print(f"  {name}: {reason}")
    if len(reasons) > MOST_SHOWN:
        print(f"  … and {len(reasons) - MOST_SHOWN} more (--json lists all)")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))
