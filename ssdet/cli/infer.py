"""`ssdet infer`: what any trained network, or several, finds in any videos."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssdet.cli.streams import standard_streams

if TYPE_CHECKING:
    from ssdet.detection.detector import Detector
    from ssdet.detection.output_files import Findings
    from ssdet.detection.segments import SegmentRule

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Options:
    """Find actions in videos: per frame, as segments and subtitles, and as pictures.

    Each video gets a folder OUT/NAME with frames.json, frames.csv, segments.json, subtitles.srt,
    timeline.png and, with --overlay, overlay.mp4.
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional]
    """MP4/MOV, Matroska/WebM or AVI files, or folders of numbered JPEG files."""
    checkpoint: str | None = None
    """A run or stage id of the store, a stage's folder, a checkpoint file that has its recipe.json
    beside it or in the folder above, or published weights such as i3d-kinetics400."""
    ensemble: str | None = None
    """Several of these, A,B,C: the mean of their probabilities (and of --checkpoint's)."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Folder or file:// URI of the store (SSDET_STORE)."""
    out: Path = Path("detections")
    """Folder to write to."""
    threshold: float = 0.5
    """Least probability that a segment reaches."""
    low: float | None = None
    """Least probability throughout a segment; the threshold by default."""
    merge: float = 0.0
    """Seconds: segments of a class that lie closer are made one."""
    min_length: float = 0.0
    """Seconds: shorter segments are left out."""
    top: int = 5
    """Most classes in the timeline, in the overlay and in what is printed."""
    overlay: bool = False
    """Write the video with labels drawn on it, too (without sound)."""
    window: int | None = None
    """Most clip frames in one pass of a network, for less memory; by default as its recipe says."""
    device: str | None = None
    """Where networks run, such as cpu or cuda:1; the first GPU by default, if there is one."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def command(arguments: list[str]) -> int:
    """Run the command; exit status 0 done, 1 failed (of several videos: any), 2 wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet infer", config=config)
    from ssdet.detection.detector import Detector
    from ssdet.detection.segments import SegmentRule

    names = [options.checkpoint or "", *(options.ensemble or "").split(",")]
    given = [name.strip() for name in names if name.strip()]
    try:
        rule = SegmentRule(options.threshold, options.merge, options.min_length, options.low)
        if not options.videos or not given or options.top < 1:
            raise ValueError("give videos, --checkpoint or --ensemble, and a --top of at least 1")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        detector = Detector(given, options.store, options.device, options.window)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in detector.notes:
        print(f"note: {note}", file=sys.stderr)
    return _all(detector, rule, options)


def _all(detector: "Detector", rule: "SegmentRule", options: Options) -> int:
    """Write the files of every video and print its results; return the exit status."""
    taken: set[Path] = set()
    with standard_streams():
        entries = [_one(detector, rule, options, video, taken) for video in options.videos]
        failures = sum("error" in entry for entry in entries)
        if options.as_json:
            print(json.dumps({"videos": entries}, indent=1, allow_nan=False))
        elif len(entries) > 1:
            print(f"{len(entries) - failures} of {len(entries)} videos done")
    return 1 if failures else 0


def _one(
    detector: "Detector", rule: "SegmentRule", options: Options, video: str, taken: set[Path]
) -> dict[str, Any]:
    """Write the files of one video; return its entry in the JSON output.

    Without --json the results are printed here. `taken`: folders of the videos before, to which
    this one's is added.
    """
    from ssdet.data.video.reader import CorruptVideo
    from ssdet.detection.output_files import folder_for, write_findings

    try:
        folder = folder_for(video, options.out, taken)
        with _progress(Path(video).name) as tell:
            found = write_findings(
                detector, video, folder, rule, options.top, options.overlay, tell
            )
    except (CorruptVideo, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return {"video": video, "error": str(error)}
    if options.as_json:
        return _json(found)
    _print(found)
    return {}


@contextmanager
def _progress(name: str) -> Iterator[Callable[[float, float], None]]:
    """Tells how far a video is: a bar on a terminal, a line every ten seconds elsewhere."""
    from rich.markup import escape
    from rich.progress import Progress

    from ssdet.system.console import plain_console

    console = plain_console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bars:
            task = bars.add_task(escape(name), total=None)
            yield lambda seconds, end: bars.update(task, completed=seconds, total=end)
        return
    spoke = time.monotonic()

    def tell(seconds: float, end: float) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            print(f"{name}: {seconds:.0f} of {end:.0f} s", file=sys.stderr, flush=True)

    yield tell


def _json(found: "Findings") -> dict[str, Any]:
    from ssdet.detection.records import plain

    segments = [plain(one) for one in found.segments]
    return {**vars(found), "folder": str(found.folder), "segments": segments}


def _print(found: "Findings") -> None:
    print(f"{found.video}: {found.frames} frames, {found.seconds:.1f} s, "
          f"{len(found.segments)} segments; files in {found.folder}")  # fmt: skip
    for name, peak in found.peaks.items():
        mine = [one.end - one.start for one in found.segments if one.name == name]
        print(f"  {name}: at most {peak:.2f}, {len(mine)} segments of {sum(mine):.1f} s in all")
