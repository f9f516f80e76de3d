"""Segments, subtitles and files of scores, against plain loops and other readers."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdet.detection.records import (
    Detections,
    segments_json,
    srt,
)
from ssdet.detection.segments import Detection, Rows, SegmentRule, find_segments

NAMES = ("open a door", 'say "no", <b>', "Äpfel\n切る")


def detections(scores, times=None, end=None) -> Detections:
    scores = np.asarray(scores, np.float32)
    times = np.arange(len(scores)) / 10 if times is None else np.asarray(times, float)
    return Detections("v.mp4", NAMES, times, times[-1] + 0.1 if end is None else end, scores)


def by_hand(found: Detections, rule: SegmentRule) -> list[tuple[int, float, float]]:
    """Runs of frames at least `least` that somewhere reach the threshold; gaps of up to `merge`
    seconds closed; short ones left out. Frame by frame."""
    ends = [*found.times[1:], found.end]
    segments = []
    for k in range(len(found.classes)):
        runs: list[list] = []
        for t in range(len(found.times)):
            score = found.probabilities[t, k]
            if score < rule.least:
                continue
            if t and runs and runs[-1][2] == t - 1:
                runs[-1][1:] = [ends[t], t, max(runs[-1][3], score)]
            else:
                runs.append([found.times[t], ends[t], t, score])
        merged: list[list[float]] = []
        for start, end, _, peak in runs:
            if peak < rule.threshold:
                continue
            if merged and start - merged[-1][1] <= rule.merge + 1e-9:
                merged[-1][1] = end
            else:
                merged.append([start, end])
        segments += [(k, a, b) for a, b in merged if b - a >= rule.min_length - 1e-9]
    return sorted(segments, key=lambda one: (one[1], one[0]))


@st.composite
def cases(draw):
    frames = draw(st.integers(1, 60))
    levels = st.sampled_from([0.0, 0.2, 0.45, 0.5, 0.7, 1.0])
    scores = [[draw(levels) for _ in NAMES] for _ in range(frames)]
    gaps = [draw(st.sampled_from([0.04, 0.1, 0.5])) for _ in range(frames)]
    times = np.cumsum([0, *gaps])
    rule = SegmentRule(
        0.5, draw(st.sampled_from([0, 0.1, 0.3])), draw(st.sampled_from([0, 0.2])),
        draw(st.sampled_from([None, 0.2, 0.4])),
    )  # fmt: skip
    return detections(scores, times[:-1], times[-1]), rule, draw(st.integers(1, 20))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_segments_are_those_of_a_plain_loop_however_frames_come(case) -> None:
    found, rule, size = case
    ends = np.append(found.times[1:], found.end)
    blocks = [
        Rows(i, found.times[i : i + size], ends[i : i + size], found.probabilities[i : i + size])
        for i in range(0, len(found.times), size)
    ]
    segments = find_segments(NAMES, rule, blocks)
    expected = by_hand(found, rule)
    assert [one.label for one in segments] == [k for k, _, _ in expected]
    np.testing.assert_allclose([(s.start, s.end) for s in segments], [e[1:] for e in expected])
    whole = found.segments(rule.threshold, rule.merge, rule.min_length, rule.low)
    assert [(s.label, s.start) for s in whole] == [(s.label, s.start) for s in segments]
    np.testing.assert_allclose([s.score for s in whole], [s.score for s in segments])


def test_scores_of_segments_are_of_their_own_frames() -> None:
    scores = [[p, 0, 0] for p in (0.1, 0.6, 0.8, 0.4, 0.7, 0.1)]
    [one] = detections(scores).segments(0.5, merge=0.1)
    assert (one.label, one.name) == (0, NAMES[0])
    assert (one.start, one.end) == pytest.approx((0.1, 0.5))
    assert one.score == pytest.approx((0.6 + 0.8 + 0.7) / 3) and one.peak == pytest.approx(0.8)
    [low] = detections(scores).segments(0.8, low=0.3)
    assert (low.start, low.end) == pytest.approx((0.1, 0.5))
    assert detections(scores).segments(0.9) == []


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0}, {"threshold": 1.1}, {"low": 0.6}, {"low": 0}, {"merge": -1},
              {"min_length": -1}, {"threshold": float("nan")}],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        SegmentRule(**wrong)


CUE = re.compile(
    r"(\d+)\n(\d\d+):(\d\d):(\d\d),(\d\d\d) --> (\d\d+):(\d\d):(\d\d),(\d\d\d)\n((?:.+\n)+)(?:\n|$)"
)


def cues(text: str) -> list[tuple[float, float, list[str]]]:
    """A SubRip parser; what it does not understand is an error."""
    found = []
    for number, match in enumerate(CUE.finditer(text), 1):
        n, h1, m1, s1, f1, h2, m2, s2, f2, body = match.groups()
        assert int(n) == number
        start = int(h1) * 3600 + int(m1) * 60 + int(s1) + int(f1) / 1000
        end = int(h2) * 3600 + int(m2) * 60 + int(s2) + int(f2) / 1000
        found.append((start, end, body.splitlines()))
    assert CUE.sub("", text) == ""
    return found


@settings(max_examples=100, deadline=None)
@given(cases())
def test_subtitles_show_what_is_found_at_a_time(case) -> None:
    found, rule, _ = case
    segments = find_segments(NAMES, rule, found.rows())
    shown = cues("".join(srt(segments)))
    for (_, end, _), (start, _, _) in itertools.pairwise(shown):
        assert end <= start
    for (_, end, names), (start, _, others) in itertools.pairwise(shown):
        assert end < start or names != others
    for time in np.arange(0.003, found.end, 0.037):
        if any(abs(time - edge) < 0.001 for s in segments for edge in (s.start, s.end)):
            continue
        expected = [" ".join(s.name.split()) for s in segments if s.start <= time < s.end]
        lines = [line for a, b, body in shown if a <= time < b for line in body]
        assert sorted(unicodedata.normalize("NFKC", line) for line in lines) == sorted(expected)


def test_subtitles_of_hours_and_of_nothing() -> None:
    found = detections([[1, 0, 1]], times=[3661.5], end=36000)
    assert "".join(srt(found.segments())) == (
        "1\n01:01:01,500 --> 10:00:00,000\nopen a door\nÄpfel 切る\n"
    )
    assert list(srt([])) == []


MARKUP = (
    "<background>", "take <obj> from", "<i>x</i>", "a < b", "put {cup} down", r"{\an8}top",
    "{Y:i}x", "open --> close", r"a\Nb", r"a\hb", "R&D", "a &lt; b", "&#60;", "42", "007",
    "a\x00b\x1bc", "00:00:01,000 --> 00:00:02,000", "a\u2028b",
    "Äpfel 切る", "<font color=red>x</font>", "_*`$",
)  # fmt: skip


def shown_by_ffmpeg(path) -> list[str]:
    """Text of every cue as libass shows what FFmpeg's SubRip reader gives it."""
    call = ["ffmpeg", "-v", "error", "-i", path, "-f", "ass", "-"]
    found = subprocess.run(call, capture_output=True, encoding="utf-8", check=True).stdout
    texts = [row.split(",", 9)[9] for row in found.splitlines() if row.startswith("Dialogue")]
    visible = [re.sub(r"\{[^}]*\}", "", text) for text in texts]
    return [text.replace(r"\N", "\n").replace(r"\h", " ") for text in visible]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no FFmpeg on this machine")
@pytest.mark.parametrize("together", [False, True])
def test_players_show_names_that_look_like_markup(tmp_path, together) -> None:
    step = 0 if together else 2.0
    found = [Detection(k, n, step * k, step * k + 1, 0.9, 0.9) for k, n in enumerate(MARKUP)]
    (tmp_path / "a.srt").write_text("".join(srt(found)), encoding="utf-8")
    expected = [" ".join(re.sub(r"[\x00\x1b]", " ", name).split()) for name in MARKUP]
    texts = shown_by_ffmpeg(tmp_path / "a.srt")
    assert len(texts) == (1 if together else len(MARKUP))
    lines = [line.strip() for text in texts for line in text.splitlines()]
    assert [unicodedata.normalize("NFKC", line).strip() for line in lines] == expected


def test_a_name_of_digits_is_not_the_number_of_a_cue() -> None:
    """pysubs2 and others drop a last line of digits, as the number of a cue that was cut off."""
    text = "".join(srt([Detection(0, "kick", 0, 1, 0.9, 0.9), Detection(1, "42", 0, 1, 0.9, 0.9)]))
    assert not re.search(r"\n+ *\d+ *$", text.strip()) and text.endswith("42\n")


def test_a_name_without_letters_keeps_its_line() -> None:
    text = "".join(srt([Detection(0, " ", 0, 1, 0.9, 0.9), Detection(1, "a", 0, 1, 0.9, 0.9)]))
    assert [len(body) for _, _, body in cues(text)] == [2]


def test_names_of_bytes_are_written(tmp_path) -> None:
    """`os.fsdecode` stands for bytes that are not UTF-8 by lone surrogates."""
    names = (os.fsdecode(b"Stra\xdfe"), "$x$", "切")
    found = Detections(os.fsdecode(b"v\xe4.mp4"), names, np.zeros(1), 1.0, np.ones((1, 3)))
    for kind in ("json", "csv", "srt"):
        getattr(found, f"to_{kind}")(tmp_path / f"a.{kind}")
        assert r"Stra\udcdfe" in (tmp_path / f"a.{kind}").read_text(encoding="utf-8")
    kept = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert tuple(kept["classes"]) == names and os.fsencode(kept["video"]) == b"v\xe4.mp4"


def test_files_say_what_the_arrays_do(tmp_path) -> None:
    rng = np.random.default_rng(0)
    found = detections(rng.random((50, 3)), np.cumsum(rng.random(50)))
    found.to_json(tmp_path / "a.json")
    found.to_csv(tmp_path / "a.csv")
    found.to_srt(tmp_path / "a.srt", threshold=0.7, merge=0.2)
    kept = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert kept["classes"] == list(NAMES) and kept["video"] == "v.mp4"
    scores = [frame["probabilities"] for frame in kept["frames"]]
    np.testing.assert_allclose(scores, found.probabilities, atol=5.1e-7)
    np.testing.assert_allclose([f["time"] for f in kept["frames"]], found.times, atol=5.1e-7)
    frame = pd.read_csv(tmp_path / "a.csv")
    assert list(frame.columns) == ["frame", "time", *NAMES]
    assert frame["frame"].tolist() == list(range(50))
    np.testing.assert_allclose(frame[list(NAMES)].to_numpy(), found.probabilities, atol=5.1e-7)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert {len(line) for line in csv.reader(file)} == {5}
    assert cues((tmp_path / "a.srt").read_text(encoding="utf-8"))


def test_segments_as_json() -> None:
    found = detections([[0.9, 0.1, 0.2], [0.8, 0.1, 0.6]])
    kept = json.loads("".join(segments_json({"video": "v"}, SegmentRule(0.5), found.segments())))
    assert kept["rule"] == {"threshold": 0.5, "merge": 0.0, "min_length": 0.0, "low": 0.5}
    assert [one["label"] for one in kept["segments"]] == [0, 2]
    assert kept["segments"][0] == {"label": 0, "name": NAMES[0], "start": 0.0, "end": 0.2,
                                   "score": 0.85, "peak": 0.9}  # fmt: skip
