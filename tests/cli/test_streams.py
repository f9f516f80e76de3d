"""What commands print, whatever the terminal's encoding and however early its reader leaves."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from ssdet.cli.streams import CLOSED_PIPE, standard_streams

ROOT = Path(__file__).resolve().parents[2]
SSDET = ["-m", "ssdet.cli"]
ODD = os.fsdecode(b"Stra\xdfe")


def annotation(folder: Path, videos: int = 1, name: str = "video") -> str:
    """Segments of two classes, whose names are more than ASCII and have brackets."""
    path = folder / "a.json"
    one = {"subset": "training", "duration": 9.0, "actions": [[0, 1.0, 2.0], [1, 2.0, 8.0]]}
    path.write_text(json.dumps({f"{name}{k}": one for k in range(videos)}))
    (folder / "classes.txt").write_text("Händewaschen [bold]\nдругое :smile:\n", encoding="utf-8")
    return str(path)


def run(
    words: list[str], stdout: int, stderr: int, **environment: str
) -> "subprocess.Popen[bytes]":
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, *words], stdout=stdout, stderr=stderr, cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


COMMANDS = {
    "usage": [*SSDET, "--help"],
    "help": [*SSDET, "infer", "--help"],
    "lines": [*SSDET, "weights", "ls"],
    "table": [*SSDET, "data", "stats", "FILE", "--format", "segments"],
    "json": [*SSDET, "data", "stats", "FILE", "--format", "segments", "--json"],
    "experiment": ["experiments/ablate_cutmix.py", "--help"],
    "search": ["experiments/search_augmentation.py", "--help"],
    "folds": ["experiments/real_folds.py", "--help"],
    "features": ["experiments/real_videos.py", "--help"],
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_left_ends_a_command_silently(tmp_path, name, unbuffered) -> None:
    if unbuffered and name not in ("lines", "table"):
        pytest.skip("the same code as for lines and tables")
    words = [annotation(tmp_path) if word == "FILE" else word for word in COMMANDS[name]]
    reader, writer = os.pipe()
    os.close(reader)
    command = run(words, writer, subprocess.PIPE, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    _, errors = command.communicate(timeout=120)
    assert (command.returncode, errors) == (CLOSED_PIPE, b"")


def test_a_reader_may_leave_in_the_middle(tmp_path) -> None:
    words = [*SSDET, "data", "stats", annotation(tmp_path, 3000), "--format", "segments",
             "--videos", str(tmp_path)]  # fmt: skip
    command = run(words, subprocess.PIPE, subprocess.PIPE)
    assert command.stdout is not None and command.stderr is not None
    command.stdout.read(10)
    command.stdout.close()
    errors = command.stderr.read()
    assert command.wait(120) in (0, CLOSED_PIPE) and errors == b""


def test_both_streams_may_be_closed(tmp_path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [*SSDET, "data", "check", str(tmp_path / "absent"), "--format", "segments"]
    command = run(words, writer, writer)
    os.close(writer)
    assert command.wait(120) == CLOSED_PIPE


def test_the_status_is_that_of_tools_which_the_signal_ends() -> None:
    done = subprocess.run(["bash", "-c", "set -o pipefail; yes | true"], check=False)
    assert done.returncode == CLOSED_PIPE == 128 + signal.SIGPIPE


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
@pytest.mark.parametrize("style", [[], ["--json"]])
def test_every_name_is_printed_in_every_encoding(tmp_path, encoding, style) -> None:
    path = annotation(tmp_path, name=ODD)
    words = [*SSDET, "data", "stats", path, "--format", "segments", *style]
    command = run(words, subprocess.PIPE, subprocess.PIPE, PYTHONIOENCODING=encoding)
    out, errors = command.communicate(timeout=120)
    assert (command.returncode, errors) == (0, b"")
    text = out.decode(encoding)
    if style:
        assert [one["name"] for one in json.loads(text)["classes"]] == [
            "Händewaschen [bold]", "другое :smile:",
        ]  # fmt: skip
    else:
        for name in ("Händewaschen [bold]", "другое :smile:"):
            assert name.encode(encoding, "backslashreplace").decode(encoding) in text


def file_stream(path: Path, encoding: str) -> IO[str]:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(path, "w")), encoding=encoding)


def test_streams_are_given_back(tmp_path, monkeypatch) -> None:
    out = file_stream(tmp_path / "out", "ascii")
    notebook: Any = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", notebook)
    with standard_streams():
        inner = sys.stdout
        with standard_streams():
            assert sys.stdout is inner is not out and sys.stderr is notebook
            print("ä\udcdf")
    assert sys.stdout is out
    assert (tmp_path / "out").read_bytes() == rb"\xe4\udcdf" + b"\n"


def test_an_error_in_the_block_is_raised(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", file_stream(tmp_path / "out", "utf-8"))
    with pytest.raises(ValueError, match="reason"), standard_streams():
        print("before")
        raise ValueError("reason")
    assert (tmp_path / "out").read_text() == "before\n"
