"""Reader of Toyota Smarthome Untrimmed: JSON of the published splits with times in frames."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.data.datasets.segments import from_entries
from ssdet.data.storage.text import class_names, read_json
from ssdet.data.video.frame_index import CorruptVideo, opened

NUM_CLASSES = 51
CLASS_FILES = ("classes.txt", "Action_list")
FPS = 25.0
"""Frames a second if no video file gives a rate."""
NO_RATE = "videos without a frame rate in their file, for times in frames: 25 a second assumed"


def read_tsu(path: Path, videos: Path | None) -> Manifest:
    """Read `smarthome_CS_51.json` or `smarthome_CV_51.json`.

    Entries are as in Charades' JSON, but durations and actions `[class from 0, first, last]` count
    frames. They are converted to seconds by the frame rate in the header of each video file, or at
    25 a second without files and for image folders. Class names come from `classes.txt` or the
    published `Action_list` beside the file.
    """
    candidates = (path.with_name(name) for name in CLASS_FILES)
    class_file = next((file for file in candidates if file.is_file()), None)
    classes = (
        class_names(class_file) if class_file else tuple(f"class {k}" for k in range(NUM_CLASSES))
    )
    notes: Counter[str] = Counter()
    manifest = from_entries(path, read_json(path), classes, videos, notes)
    rates = {video.id: _rate(video) for video in manifest.videos}
    unknown = sum(rate is None for rate in rates.values())
    converted = tuple(_in_seconds(video, rates[video.id] or FPS) for video in manifest.videos)
    rate_notes = {NO_RATE: unknown} if unknown else {}
    return replace(manifest, videos=converted, notes={**manifest.notes, **rate_notes})


def _rate(video: Video) -> float | None:
    if not video.path or os.path.isdir(video.path):
        return None
    try:
        with opened(video.path) as (_, stream):
            return float(stream.average_rate) if stream.average_rate else None
    except CorruptVideo:  # reported when its frames are read
        return None


def _in_seconds(video: Video, rate: float) -> Video:
    segments = (Segment(s.label, s.start / rate, s.end / rate) for s in video.segments)
    duration = None if video.duration is None else video.duration / rate
    return replace(video, segments=tuple(segments), duration=duration)
