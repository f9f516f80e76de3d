"""Do the files hold what the annotation says? What cannot be read is put in quarantine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.maintenance.digests import whole_digest
from ssdet.data.maintenance.isolated_pool import Progress, Record, need_files, sweep, write_json
from ssdet.data.maintenance.thorough import examine_whole
from ssdet.data.video.reader import probe, read_clip

JOURNAL = "checked.jsonl"
SECONDS_OFF = 0.5
SHARE_OFF = 0.01
RATE_OFF = 0.01
USUAL = 0.75
"""Share of the videos above which their rate is the usual one, and others are odd."""
LATE = 0.01
"""Seconds from which a later start of the pictures is mentioned."""
_VERSION = "check-2"


@dataclass(frozen=True)
class Report:
    """What a check found, by id of the video with the reason."""

    annotated: int
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    """Broken, empty, no video in it, crashed the decoder or took too long."""
    suspicious: Mapping[str, str]
    """Readable, but of another length or frame rate than expected."""
    unchecked: Mapping[str, str]
    """Input/output errors and the like, which say nothing of the file; another run tries again."""
    fps: float | None
    """Rate of three in four videos or more; None where no rate is so usual."""
    missing_reasons: Mapping[str, str] = field(default_factory=dict)
    """Why, for missing videos of which more is known than that there is no file."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Healthy, but frames are not spread evenly from the start on: a variable rate, or pictures
    that begin after the sound. Labels and clips follow the times of the frames."""

    @property
    def fine(self) -> int:
        """Videos of which nothing bad is to be said."""
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
) -> Report:
    """Decode both ends and the middle of every video, compare with its annotation, and write the
    `quarantine` list {"format": 1, "videos": {id: reason}} of those that cannot be read.

    Durations may differ by 0.5 s or 1 %, whichever is more, rates from that of most videos by 1 %.
    `with_suspicious` puts those that differ in quarantine too. A crash of the decoder, or `seconds`
    without an end, is that video's fault. What was found out of each file is kept in checked.jsonl
    beside the list: a run after an interruption goes on, a later one looks at changed files only.
    A file is the same if path, size, date and a digest of parts of it are. `thorough` decodes every
    frame, looks for holes, and compares digests of whole files (module `thorough`); what it
    found is kept by later checks of the same files that are not.

    Raises ValueError for a data set without any file, OSError where nothing can be written.
    """
    need_files(manifest)
    journal = quarantine.with_name(JOURNAL)
    task, holds = (examine_whole, _same_whole(manifest)) if thorough else (examine, _always)
    records = sweep(
        manifest.videos, task, journal, _VERSION, processes, seconds, progress, holds
    )  # fmt: skip
    report = judge(manifest, records)
    reasons = {**report.unreadable, **(report.suspicious if with_suspicious else {})}
    write_json(quarantine, {"format": 1, "videos": dict(sorted(reasons.items()))})
    return report


def examine(video: Video) -> Record:
    """Frames and seconds of a file of which both ends and the middle decode; CorruptVideo else."""
    info = probe(video.path)
    read_clip(video.path, [0, info.frames // 2, info.frames - 1], size=(32, 32))
    return {
        "frames": info.frames, "duration": info.duration, "start": info.start,
        "irregularity": info.irregularity,
    }  # fmt: skip


def _same_whole(manifest: Manifest) -> Callable[[Record], bool]:
    """Whether a record is of a thorough check of a file, no byte of which has changed since."""
    paths = {video.id: video.path for video in manifest.videos}

    def same(record: Record) -> bool:
        try:
            return "whole" in record and record["whole"] == whole_digest(paths[record["id"]])
        except OSError:  # the check meets it again, and says so
            return False

    return same


def _always(record: Record) -> bool:
    return True


def judge(manifest: Manifest, records: Mapping[str, Record]) -> Report:
    """Report from what is known of each file."""
    broken = {name: record for name, record in records.items() if "fault" in record}
    whole = {name: record for name, record in records.items() if "fault" not in record}
    rate = _majority([record["frames"] / record["duration"] for record in whole.values()])
    odd = {
        video.id: why
        for video in manifest.videos
        if video.id in whole and (why := _oddity(video, whole[video.id], rate))
    }
    return Report(
        annotated=len(manifest.videos) + len(manifest.missing),
        missing=manifest.missing,
        missing_reasons={**manifest.missing_reasons, **manifest.quarantined},
        unreadable={n: record["fault"] for n, record in broken.items() if not record["again"]},
        suspicious=odd,
        unchecked={n: record["fault"] for n, record in broken.items() if record["again"]},
        fps=rate,
        notes={name: why for name, record in whole.items() if (why := _timing(record))},
    )


def _timing(record: Record) -> str:
    """What is to be known of the times of a healthy file's frames."""
    known = []
    start, irregularity = record.get("start", 0.0), record.get("irregularity", 0.0)
    if irregularity:
        rate = record["frames"] / record["duration"]
        known.append(
            f"variable rate: a frame is up to {irregularity:.2f} s from where "
            f"{rate:.2f} frames a second would have it"
        )
    if start >= LATE:
        known.append(f"the pictures begin {start:.2f} s after the file")
    return "; ".join(known)


def _majority(rates: list[float]) -> float | None:
    if not rates:
        return None
    middle = float(np.median(rates))
    near = np.abs(np.array(rates) - middle) <= RATE_OFF * middle
    return middle if near.mean() > USUAL else None


def _oddity(video: Video, record: Record, usual: float | None) -> str:
    rate = record["frames"] / record["duration"]
    duration = record.get("start", 0.0) + record["duration"]
    found = []
    if video.duration is not None:
        allowed = max(SECONDS_OFF, SHARE_OFF * video.duration)
        if abs(duration - video.duration) > allowed:
            found.append(f"lasts {duration:.2f} s, annotated {video.duration:.2f} s")
    # At a variable rate the mean says little, and the times of the frames are used anyway.
    if (
        usual is not None
        and not record.get("irregularity")
        and abs(rate - usual) > RATE_OFF * usual
    ):
        found.append(f"{rate:.2f} frames a second, most videos have {usual:.2f}")
    if record.get("hole"):
        found.append(record["hole"])
    return "; ".join(found)
