"""Check of a data set's files against their annotation; quarantine of unreadable videos."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.maintenance.digests import whole_digest
from ssdet.data.maintenance.isolated_pool import (
    Progress,
    Record,
    need_files,
    run_journaled,
    write_json,
)
from ssdet.data.maintenance.thorough import examine_whole
from ssdet.data.video.reader import probe, read_clip

JOURNAL = "checked.jsonl"
SECONDS_OFF = 0.5
SHARE_OFF = 0.01
RATE_OFF = 0.01
USUAL = 0.75
"""Share of videos with one rate above which other rates are suspicious."""
LATE = 0.01
"""Minimum delay of the pictures in seconds that is noted."""
_VERSION = "check-2"


@dataclass(frozen=True)
class CheckReport:
    """Result of a check: reasons by video id."""

    annotated: int
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    """Broken or empty files, no video stream, decoder crashes and timeouts."""
    suspicious: Mapping[str, str]
    """Readable files of another length or frame rate than expected."""
    unchecked: Mapping[str, str]
    """Temporary errors (input/output, killed process), which another run retries."""
    fps: float | None
    """Frame rate of more than three quarters of the videos, if they agree."""
    missing_reasons: Mapping[str, str] = field(default_factory=dict)
    """Reasons of missing videos where more is known than that there is no file."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Healthy files with a variable rate or pictures that begin after the sound. Labels and clips
    follow the times of the frames."""

    @property
    def fine(self) -> int:
        """Number of videos without a fault."""
        faults = (self.missing, self.unreadable, self.suspicious, self.unchecked)
        return self.annotated - sum(map(len, faults))


def check(
    manifest: Manifest,
    quarantine: Path,
    processes: int | None = None,
    seconds: float = 300,
    with_suspicious: bool = False,
    progress: Progress = lambda done, total: None,
    thorough: bool = False,
) -> CheckReport:
    """Decode both ends and the middle of every video, compare with the annotation and write the
    `quarantine` list {"format": 1, "videos": {id: reason}} of unreadable videos.

    Durations may differ by 0.5 s or 1 %, whichever is more, rates from the usual one by 1 %;
    `with_suspicious` also quarantines videos that differ more. A decoder crash, or no end within
    `seconds`, counts as a fault of the video. Results are recorded in checked.jsonl beside the
    list: an interrupted run continues, a later one checks only changed files (by path, size, date
    and a digest of parts). `thorough` decodes every frame, searches for holes and compares digests
    of whole files; later checks of unchanged files reuse its results.

    Raises ValueError for a data set without files, OSError if nothing can be written.
    """
    need_files(manifest)
    journal = quarantine.with_name(JOURNAL)
    paths = {video.id: video.path for video in manifest.videos}

    def unchanged(record: Record) -> bool:
        """Whether a record is of a thorough check and no byte of the file has changed since."""
        try:
            return "whole" in record and record["whole"] == whole_digest(paths[record["id"]])
        except OSError:  # the check meets and reports it
            return False

    task, is_valid = (examine_whole, unchanged) if thorough else (examine, None)
    records = run_journaled(
        manifest.videos, task, journal, _VERSION, processes, seconds, progress, is_valid
    )
    report = summarise(manifest, records)
    reasons = {**report.unreadable, **(report.suspicious if with_suspicious else {})}
    write_json(quarantine, {"format": 1, "videos": dict(sorted(reasons.items()))})
    return report


def examine(video: Video) -> Record:
    """Decode both ends and the middle: frames and seconds of a video. Raises CorruptVideo."""
    info = probe(video.path)
    read_clip(video.path, [0, info.frames // 2, info.frames - 1], size=(32, 32))
    return {
        "frames": info.frames, "duration": info.duration, "start": info.start,
        "irregularity": info.irregularity,
    }  # fmt: skip


def summarise(manifest: Manifest, records: Mapping[str, Record]) -> CheckReport:
    """Report from the record of each file."""
    broken = {name: record for name, record in records.items() if "fault" in record}
    whole = {name: record for name, record in records.items() if "fault" not in record}
    rate = _majority([record["frames"] / record["duration"] for record in whole.values()])
    suspicious = {
        video.id: why
        for video in manifest.videos
        if video.id in whole and (why := _deviations(video, whole[video.id], rate))
    }
    return CheckReport(
        annotated=len(manifest.videos) + len(manifest.missing),
        missing=manifest.missing,
        missing_reasons={**manifest.missing_reasons, **manifest.quarantined},
        unreadable={n: record["fault"] for n, record in broken.items() if not record["again"]},
        suspicious=suspicious,
        unchecked={n: record["fault"] for n, record in broken.items() if record["again"]},
        fps=rate,
        notes={name: why for name, record in whole.items() if (why := _timing(record))},
    )


def _timing(record: Record) -> str:
    """Notes on the frame times of a healthy file."""
    notes = []
    start, irregularity = record.get("start", 0.0), record.get("irregularity", 0.0)
    if irregularity:
        rate = record["frames"] / record["duration"]
        notes.append(
            f"variable rate: a frame is up to {irregularity:.2f} s from where "
            f"{rate:.2f} frames a second would have it"
        )
    if start >= LATE:
        notes.append(f"the pictures begin {start:.2f} s after the file")
    return "; ".join(notes)


def _majority(rates: list[float]) -> float | None:
    if not rates:
        return None
    middle = float(np.median(rates))
    near = np.abs(np.array(rates) - middle) <= RATE_OFF * middle
    return middle if near.mean() > USUAL else None


def _deviations(video: Video, record: Record, usual: float | None) -> str:
    """Deviations of a readable file from its annotation and from the usual rate."""
    rate = record["frames"] / record["duration"]
    duration = record.get("start", 0.0) + record["duration"]
    deviations = []
    if video.duration is not None:
        allowed = max(SECONDS_OFF, SHARE_OFF * video.duration)
        if abs(duration - video.duration) > allowed:
            deviations.append(f"lasts {duration:.2f} s, annotated {video.duration:.2f} s")
    # At a variable rate the times of the frames are used, so the mean does not matter.
    if (
        usual is not None
        and not record.get("irregularity")
        and abs(rate - usual) > RATE_OFF * usual
    ):
        deviations.append(f"{rate:.2f} frames a second, most videos have {usual:.2f}")
    if record.get("hole"):
        deviations.append(record["hole"])
    return "; ".join(deviations)
