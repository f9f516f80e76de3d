"""Progress of a study on the console: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ssdet.execution.session import Resources
from ssdet.studies.graph.plan import Plan, stage_titles
from ssdet.system.console import SECONDS_BETWEEN_LINES, duration, plain_console


class Progress:
    """Stage, step, loss and time left of the running stages."""

    def __init__(self, plan: Plan, done: int, console: Console | None = None) -> None:
        self.console = console or plain_console(stderr=True)
        self.total, self.done = len(plan.stages), done
        self._titles = stage_titles(plan)
        self._started = self._printed_at = time.monotonic()
        self._first_done = done
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}

    def start(self, where: str, resources: Resources) -> None:
        """Print where stages run and how many at once."""
        workers = f" of {resources.workers} workers" if resources.workers > 1 else ""
        stages = "stage" if resources.concurrent == 1 else "stages"
        self.line(f"{where}; {resources.concurrent} {stages} at once{workers}")
        self.line(f"{self.done} of {self.total} stages are done already")
        self._started = time.monotonic()
        if self.console.is_terminal:
            names = ("{task.description}", "{task.fields[note]}")
            texts = [TextColumn(name, markup=False) for name in names]
            columns = (texts[0], BarColumn(), texts[1], TimeRemainingColumn())
            self._bars = Bars(*columns, console=self.console)
            self._bars.start()
            self._tasks["all"] = self._bars.add_task(
                "all stages", total=self.total, completed=self.done, note=""
            )

    def stop(self) -> None:
        """The study has ended."""
        if self._bars is not None:
            self._bars.stop()
        seconds = time.monotonic() - self._started
        self.line(f"{self.done - self._first_done} stages in {duration(seconds)}")

    def update(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """A stage reported: its end ("finished"), an error, or a step."""
        if "error" in metrics:
            self._end(stage)
            self.line(f"FAILED {self.name(stage)} [{stage}]: {metrics['error']}")
        elif metrics.get("finished"):
            self.done += 1
            self._end(stage)
            self.line(f"[{self.done}/{self.total}] done: {self.name(stage)}{self._time_left()}")
        elif "loss" in metrics:
            self._step(stage, metrics)

    def count(self, what: str, done: int, total: int) -> None:
        """Print the progress of preparing files."""
        if done == total or time.monotonic() - self._printed_at > SECONDS_BETWEEN_LINES:
            self.line(f"{what}: {done} of {total}")

    def name(self, stage: str) -> str:
        """Title of a stage: kind, arms and seed."""
        return self._titles.get(stage, stage)

    def line(self, text: str) -> None:
        """Print one line, above the bars where there are any."""
        self._printed_at = time.monotonic()
        self.console.print(text, markup=False, soft_wrap=True)
        sys.stderr.flush()

    def _step(self, stage: str, metrics: Mapping[str, Any]) -> None:
        step, steps = int(metrics["step"]), int(metrics["steps"])
        rate = metrics["clips_per_second"]
        note = f"step {step}/{steps} loss {metrics['loss']:.3f} {rate:.0f} clips/s"
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(self.name(stage), total=steps, note=note)
            self._bars.update(self._tasks[stage], completed=step, note=note)
        elif time.monotonic() - self._printed_at > SECONDS_BETWEEN_LINES:
            self.line(f"[{self.done}/{self.total}] {self.name(stage)}: {note}{self._time_left()}")

    def _end(self, stage: str) -> None:
        if self._bars is not None:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
            self._bars.update(self._tasks["all"], completed=self.done)

    def _time_left(self) -> str:
        newly_done = self.done - self._first_done
        if not newly_done:
            return ""
        seconds = (time.monotonic() - self._started) / newly_done * (self.total - self.done)
        return f", about {duration(seconds)} left"
