"""Checked files: each kind of broken input is told, none stops the check, nothing is done twice."""

import ctypes
import faulthandler
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import ssdet.data.maintenance.check as module
from ssdet.data import Manifest, Video
from ssdet.data.maintenance.check import check, examine, summarise
from ssdet.data.maintenance.isolated_pool import Fault, run_isolated

ROOT = Path(__file__).resolve().parents[3]


def listed(folder: Path, duration: float | None = None) -> Manifest:
    """Data set of all files in a folder, by name."""
    files = sorted(folder.iterdir())
    entries = [Video(file.name, str(file), "train", duration=duration) for file in files]
    return Manifest("some", ("a",), tuple(entries))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "videos"
    place.mkdir()
    return place


@pytest.fixture(scope="module")
def whole(videos: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of 60 frames, 2 s."""
    path = tmp_path_factory.mktemp("whole") / "whole.mp4"
    videos.write(path, frames=60, options={"bf": "2", "g": "15"})
    return path.read_bytes()


def sound(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 1024 * number, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def huge(path: Path, videos: Any) -> None:
    """Pictures that say they have 65,528 x 65,528 pixels."""
    videos.write(path, "mjpeg", frames=3, pixels="yuvj420p")
    content = path.read_bytes()
    head = b"\xff\xc0\x00\x11\x08"  # of a JPEG frame; then height and width
    assert head + b"\x00\x30\x00\x40" in content
    path.write_bytes(content.replace(head + b"\x00\x30\x00\x40", head + b"\xff\xf8\xff\xf8"))


def test_each_kind_of_broken_file_is_told(folder, whole, videos, tmp_path) -> None:
    (folder / "good one é.mp4").write_bytes(whole)
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("<html>video removed</html>")
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 3
    (folder / "scratched.mp4").write_bytes(whole[:middle] + bytes(3000) + whole[middle + 3000 :])
    huge(folder / "huge.avi", videos)
    sound(folder / "sound.mp4")
    no_frames(folder / "none.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "pictures").mkdir()
    report = check(listed(folder), tmp_path / "quarantine.json", 2)
    expected = {
        "truncated.mp4": "readable mp4|breaks off|ends before",
        "empty.mp4": "empty file",
        "text.mp4": "not an MP4",
        "scratched.mp4": "decoding fails",
        "huge.avi": "decoding fails",
        "sound.mp4": "no video stream",
        "none.mp4": "no video|readable mp4",
        "pipe.mp4": "not a regular file",
        "pictures": "no numbered JPEG",
    }
    assert report.unreadable.keys() == expected.keys()
    for name, said in expected.items():
        assert re.search(said, report.unreadable[name]), report.unreadable[name]
    assert (report.annotated, report.fine) == (10, 1) and not report.unchecked
    listed_now = json.loads((tmp_path / "quarantine.json").read_text())
    assert listed_now == {"format": 1, "videos": dict(sorted(report.unreadable.items()))}


def test_only_the_ends_and_the_middle_are_decoded(folder, videos) -> None:
    """Damage elsewhere costs the time of a full decode to find: it is told when it is met."""
    path = videos.write(folder / "long.mp4", frames=200, options={"bf": "0", "g": "10"})
    for frame, found in {40: False, 100: True, 199: True, 2: False}.items():
        place, size = videos.packets(path)[frame]

        def scratch(content: bytearray, place: int = place, size: int = size) -> None:
            content[place : place + size] = bytes(size)

        bad = videos.patched(path, "scratched.mp4", scratch)
        (told,) = run_isolated(examine, [Video("v", str(bad), "train")], 1, 60)
        assert isinstance(told[1], Fault) == found, (frame, told)


def crash(video: Video) -> dict[str, Any]:
    faulthandler.disable()
    ctypes.string_at(0)
    return {}


def hang(video: Video) -> dict[str, Any]:
    ctypes.PyDLL(None).sleep(60)  # does not let go of the interpreter
    return {}


def loop(video: Video) -> dict[str, Any]:
    while True:
        time.sleep(0.01)


def leave(video: Video) -> dict[str, Any]:
    os._exit(3)


def stumble(video: Video) -> dict[str, Any]:
    raise KeyError("odd")


DEEDS = {
    "a": (crash, "crashed the process .SIGSEGV"),
    "b": (hang, "no end within 0.5 s"),
    "c": (loop, "no end within 0.5 s"),
    "d": (leave, "exit status 3"),
    "e": (stumble, "KeyError"),
}


def fake(video: Video) -> dict[str, Any]:
    return DEEDS[video.id][0](video) if video.id in DEEDS else {"frames": 30, "duration": 1.0}


def test_a_decoder_that_crashes_or_hangs_is_that_videos_fault(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "examine", fake)
    entries = tuple(Video(name, __file__, "train") for name in "xaybzcwdve")
    manifest = Manifest("some", ("a",), entries)
    report = check(manifest, tmp_path / "quarantine.json", 2, seconds=0.5)
    assert report.unreadable.keys() == set(DEEDS) and report.fine == 5
    for name, (_, said) in DEEDS.items():
        assert re.search(said, report.unreadable[name])


def test_a_longer_limit_tries_again_and_a_shorter_does_not(tmp_path, monkeypatch) -> None:
    list_file, manifest = (
        tmp_path / "q.json",
        Manifest("m", ("a",), (Video("b", __file__, "train"),)),
    )
    monkeypatch.setattr(module, "examine", fake)
    check(manifest, list_file, 1, seconds=0.5)
    monkeypatch.setattr(module, "examine", lambda video: {"frames": 30, "duration": 1.0})
    assert check(manifest, list_file, 1, seconds=0.2).unreadable
    assert check(manifest, list_file, 1, seconds=5).fine == 1
    assert json.loads(list_file.read_text())["videos"] == {}


@pytest.mark.parametrize("deed", ["raise", "kill"])
def test_what_is_not_the_videos_fault_is_not_quarantined(deed, tmp_path, monkeypatch) -> None:
    def fail(video: Video) -> dict[str, Any]:
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(5, "Input/output error", video.path)

    list_file, manifest = (
        tmp_path / "q.json",
        Manifest("m", ("a",), (Video("b", __file__, "train"),)),
    )
    monkeypatch.setattr(module, "examine", fail)
    report = check(manifest, list_file, 1)
    assert set(report.unchecked) == {"b"} and not report.unreadable
    assert json.loads(list_file.read_text())["videos"] == {}
    monkeypatch.setattr(module, "examine", lambda video: {"frames": 30, "duration": 1.0})
    assert check(manifest, list_file, 1).fine == 1


def test_durations_and_rates_are_compared() -> None:
    known = {f"v{number}": {"frames": 300, "duration": 10.0} for number in range(6)}
    known["long"] = {"frames": 3000, "duration": 100.0}
    videos = {name: Video(name, "f", "train", duration=k["duration"]) for name, k in known.items()}

    def told(name: str, **change: Any) -> str:
        records = {**known, name: {**known[name], **change}}
        report = summarise(Manifest("m", ("a",), tuple(videos.values())), records)
        assert set(report.suspicious) <= {name} and report.fine == 7 - len(report.suspicious)
        return report.suspicious.get(name, "")

    assert told("v0") == told("v0", duration=10.05, frames=301) == ""
    assert told("v0", duration=10.49, frames=315) == ""  # within 0.5 s
    assert told("v0", duration=10.51, frames=315) == "lasts 10.51 s, annotated 10.00 s"
    assert told("long", duration=100.99, frames=3030) == ""  # within 1 %
    assert "annotated 100.00" in told("long", duration=98.9, frames=2967)
    assert told("v1", frames=299) == told("v1", frames=302) == ""  # such as 29.97 of 30
    assert told("v1", frames=250) == "25.00 frames a second, most videos have 30.00"
    videos["v2"] = replace(videos["v2"], duration=None)
    assert told("v2", duration=77.0, frames=2310) == ""


def test_without_a_majority_no_rate_is_odd() -> None:
    rates = [24, 24, 25, 25, 30, 30]
    known = {str(n): {"frames": 10 * rate, "duration": 10.0} for n, rate in enumerate(rates)}
    manifest = Manifest("m", ("a",), tuple(Video(name, "f", "train") for name in known))
    assert summarise(manifest, known).fps is None and not summarise(manifest, known).suspicious


def test_suspicious_videos_are_quarantined_on_demand(folder, whole, tmp_path) -> None:
    (folder / "v").write_bytes(whole)
    manifest, list_file = listed(folder, duration=9.0), tmp_path / "q.json"
    assert list(check(manifest, list_file, 1).suspicious) == ["v"]
    assert json.loads(list_file.read_text())["videos"] == {}
    check(manifest, list_file, 1, with_suspicious=True)
    assert "annotated 9.00" in json.loads(list_file.read_text())["videos"]["v"]


def refuse(video: Video) -> dict[str, Any]:
    raise AssertionError("looked at again")


def test_a_second_run_looks_at_changed_files_only(folder, whole, tmp_path, monkeypatch) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).write_bytes(whole)
    (folder / "b.mp4").write_bytes(b"text")
    counts: list[tuple[int, int]] = []
    list_file = tmp_path / "q.json"
    first = check(listed(folder), list_file, 2)
    with monkeypatch.context() as patched:
        patched.setattr(module, "examine", refuse)
        again = check(listed(folder), list_file, 2, progress=lambda *c: counts.append(c))
    assert again == first and counts == [(3, 3)] and list(again.unreadable) == ["b.mp4"]
    (folder / "b.mp4").write_bytes(whole)
    os.utime(folder / "a.mp4", ns=(1, 1))
    seen = check(listed(folder), list_file, 1, progress=lambda *c: counts.append(c))
    assert seen.fine == 3 and counts[1:] == [(1, 3), (2, 3), (3, 3)]


def test_a_line_that_was_cut_is_checked_again(folder, whole, tmp_path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(whole)
    check(listed(folder), tmp_path / "q.json", 1)
    journal = tmp_path / "checked.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[:-10])
    counts: list[tuple[int, int]] = []
    check(listed(folder), tmp_path / "q.json", 1, progress=lambda *c: counts.append(c))
    assert counts == [(1, 2), (2, 2)] and journal.read_bytes() == content


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=1); input()"  # noqa: E501


def test_a_journal_that_is_none_is_told(folder, whole, tmp_path) -> None:
    (folder / "a.mp4").write_bytes(whole)
    (tmp_path / "checked.jsonl").write_text("not JSON\n")
    with pytest.raises(ValueError, match=r"checked\.jsonl.*remove it"):
        check(listed(folder), tmp_path / "q.json", 1)


def test_two_runs_do_not_mix(folder, whole, tmp_path) -> None:
    (folder / "a.mp4").write_bytes(whole)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "checked.jsonl")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        with pytest.raises(ValueError, match="another run uses it"):
            check(listed(folder), tmp_path / "q.json", 1)
        other.communicate("\n")
    assert check(listed(folder), tmp_path / "q.json", 1).fine == 1


CHECK = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
import ssdet.data.maintenance.check as module
from ssdet.data import Manifest, Video
folder, list_file = Path(sys.argv[1]), Path(sys.argv[2])
real = module.examine
def slow(video):
    with open(sys.argv[3], "a") as file: file.write(video.id + "\\n")
    while len(Path(sys.argv[3]).read_text().split()) > 6 and not Path(sys.argv[4]).exists():
        time.sleep(0.01)
    return real(video)
module.examine = slow
videos = [Video(p.name, str(p), "train") for p in sorted(folder.iterdir())]
print("begun", flush=True)
print(module.check(Manifest("m", ("a",), tuple(videos)), list_file, 2).fine)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_it_goes_on(sign, folder, whole, tmp_path) -> None:
    for number in range(20):
        (folder / f"{number}.mp4").write_bytes(whole)
    seen, journal, on = tmp_path / "seen", tmp_path / "checked.jsonl", tmp_path / "on"
    files = (folder, tmp_path / "q.json", seen, on)
    command = [sys.executable, "-c", CHECK, *map(str, files)]
    pipes: dict[str, Any] = {
        "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True,
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
    }  # fmt: skip
    with subprocess.Popen(command, **pipes, start_new_session=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "begun\n"
        _until(lambda: journal.exists() and journal.read_text().count("\n") >= 3)
        os.killpg(run.pid, sign) if sign == signal.SIGINT else run.send_signal(sign)
    _until(lambda: not _alive(run.pid))
    known = journal.read_text().count("\n")
    assert 1 <= known < 20 and not (tmp_path / "q.json").exists()
    seen.unlink()
    on.touch()
    told = subprocess.run(command, **pipes, check=True)
    assert told.stdout.splitlines()[-1] == "20"
    assert len(seen.read_text().split()) == 20 - known


def _alive(group: int) -> bool:
    """Whether a process of the group still runs, an orphan too."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_folder_without_any_of_the_files_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no file of its 1 videos"):
        check(Manifest("m", ("a",), (), ("gone",), ("train",)), tmp_path / "q.json")
    with pytest.raises(ValueError, match="folder of videos given"):
        check(Manifest("m", ("a",), (Video("v", "", "train"),)), tmp_path / "q.json")
    for wrong in ({"processes": 0}, {"seconds": 0}):
        with pytest.raises(ValueError, match="expected more than 0"):
            check(Manifest("m", ("a",), (Video("v", "f", "train"),)), tmp_path / "q.json", **wrong)


def test_a_place_that_cannot_be_written_is_told(folder, whole, tmp_path) -> None:
    (folder / "a.mp4").write_bytes(whole)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        check(listed(folder), tmp_path / "file" / "q.json", 1)


class Cycle:
    """Garbage that only a collector frees, and that must not be freed in a worker."""

    def __init__(self) -> None:
        self.me, self.owner = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            os._exit(7)


def collected(video: Video) -> dict[str, Any]:
    gc.collect()
    return {"frames": 1, "duration": 1.0}


def test_workers_free_nothing_of_the_parent(folder, whole, monkeypatch) -> None:
    """A codec with threads, in a worker without them, would wait for ever."""
    (folder / "v.mp4").write_bytes(whole)
    gc.disable()
    try:
        Cycle()
        found = dict(run_isolated(collected, listed(folder).videos, 1, 60))
    finally:
        gc.enable()
    assert [*found.values()] == [{"frames": 1, "duration": 1.0}]
