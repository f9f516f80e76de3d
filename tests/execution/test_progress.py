"""What a user sees: plain lines where output is piped, bars on a terminal."""

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from ssdet.cli.experiment import Options, resolve
from ssdet.execution import progress
from ssdet.execution.progress import Progress
from ssdet.execution.session import Resources
from ssdet.studies import Arm, Plan, Study, augmented, classification, plan
from ssdet.system.console import duration

ALONE = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, concurrent=2)
STEP = {"step": 10, "steps": 40, "loss": 0.51234, "lr": 0.1, "clips_per_second": 88.2}


@pytest.fixture(scope="module")
def planned(shapes: Path) -> Plan:
    arms = (
        Arm("cls", classification),
        Arm("a rather long name of an arm " * 4, augmented("mixup")),
    )
    return plan(resolve(Study("progress", arms), Options(preset="smoke", seeds=2)))


def tell(planned: Plan, shown: Progress) -> None:
    """A whole run, with a failure."""
    shown.count("decode upstream", 1, 5)
    shown.count("decode upstream", 5, 5)
    shown.start("own Ray on this machine", ALONE)
    for number, stage in enumerate(planned.stages.values()):
        shown.update(stage.id, STEP)
        shown.update(stage.id, {"step": 40, "steps": 40, "validation": 0.5})
        if number == 2:
            shown.update(stage.id, {"error": "ValueError: [bold] is no size"})
        else:
            shown.update(stage.id, {"finished": True})
    shown.stop()


@pytest.fixture
def piped(planned: Plan) -> str:
    """What comes out of a pipe's other end."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        console = Console(file=file, highlight=False)
        tell(planned, Progress(planned, done=0, console=console))
    with os.fdopen(read, encoding="utf-8", newline="") as file:
        return file.read()


def test_piped_output_is_plain_lines(planned, piped) -> None:
    assert piped.endswith("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", piped)  # neither escapes nor returns
    lines = piped.splitlines()
    total = len(planned.stages)
    assert lines[:3] == [
        "decode upstream: 5 of 5",
        "own Ray on this machine; 2 stages at once",
        f"0 of {total} stages are done already",
    ]
    done = [line for line in lines if " done: " in line]
    assert len(done) == total - 1 and len(lines) == 3 + total + 1
    assert [line.split("]")[0] for line in done] == [f"[{n}/{total}" for n in range(1, total)]
    assert re.fullmatch(rf"{total - 1} stages in \d+ s", lines[-1])


def test_lines_name_stages_as_the_user_knows_them(planned, piped) -> None:
    lines = piped.splitlines()
    assert any(re.match(r"\[1/\d+\] done: pretrain cls seed 0", line) for line in lines)
    long = planned.study.arms[1].name
    assert any(f"finetune {long} seed 1" in line for line in lines)  # in one line, however long
    failed = next(line for line in lines if line.startswith("FAILED"))
    stage = list(planned.stages)[2]
    assert f"[{stage}]" in failed and failed.endswith("ValueError: [bold] is no size")


def test_steps_are_told_now_and_then(planned, monkeypatch) -> None:
    stage = next(iter(planned.stages))
    for seconds, expected in ((10.0, 0), (-1.0, 3)):
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds)
        out = io.StringIO()
        shown = Progress(planned, done=1, console=Console(file=out, highlight=False))
        for _ in range(3):
            shown.update(stage, STEP)
        lines = out.getvalue().splitlines()
        assert len(lines) == expected
        for line in lines:
            assert re.fullmatch(r"\[1/\d+\] pretrain cls seed 0: "
                                r"step 10/40 loss 0\.512 88 clips/s", line)  # fmt: skip


def test_time_left_counts_what_is_done_here(planned, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    shown = Progress(planned, done=4, console=Console(file=out, highlight=False))
    shown.start("here", ALONE)
    now[0] += 30
    shown.update(list(planned.stages)[4], {"finished": True})
    left = duration(30 * (len(planned.stages) - 5))
    assert out.getvalue().splitlines()[-1].endswith(f", about {left} left")


def test_a_terminal_has_bars(planned) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, highlight=False)
    tell(planned, Progress(planned, done=0, console=console))
    assert "\x1b[" in out.getvalue() and "all stages" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"),
     (3599.7, "1 h 0 min"), (7530, "2 h 5 min"), (90_000, "25 h 0 min")],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds, text) -> None:
    assert duration(seconds) == text
