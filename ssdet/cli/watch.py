"""`ssdet watch`: follow a running study from any machine that reads its store."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ssdet.cli import shared
from ssdet.system.console import duration, plain_console

if TYPE_CHECKING:
    from ssdet.results.watching.watch import ArmNow, StageNow, StudyNow, Watcher

MAX_ARMS = 3
"""Arms that are named of a stage that several share."""
MAX_LINES = 8
"""Stages of one state that a terminal lists."""


@dataclass(frozen=True)
class Options:
    """Follow a running study: its stages, scores so far, time left. Reads nothing but the store."""

    study: Annotated[str, tyro.conf.Positional] = ""
    """Name of the study; by default the one that was started last."""
    store: shared.StoreOption = field(default_factory=shared.default_store)
    once: bool = False
    """Print the state once, and exit."""
    json: bool = False
    """Print JSON, one line per update."""
    interval: float = 5.0
    """Seconds between updates."""


@shared.report_errors()
@shared.wrong_usage(ValueError, OSError)
def command(arguments: list[str]) -> int:
    """Return status 0 where the study is finished (--once: nothing has failed), 1 where a stage
    has failed for good, 2 for wrong usage and for a store that cannot be read."""
    options = shared.parse(Options, arguments, "ssdet watch")
    from ssdet.results.watching.watch import Watcher

    if not 0 < options.interval < float("inf"):
        raise ValueError(f"--interval {options.interval:g}: expected seconds above 0")
    return watch(Watcher(options.store, options.study), options, plain_console())


def watch(watcher: "Watcher", options: Options, out: Console) -> int:
    """Print updates until the study is over, or one; return the exit status."""
    updates = _updates(watcher, options)
    if options.json:
        for now in updates:
            print(json.dumps(now.to_json()), flush=True)
    elif out.is_terminal and not options.once:
        with Live(console=out, auto_refresh=False) as live:
            for now in updates:
                live.update(tables(now), refresh=True)
    elif out.is_terminal:
        for now in updates:
            out.print(tables(now))
    else:
        printed: object = None
        for now in updates:
            news = [(stage.state, stage.seen) for stage in now.stages], now.problems
            if news != printed:
                print("\n".join(lines(now)), flush=True)
            printed = news
    return 1 if now.of("failed") else 0


def _updates(watcher: "Watcher", options: Options) -> "Iterator[StudyNow]":
    """States of the study, the first at once. After the first a store that cannot be read is tried
    again."""
    now = watcher.look()
    yield now
    while not (options.once or now.over):
        time.sleep(options.interval)
        try:
            now = watcher.look()
        except (ValueError, OSError) as error:
            now = replace(now, problems=(f"shown as it was before: {error}",))
        yield now


def lines(now: "StudyNow") -> list[str]:
    """A study's state as lines."""
    found = [_summary(now)]
    for state in ("running", "gone", "failed"):
        found += [f"{state}: {_title(stage)}: {_details(stage)}" for stage in now.of(state)]
    for arm in now.arms:
        done, running = _scores(arm)
        scores = [done and f"dense mAP {done}", running and f"validation {running}"]
        found.append(f"arm {arm.title}: {', '.join(filter(None, scores)) or 'no score yet'}")
    return [*found, *(f"warning: {problem}" for problem in now.problems)]


def tables(now: "StudyNow") -> Group:
    """A study's state as tables."""
    running = Table("running", "step", "loss", "clips/s", "validation", "sign of life", "host")
    for stage in now.of("running"):
        running.add_row(*map(Text, (_title(stage), *_figures(stage), _seen(stage), stage.host)))
    scores = Table("arm", "dense mAP", "validation")
    for arm in now.arms:
        scores.add_row(*map(Text, (arm.title, *_scores(arm))))
    notes: list[Text] = []
    for state in ("gone", "failed"):
        stages = [f"{state}: {_title(stage)}: {_details(stage)}" for stage in now.of(state)]
        notes += _first(stages, "red")
    notes += _first([f"{_title(s)}: {s.note}" for s in now.of("running") if s.note], "dim")
    notes += _first([f"warning: {text}" for text in now.problems], "yellow")
    shown = [running] if now.of("running") else []
    return Group(Text(_summary(now), "bold"), *shown, *notes, scores)


def _first(lines: list[str], style: str) -> list[Text]:
    more = [f"… and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return [Text(line, style) for line in [*lines[:MAX_LINES], *more]]


def _summary(now: "StudyNow") -> str:
    counts = {state: number for state, number in now.counts.items() if number}
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    retries = f", {now.retries} retries" if now.retries else ""
    return f"{now.study}: {len(now.stages)} stages: {states}{retries}; {_time_left(now)}"


def _time_left(now: "StudyNow") -> str:
    if now.over:
        return "over: what is left needs what failed" if now.of("failed") else "finished"
    if not now.of("running"):
        return "nothing runs: the same command that started it goes on"
    if now.left is None:
        return "time left not known yet"
    but = f" without {', '.join(now.uncounted)}, of which none is done" if now.uncounted else ""
    return f"about {duration(now.left)} left{but}"


def _title(stage: "StageNow") -> str:
    arms = stage.arms
    if len(arms) > MAX_ARMS:
        arms = (*arms[:MAX_ARMS], f"{len(arms) - MAX_ARMS} more")
    return f"{stage.kind} {' + '.join(arms)} seed {stage.seed}"


def _details(stage: "StageNow") -> str:
    """Progress of a stage, or why it failed."""
    if stage.state == "failed":
        return f"{stage.error} [{stage.id}]"
    step, loss, rate, score = _figures(stage)
    details = [
        step and f"step {step}", loss and f"loss {loss}", rate and f"{rate} clips/s",
        score and f"validation {score}", f"last sign of life {_seen(stage)}",
        stage.host and f"on {stage.host}", stage.note,
    ]  # fmt: skip
    if stage.state == "gone":
        details.insert(0, f"no process works on it, attempts so far {stage.attempts}")
    return ", ".join(filter(None, details))


def _figures(stage: "StageNow") -> tuple[str, str, str, str]:
    """Step, loss, clips per second and validation score as text, empty where unknown."""
    now = stage.figures
    step = f"{now['step']:.0f}/{now['steps']:.0f}" if {"step", "steps"} <= now.keys() else ""
    forms = {"loss": "{:.3f}", "clips_per_second": "{:.0f}"}
    loss, rate = (form.format(now[name]) if name in now else "" for name, form in forms.items())
    return step, loss, rate, _percent(now.get("validation"))


def _seen(stage: "StageNow") -> str:
    return f"{duration(max(0.0, time.time() - stage.seen))} ago" if stage.seen else "unknown"


def _scores(arm: "ArmNow") -> tuple[str, str]:
    """Mean test score of finished seeds, and latest validation scores of seeds in training."""
    done = f"{_percent(arm.mean)} ({len(arm.scores)} of {len(arm.seeds)} seeds)"
    running = [f"{_percent(score)} (seed {seed})" for seed, score in arm.validation.items()]
    return done if arm.scores else "", ", ".join(running)


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.2f}"
