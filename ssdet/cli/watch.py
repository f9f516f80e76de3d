"""`ssdet watch`: a study while it runs, from any machine that sees its store."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.results.watching.watch import ArmNow, StageNow, StudyNow, Watcher

NAMED = 3
"""Arms that are named of those that share a stage."""
LINES = 8
"""Stages of one state that a terminal shows by name."""


@dataclass(frozen=True)
class Options:
    """Watch a study run: its stages, scores so far, time left. Reads the store alone."""

    study: Annotated[str, tyro.conf.Positional] = ""
    """Name of the study; by default the one that was started last."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Folder or URI of the store (SSDET_STORE)."""
    once: bool = False
    """Print what is now, and exit."""
    json: bool = False
    """Print JSON, a line each time."""
    interval: float = 5.0
    """Seconds between two looks."""


def command(arguments: list[str]) -> int:
    """Exit status 0 where the study is finished (--once: nothing has failed), 1 where a stage has
    failed for good, 2 for wrong usage and for a store that cannot be read."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet watch", config=config)
    from ssdet.results.watching.watch import Watcher

    try:
        if not 0 < options.interval < float("inf"):
            raise ValueError(f"--interval {options.interval:g}: expected seconds above 0")
        watcher = Watcher(options.store, options.study)
        return watch(watcher, options, plain_console())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def watch(watcher: "Watcher", options: Options, out: Console) -> int:
    """Show looks until the study is over, or one; returns the exit status."""
    looks = _looks(watcher, options)
    if options.json:
        for now in looks:
            print(json.dumps(now.to_json()), flush=True)
    elif out.is_terminal and not options.once:
        with Live(console=out, auto_refresh=False) as live:
            for now in looks:
                live.update(picture(now), refresh=True)
    elif out.is_terminal:
        for now in looks:
            out.print(picture(now))
    else:
        said: object = None
        for now in looks:
            news = [(stage.state, stage.seen) for stage in now.stages], now.problems
            if news != said:
                print("\n".join(plain(now)), flush=True)
            said = news
    return 1 if now.of("failed") else 0


def _looks(watcher: "Watcher", options: Options) -> "Iterator[StudyNow]":
    """One look after the other. What cannot be read now is tried again, but for the first time."""
    now = watcher.look()
    yield now
    while not (options.once or now.over):
        time.sleep(options.interval)
        try:
            now = watcher.look()
        except (ValueError, OSError) as error:
            now = replace(now, problems=(f"shown as it was before: {error}",))
        yield now


def plain(now: "StudyNow") -> list[str]:
    """A look as lines."""
    lines = [_summary(now)]
    for state in ("running", "gone", "failed"):
        lines += [f"{state}: {_named(stage)}: {_told(stage)}" for stage in now.of(state)]
    for arm in now.arms:
        done, running = _scores(arm)
        told = [done and f"dense mAP {done}", running and f"validation {running}"]
        lines.append(f"arm {arm.title}: {', '.join(filter(None, told)) or 'no score yet'}")
    return [*lines, *(f"warning: {problem}" for problem in now.problems)]


def picture(now: "StudyNow") -> Group:
    """A look as tables."""
    under_way = Table("running", "step", "loss", "clips/s", "validation", "sign of life", "host")
    for stage in now.of("running"):
        under_way.add_row(*map(Text, (_named(stage), *_cells(stage), _seen(stage), stage.host)))
    scores = Table("arm", "dense mAP", "validation")
    for arm in now.arms:
        scores.add_row(*map(Text, (arm.title, *_scores(arm))))
    lines: list[Text] = []
    for state in ("gone", "failed"):
        told = [f"{state}: {_named(stage)}: {_told(stage)}" for stage in now.of(state)]
        lines += _most(told, "red")
    notes = [f"{_named(stage)}: {stage.note}" for stage in now.of("running") if stage.note]
    lines += _most(notes, "dim") + _most([f"warning: {text}" for text in now.problems], "yellow")
    running = [under_way] if now.of("running") else []
    return Group(Text(_summary(now), "bold"), *running, *lines, scores)


def _most(lines: list[str], style: str) -> list[Text]:
    more = [f"… and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return [Text(line, style) for line in [*lines[:LINES], *more]]


def _summary(now: "StudyNow") -> str:
    counts = {state: number for state, number in now.counts.items() if number}
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    retries = f", {now.retries} retries" if now.retries else ""
    return f"{now.study}: {len(now.stages)} stages: {told}{retries}; {_left(now)}"


def _left(now: "StudyNow") -> str:
    from ssdet.system.console import duration

    if now.over:
        return "over: what is left needs what failed" if now.of("failed") else "finished"
    if not now.of("running"):
        return "nothing runs: the same command that started it goes on"
    if now.left is None:
        return "time left not known yet"
    but = f" without {', '.join(now.uncounted)}, of which none is done" if now.uncounted else ""
    return f"about {duration(now.left)} left{but}"


def _named(stage: "StageNow") -> str:
    arms = stage.arms
    if len(arms) > NAMED:
        arms = (*arms[:NAMED], f"{len(arms) - NAMED} more")
    return f"{stage.kind} {' + '.join(arms)} seed {stage.seed}"


def _told(stage: "StageNow") -> str:
    """What a stage does, or what became of it."""
    if stage.state == "failed":
        return f"{stage.error} [{stage.id}]"
    step, loss, rate, score = _cells(stage)
    told = [
        step and f"step {step}", loss and f"loss {loss}", rate and f"{rate} clips/s",
        score and f"validation {score}", f"last sign of life {_seen(stage)}",
        stage.host and f"on {stage.host}", stage.note,
    ]  # fmt: skip
    if stage.state == "gone":
        told.insert(0, f"no process works on it, attempts so far {stage.attempts}")
    return ", ".join(filter(None, told))


def _cells(stage: "StageNow") -> tuple[str, str, str, str]:
    """Step, loss, clips a second and validation score, empty where they are not known."""
    now = stage.figures
    step = f"{now['step']:.0f}/{now['steps']:.0f}" if {"step", "steps"} <= now.keys() else ""
    forms = {"loss": "{:.3f}", "clips_per_second": "{:.0f}"}
    loss, rate = (form.format(now[name]) if name in now else "" for name, form in forms.items())
    return step, loss, rate, _percent(now.get("validation"))


def _seen(stage: "StageNow") -> str:
    from ssdet.system.console import duration

    return f"{duration(max(0.0, time.time() - stage.seen))} ago" if stage.seen else "unknown"


def _scores(arm: "ArmNow") -> tuple[str, str]:
    """Mean of finished seeds, and what seeds under way have on the validation videos."""
    done = f"{_percent(arm.mean)} ({len(arm.scores)} of {len(arm.seeds)} seeds)"
    running = [f"{_percent(score)} (seed {seed})" for seed, score in arm.validation.items()]
    return done if arm.scores else "", ", ".join(running)


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.2f}"
