"""Detections of a video, and their CSV, JSON and SubRip files."""

import csv
import io
import json
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from os import PathLike
from typing import IO, Any

import numpy as np

from ssdet.detection.segments import Detection, Rows, SegmentRule, find_segments
from ssdet.system.text_files import open_text


class CsvWriter:
    """Frame number, time and the probability of every class with 6 decimals, a line per frame."""

    def __init__(self, file: IO[str], classes: Sequence[str]) -> None:
        self.file = file
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(["frame", "time", *classes])
        file.write(header.getvalue())
        self._line = "%d,%.6f" + ",%.6f" * len(classes) + "\n"

    def add(self, rows: Rows) -> None:
        """Write the next frames."""
        times, scores = rows.times_N.tolist(), rows.probabilities_NK.tolist()
        for place, (time, row) in enumerate(zip(times, scores, strict=True)):
            self.file.write(self._line % (rows.first + place, time, *row))

    def close(self) -> None:
        """A CSV file has no footer."""


class JsonWriter:
    """One object: a header that describes the video, and `frames`, each with `time` and
    `probabilities` (6 decimals, in the order of `classes`), a line per frame."""

    def __init__(self, file: IO[str], header: dict[str, Any]) -> None:
        self.file = file
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
        file.write(text[:-1] + ', "frames": [')
        self._line = (
            '{"time": %.6f, "probabilities": ['
            + ", ".join(["%.6f"] * len(header["classes"]))
            + "]}"
        )
        self._between = "\n"

    def add(self, rows: Rows) -> None:
        """Write the next frames."""
        times, scores = rows.times_N.tolist(), rows.probabilities_NK.tolist()
        for time, row in zip(times, scores, strict=True):
            self.file.write(self._between + self._line % (time, *row))
            self._between = ",\n"

    def close(self) -> None:
        """Write the closing brackets."""
        self.file.write("\n]}\n")


def srt(segments: Sequence[Detection]) -> Iterator[str]:
    """SubRip subtitles, cue by cue, each with a line per active class (`subtitle_line`). Cues do
    not overlap, and adjacent cues differ."""
    for number, (begin, end, names) in enumerate(_joined(_active(segments)), 1):
        yield "\n" * (number > 1) + f"{number}\n{_stamp(begin)} --> {_stamp(end)}\n"
        yield "".join(f"{subtitle_line(name)}\n" for name in names)


FULL_WIDTH = str.maketrans("<>{}\\", "＜＞｛｝＼")
"""SubRip has no escapes: players take <…> for HTML and {…} for ASS markup, which they hide, \\N and
\\h for a line break and a space, and --> for the next cue. Entities such as &lt; are shown as they
are by FFmpeg, mpv and libass, and a zero-width space inside does not save braces. The full-width
forms of Unicode are text to every player; normalisation NFKC makes the ASCII characters of them."""
ENTITY = re.compile(r"&(?=#?\w+;)")
"""An ampersand at which VLC reads an HTML entity."""


def subtitle_line(name: str) -> str:
    """A class name as one line of SubRip that every player shows as text.

    White space and control characters become spaces, and characters of markup their full-width
    forms. A name of digits alone, which some players read as the number of a cue, gets a leading
    no-break space.
    """
    plain = "".join(" " if unicodedata.category(c) == "Cc" else c for c in name)
    line = ENTITY.sub("＆", " ".join(plain.split()).translate(FULL_WIDTH))
    return f"\u00a0{line}" if line.isdecimal() or not line else line


def _active(segments: Sequence[Detection]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Names of the active segments between consecutive starts and ends, in milliseconds."""
    waiting = deque(sorted(segments, key=lambda one: one.start))
    active: list[Detection] = []
    for begin, end in pairwise(
        sorted({_milliseconds(t) for d in segments for t in (d.start, d.end)})
    ):
        while waiting and _milliseconds(waiting[0].start) <= begin:
            active.append(waiting.popleft())
        active = [one for one in active if _milliseconds(one.end) > begin]
        if active:
            yield begin, end, tuple(d.name for d in sorted(active, key=lambda one: one.label))


def _joined(
    cues: Iterator[tuple[int, int, tuple[str, ...]]],
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    last = next(cues, None)
    for cue in cues:
        assert last is not None
        if cue[0] == last[1] and cue[2] == last[2]:
            last = last[0], cue[1], cue[2]
        else:
            yield last
            last = cue
    if last is not None:
        yield last


def _milliseconds(seconds: float) -> int:
    return max(0, round(1000 * seconds))


def _stamp(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{rest:03}"


@dataclass(frozen=True)
class Detections:
    """Scores of all frames of one video."""

    video: str
    classes: tuple[str, ...]
    times: np.ndarray
    """Seconds [T] at which each frame is shown."""
    end: float
    """Seconds at which the last frame ends."""
    probabilities: np.ndarray
    """float32 [T, K]."""
    notes: tuple[str, ...] = field(default=())
    """Remarks on the scores, such as classes without names."""

    def rows(self) -> Iterator[Rows]:
        """All frames as one block."""
        yield Rows(0, self.times, np.append(self.times[1:], self.end), self.probabilities)

    def segments(
        self,
        threshold: float = 0.5,
        merge: float = 0.0,
        min_length: float = 0.0,
        low: float | None = None,
    ) -> list[Detection]:
        """Segments of classes that reach a threshold; ValueError as `SegmentRule`."""
        return find_segments(
            self.classes, SegmentRule(threshold, merge, min_length, low), self.rows()
        )

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write every frame's time and probabilities; see `JsonWriter`."""
        header = {"video": self.video, "classes": self.classes, "notes": self.notes}
        self._write(path, lambda file: JsonWriter(file, header))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write every frame's time and probabilities; see `CsvWriter`."""
        self._write(path, lambda file: CsvWriter(file, self.classes))

    def to_srt(self, path: str | PathLike[str], **rule: Any) -> None:
        """Write subtitles of the segments; `rule`: arguments of `segments`."""
        with open_text(path) as file:
            file.writelines(srt(self.segments(**rule)))

    def _write(
        self, path: str | PathLike[str], make: Callable[[IO[str]], CsvWriter | JsonWriter]
    ) -> None:
        with open_text(path) as file:
            writer = make(file)
            for rows in self.rows():
                writer.add(rows)
            writer.close()


def segments_json(
    header: Mapping[str, Any], rule: SegmentRule, segments: Iterable[Detection]
) -> Iterator[str]:
    """Header, rule and segments as JSON text, a line per segment; seconds and probabilities with 6
    decimals."""
    value = {**header, "rule": {**asdict(rule), "low": rule.least}}
    yield json.dumps(value, ensure_ascii=False, allow_nan=False)[:-1] + ', "segments": ['
    between = "\n"
    for one in segments:
        yield between + json.dumps(plain(one), ensure_ascii=False, allow_nan=False)
        between = ",\n"
    yield "\n]}\n"


def plain(one: Detection) -> dict[str, Any]:
    """A segment as JSON values."""
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(one).items()}
