"""Console output of a search: one line for each trial that ends."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from ssdet.search.space import Search
from ssdet.search.trials import ENDED, Trial
from ssdet.system.console import SECONDS_BETWEEN_LINES, duration, plain_console


class SearchConsole:
    """Plain lines on stderr: trials that end, and now and then a step of one that runs."""

    def __init__(
        self, search: Search, trials: Iterable[Trial], console: Console | None = None
    ) -> None:
        self.search = search
        self.console = console or plain_console(stderr=True)
        self._ended = {trial.number for trial in trials if trial.state in ENDED}
        self._first, self._started = len(self._ended), time.monotonic()
        self._spoke = self._started

    def line(self, text: str) -> None:
        """Print one line."""
        self._spoke = time.monotonic()
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, where: str, concurrent: int) -> None:
        """Say where trials run, how many at once, and how many have ended already."""
        self.line(f"{where}; {concurrent} {'trial' if concurrent == 1 else 'trials'} at once")
        self.line(f"{self._first} of {self.search.trials} trials are done already")

    def count(self, what: str, done: int, total: int) -> None:
        """Preparation that counts files."""
        if done == total or time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self.line(f"{what}: {done} of {total}")

    def step(self, number: int, metrics: Mapping[str, Any]) -> None:
        """A trial's training reported."""
        if time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            step = f"step {metrics['step']}/{metrics['steps']} loss {metrics['loss']:.3f}"
            self.line(f"[{len(self._ended)}/{self.search.trials}] trial {number}: {step}")

    def ended(self, trials: Iterable[Trial]) -> None:
        """Say how those of the search's trials ended that have since the last time."""
        for trial in trials:
            if trial.state in ENDED and trial.number not in self._ended:
                self._ended.add(trial.number)
                self.line(f"[{len(self._ended)}/{self.search.trials}] {outcome(trial)}")

    def stop(self) -> None:
        """The search has ended."""
        seconds = time.monotonic() - self._started
        self.line(f"{len(self._ended) - self._first} trials in {duration(seconds)}")


def outcome(trial: Trial) -> str:
    """How a trial ended, in a line."""
    chosen = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
    values = ", ".join(f"{name} {shown(value)}" for name, value in trial.values.items())
    rungs = ", ".join(f"{value:.4f}" for value in trial.rungs.values())
    said = {
        "pruned": f"stopped early at mAP {rungs}",
        "diverged": f"diverged, counts as {values}: {trial.error}",
        "failed": f"FAILED: {trial.error}",
    }
    return f"trial {trial.number}: {said.get(trial.state, values)} ({chosen})"


def shown(value: Any) -> str:
    """A value, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
