"""`ssdet watch`: what it prints, when it ends, and what it says of that by its exit status."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from ssdet.cli import watch as shown
from ssdet.cli.__main__ import main
from ssdet.results.watching.watch import Watcher
from ssdet.stages.kinds import begin_attempt
from ssdet.studies import Arm, Plan, Store, Study, classification, plan, preset
from ssdet.studies.data import moving_shapes
from ssdet.studies.graph.record import write_record
from ssdet.system.safe_files import write_json

STEP = {"step": 120, "steps": 400, "loss": 0.51234, "clips_per_second": 88.4}


@pytest.fixture(scope="module")
def planned(shapes: Path) -> Plan:
    base = preset("smoke")
    arms = (Arm("cls", classification, "Class [bold]"), Arm("det"))
    data = moving_shapes(base.shapes)
    return plan(Study("watched", arms, seeds=(3,), base=base.experiment, data=data))


@pytest.fixture
def store(planned: Plan, tmp_path: Path) -> Store:
    """The study as it has just begun."""
    store = Store.open(tmp_path / "store")
    write_record(store, planned)
    return store


def named(planned: Plan, kind: str) -> str:
    """The stage of a kind of the arm `cls`."""
    run = next(run for run in planned.runs if run.arm == "cls")
    (tuned,) = run.predict.parents
    stages = (run.predict, run.probe, tuned, *tuned.parents)
    return next(stage.id for stage in stages if stage is not None and stage.kind == kind)


def begin(store: Store, stage: str, *lines: dict) -> Path:
    store.folder(stage).mkdir()
    begin_attempt(store.folder(stage))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (store.folder(stage) / "metrics.jsonl").write_text(text)
    return store.folder(stage)


def finish(store: Store, stage: str, value: float = 0.5) -> None:
    store.folder(stage).mkdir(exist_ok=True)
    write_json(store.folder(stage) / "provenance.json", {"host": "n1", "seconds": 60.0})
    store.finish(stage, {"scores": {"test": {"value": value}}})


def ask(store: Store, capsys, *arguments: str) -> tuple[int, list[str]]:
    status = main(["watch", "--store", str(store.root), *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_a_pipe_gets_lines(store, planned, capsys) -> None:
    finish(store, named(planned, "pretrain"))
    finish(store, named(planned, "probe"))
    tuned = named(planned, "finetune")
    begin(store, tuned, STEP, {"step": 120, "validation": 0.3125})
    with store.lock(tuned):
        status, lines = ask(store, capsys, "--once")
    assert status == 0
    assert lines[0].startswith("watched: 8 stages: 2 done, 1 running, 5 waiting; ")
    assert re.fullmatch(
        r"running: finetune Class \[bold\] seed 3: step 120/400, loss 0\.512, 88 clips/s, "
        r"validation 31\.25, last sign of life \d+ s ago, on \S+", lines[1]
    )  # fmt: skip
    assert lines[2:] == ["arm Class [bold]: validation 31.25 (seed 3)", "arm det: no score yet"]


def test_time_left_names_what_it_leaves_out(store, planned, capsys) -> None:
    finish(store, named(planned, "pretrain"))
    other = next(s.id for s in planned.stages.values() if s.kind == "pretrain"
                 and s.id != named(planned, "pretrain"))  # fmt: skip
    begin(store, other, {**STEP, "step": 100})
    with store.lock(other):
        _, lines = ask(store, capsys, "--once")
    assert lines[0].endswith(
        "about 45 s left without finetune, predict, probe, of which none is done"
    )


def test_what_died_and_what_failed_is_not_running(store, planned, capsys) -> None:
    dead, failed = named(planned, "pretrain"), named(planned, "probe")
    begin(store, dead, STEP)
    (begin(store, failed) / "error.txt").write_text(
        "Traceback (most recent call last):\n  File …\nValueError: one [red]\nand more\n"
    )
    status, lines = ask(store, capsys, "--once")
    assert status == 1 and "1 gone, 1 failed; nothing runs" in lines[0]
    assert lines[1].startswith("gone: pretrain Class [bold] seed 3: no process works on it, "
                               "attempts so far 1, step 120/400")  # fmt: skip
    assert lines[2] == f"failed: probe Class [bold] seed 3: ValueError: one [red] [{failed}]"


def test_json_is_one_line_each_time(store, planned, capsys) -> None:
    stage = named(planned, "pretrain")
    finish(store, stage, 0.25)
    status, (line,) = ask(store, capsys, "watched", "--once", "--json")
    told = json.loads(line)
    assert status == 0 and told["study"] == "watched" and told["counts"]["done"] == 1
    assert told["over"] is False and told["retries"] == 0 and told["left"] is None
    found = {one["id"]: one for one in told["stages"]}
    assert set(found) == set(planned.stages) and found[stage]["host"] == "n1"
    assert [arm["name"] for arm in told["arms"]] == ["cls", "det"]


@pytest.mark.parametrize("fails", [False, True])
def test_it_ends_with_the_study(store, planned, capsys, monkeypatch, fails) -> None:
    """Each pause finishes a stage, or at last fails one."""
    left = list(planned.stages)

    def pause(seconds: float) -> None:
        assert seconds == 0.5
        stage = left.pop(0)
        if fails and not left:
            (begin(store, stage) / "error.txt").write_text("MemoryError\n")
        else:
            finish(store, stage)

    monkeypatch.setattr(shown.time, "sleep", pause)
    status, lines = ask(store, capsys, "--interval", "0.5")
    assert status == fails and not left
    summaries = [line for line in lines if line.startswith("watched: ")]
    assert len(summaries) == len(planned.stages) + 1
    assert summaries[-1].endswith("over: what is left needs what failed" if fails else "finished")
    if not fails:
        assert lines[-2:] == [f"arm {arm}: dense mAP 50.00 (1 of 1 seeds)"
                              for arm in ("Class [bold]", "det")]  # fmt: skip


def test_a_store_that_is_away_for_a_while_is_waited_for(
    store, planned, capsys, monkeypatch
) -> None:
    looks = iter([True, False, True])
    look = Watcher.look

    def flaky(self: Watcher) -> object:
        if not next(looks):
            raise OSError("cannot list s3://x: HTTP 500")
        return look(self)

    def pause(seconds: float) -> None:
        for stage in planned.stages:
            finish(store, stage)

    monkeypatch.setattr(Watcher, "look", flaky)
    monkeypatch.setattr(shown.time, "sleep", pause)
    status, lines = ask(store, capsys)
    assert status == 0
    assert "warning: shown as it was before: cannot list s3://x: HTTP 500" in lines
    assert any("8 done; finished" in line for line in lines)


def test_a_terminal_gets_tables(store, planned, monkeypatch) -> None:
    tuned, failed = named(planned, "finetune"), named(planned, "probe")
    begin(store, tuned, STEP)
    (begin(store, failed) / "error.txt").write_text("ValueError: [bold] is no size\n")
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, height=60, highlight=False)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(shown.time, "sleep", pause)
    with store.lock(tuned), pytest.raises(KeyboardInterrupt):
        shown.watch(Watcher(store.root), shown.Options(interval=2), console)
    told = out.getvalue()
    assert pauses == [2, 2, 2] and "120/400" in told and "Class [bold]" in told
    assert "ValueError: [bold] is no size" in told and "\x1b[" in told


def test_wrong_usage_and_stores_that_are_not_there(store, tmp_path, capsys) -> None:
    assert ask(store, capsys, "absent")[0] == 2
    assert ask(store, capsys, "--interval", "0")[0] == 2
    assert main(["watch", "--store", str(tmp_path / "none")]) == 2
    assert "no store" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["watch", "--oncee"])
    assert end.value.code == 2


def test_to_stop_watching_is_no_failure_of_the_study(store, monkeypatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shown.time, "sleep", stop)
    assert main(["watch", "--store", str(store.root)]) == 130
