"""Output files of a detector for one video: scores, segments, subtitles, timeline, overlay."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdet.data.storage.filesystem import is_remote
from ssdet.data.video.stream import video_clock
from ssdet.detection.detector import Detector
from ssdet.detection.overlay import Overlay, Timeline
from ssdet.detection.records import (
    CsvWriter,
    JsonWriter,
    segments_json,
    srt,
)
from ssdet.detection.segments import Detection, SegmentFinder, SegmentRule
from ssdet.system.text_files import open_text

FILES = ("frames.json", "frames.csv", "segments.json", "subtitles.srt", "timeline.png")
OVERLAY = "overlay.mp4"


@dataclass(frozen=True)
class Findings:
    """Detections of one video, and the folder of its files."""

    video: str
    folder: Path
    seconds: float
    frames: int
    segments: list[Detection]
    peaks: dict[str, float]
    """Highest probability of the `top` highest classes."""


def folder_for(video: str, out: Path, taken: set[Path]) -> Path:
    """Folder for a video's files: NAME, or NAME.mp4, NAME-2, … if another video uses it.

    taken: lower-case folders of this call's videos, to which the result is added.
    """
    name = Path(_address(video)).name
    stem = Path(name).stem
    for candidate in (stem, name, *(f"{stem}-{n}" for n in range(2, 100_000))):
        folder = out / candidate
        key = out / candidate.casefold()  # some file systems ignore case
        if candidate and key not in taken and _video_in(folder) in (None, _address(video)):
            taken.add(key)
            return folder
    raise ValueError(f"{video}: every name in {out} is taken")


def _address(video: str) -> str:
    return video if is_remote(video) else str(Path(video).resolve())


def _video_in(folder: Path) -> str | None:
    """Video of the files in a folder; None for no files, empty for damaged ones."""
    try:
        return str(json.loads((folder / "segments.json").read_text(encoding="utf-8"))["file"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError):
        return ""


def write_findings(
    detector: Detector,
    video: str,
    folder: Path,
    rule: SegmentRule,
    top: int = 5,
    overlay: bool = False,
    progress: Callable[[float, float], None] = lambda seconds, end: None,
) -> Findings:
    """Write `FILES` (and with `overlay` the overlay) of one video, in bounded memory.

    Files get their names together at the end. `progress(seconds, end)` is called after each block.
    Raises as `Detector.stream`, and OSError.
    """
    end = video_clock(video).end
    folder.mkdir(parents=True, exist_ok=True)
    names = [*FILES, *([OVERLAY] if overlay else [])]
    parts = {name: folder / f".partial-{name}" for name in names}
    try:
        findings = _write(detector, video, folder, end, parts, rule, top, progress)
        if _video_in(folder) and not overlay:
            (folder / OVERLAY).unlink(missing_ok=True)  # it shows results of another call
        for name, part in parts.items():
            os.replace(part, folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return findings


def _write(
    detector: Detector,
    video: str,
    folder: Path,
    end: float,
    parts: dict[str, Path],
    rule: SegmentRule,
    top: int,
    progress: Callable[[float, float], None],
) -> Findings:
    classes, frames = detector.classes, 0
    header = {
        "video": Path(video).name, "file": _address(video), "seconds": end,
        "checkpoints": detector.sources, "classes": classes, "notes": detector.notes,
    }  # fmt: skip
    finder, timeline = SegmentFinder(classes, rule), Timeline(classes, end)
    with ExitStack() as stack:
        texts = [
            stack.enter_context(open_text(parts[name])) for name in ("frames.json", "frames.csv")
        ]
        writers: list[Any] = [JsonWriter(texts[0], header), CsvWriter(texts[1], classes)]
        if OVERLAY in parts:
            drawn = Overlay(video, parts[OVERLAY], classes, rule.least, top)
            writers.append(stack.enter_context(drawn))
        for rows in detector.stream(video):
            for sink in (finder, timeline, *writers):
                sink.add(rows)
            frames += len(rows.times_N)
            progress(float(rows.ends_N[-1]), end)
        for writer in writers:
            writer.close()
    segments = finder.finish()
    for name, lines in (
        ("segments.json", segments_json(header, rule, segments)),
        ("subtitles.srt", srt(segments)),
    ):
        with open_text(parts[name]) as file:
            file.writelines(lines)
    timeline.write(segments, parts["timeline.png"], Path(video).name, top)
    peaks = {classes[k]: float(timeline.best_KB[k].max()) for k in timeline.top(top)}
    return Findings(video, folder, end, frames, segments, peaks)
