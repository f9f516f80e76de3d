"""`ssdet infer`: detect actions in videos with one trained network or several."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssdet.cli import shared
from ssdet.cli.streams import standard_streams

if TYPE_CHECKING:
    from ssdet.detection.detector import Detector
    from ssdet.detection.output_files import Findings
    from ssdet.detection.segments import SegmentRule


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
    store: shared.StoreOption = field(default_factory=shared.default_store)
    out: Path = Path("detections")
    """Folder to write to."""
    threshold: float = 0.5
    """Minimum peak probability of a segment."""
    low: float | None = None
    """Minimum probability of every frame of a segment; the threshold by default."""
    merge: float = 0.0
    """Seconds: segments of a class with a smaller gap are merged."""
    min_length: float = 0.0
    """Seconds: shorter segments are left out."""
    top: int = 5
    """Maximum number of classes in the timeline, in the overlay and in the output."""
    overlay: bool = False
    """Write the video with labels drawn on it, too (without sound)."""
    window: int | None = None
    """Maximum clip frames per pass of a network, for less memory; by default its recipe's."""
    device: str | None = None
    """Device of the networks, such as cpu or cuda:1; the first GPU by default, if there is one."""
    as_json: shared.AsJson = False


@shared.report_errors(RuntimeError)
def command(arguments: list[str]) -> int:
    """Write the files of every video; status 1 where one of them fails."""
    options = shared.parse(Options, arguments, "ssdet infer")
    from ssdet.detection.detector import Detector
    from ssdet.detection.segments import SegmentRule

    names = [options.checkpoint or "", *(options.ensemble or "").split(",")]
    checkpoints = [name.strip() for name in names if name.strip()]
    with shared.wrong_usage():
        rule = SegmentRule(options.threshold, options.merge, options.min_length, options.low)
        if not options.videos or not checkpoints or options.top < 1:
            raise ValueError("give videos, --checkpoint or --ensemble, and a --top of at least 1")
    detector = Detector(checkpoints, options.store, options.device, options.window)
    for text in detector.notes:
        shared.note(f"note: {text}")
    used: set[Path] = set()
    with standard_streams():
        entries = [_one_video(detector, rule, options, video, used) for video in options.videos]
        failures = sum("error" in entry for entry in entries)
        if options.as_json:
            shared.print_json({"videos": entries})
        elif len(entries) > 1:
            print(f"{len(entries) - failures} of {len(entries)} videos done")
    return 1 if failures else 0


def _one_video(
    detector: "Detector", rule: "SegmentRule", options: Options, video: str, used: set[Path]
) -> dict[str, Any]:
    """Write the files of one video; return its entry in the JSON output.

    Without --json the results are printed here. `used`: folders of the videos before, to which
    this one's is added.
    """
    from ssdet.data.video.reader import CorruptVideo
    from ssdet.detection.output_files import folder_for, write_findings

    try:
        folder = folder_for(video, options.out, used)
        with shared.Progress(f"{Path(video).name}:", " s") as progress:
            findings = write_findings(
                detector, video, folder, rule, options.top, options.overlay, progress
            )
    except (CorruptVideo, ValueError, OSError) as error:
        shared.note(f"error: {error}")
        return {"video": video, "error": str(error)}
    if options.as_json:
        return _json(findings)
    _print(findings)
    return {}


def _json(findings: "Findings") -> dict[str, Any]:
    from ssdet.detection.records import plain

    segments = [plain(segment) for segment in findings.segments]
    return {**vars(findings), "folder": str(findings.folder), "segments": segments}


def _print(findings: "Findings") -> None:
    print(f"{findings.video}: {findings.frames} frames, {findings.seconds:.1f} s, "
          f"{len(findings.segments)} segments; files in {findings.folder}")  # fmt: skip
    for name, peak in findings.peaks.items():
        lengths = [s.end - s.start for s in findings.segments if s.name == name]
        print(
            f"  {name}: at most {peak:.2f}, {len(lengths)} segments of {sum(lengths):.1f} s in all"
        )
