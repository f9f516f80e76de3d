"""Options, error messages, exit status, output and progress that the commands share."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from ssdet.plugins import Unknown, UsageError
from ssdet.system.console import SECONDS_BETWEEN_LINES, plain_console

P = ParamSpec("P")
T = TypeVar("T")

Name = Annotated[str, tyro.conf.Positional]
AsJson = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")]
StoreOption = Annotated[
    str, tyro.conf.arg(help="Folder or URI of the store (SSDET_STORE, else ./runs).")
]

RESUMABLE = "stopped; the same command goes on from here"
"""Message of an interrupted command that resumes."""
MAX_LISTED = 20
"""Lines of a section that are printed."""
CONFIG = (tyro.conf.FlagCreatePairsOff,)


def default_store() -> str:
    """SSDET_STORE, else ./runs."""
    return os.environ.get("SSDET_STORE", "runs")


def parse(
    kind: type[T], arguments: Sequence[str] | None, prog: str, description: str | None = None
) -> T:
    """Options of a dataclass from a command line; SystemExit with status 2 for wrong usage."""
    return tyro.cli(kind, args=arguments, prog=prog, description=description, config=CONFIG)


def run_subcommand(
    commands: Mapping[str, Any],
    arguments: Sequence[str],
    prog: str,
    description: str | None,
) -> int:
    """Call the function of a subcommand, one of `commands` by name; return its exit status."""
    status: int | None = tyro.extras.subcommand_cli_from_dict(
        dict(commands), args=arguments, prog=prog, description=description, config=CONFIG
    )
    return status or 0


def report_errors(
    *failures: type[Exception], interrupted: str = "interrupted"
) -> Callable[[Callable[P, int | None]], Callable[P, int]]:
    """Decorator of a command that prints errors to the error stream and returns the exit status.

    Status 0: done; 1: ValueError, OSError or one of `failures`; 2: wrong usage (UsageError, or
    Unknown for a name that nothing is registered under); 130: interrupted from the keyboard.
    """

    failures = (ValueError, OSError, *failures)

    def decorate(command: Callable[P, int | None]) -> Callable[P, int]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return command(*args, **kwargs) or 0
            except failures as error:
                note(f"error: {error}")
                return 2 if isinstance(error, Unknown | UsageError) else 1
            except KeyboardInterrupt:
                note(interrupted)
                return 130

        return run

    return decorate


@contextmanager
def wrong_usage(*errors: type[Exception]) -> Iterator[None]:
    """Raise UsageError, with which the command ends with status 2, in place of these errors of the
    block; by default of ValueError and FileNotFoundError."""
    usage_errors = errors or (ValueError, FileNotFoundError)
    try:
        yield
    except usage_errors as error:
        raise UsageError(str(error)) from error


def parse_values(texts: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Values by name from texts such as "augment=mixup" and "seed=0"; what is JSON becomes that
    value. ValueError, which lists `names`, for a text without "="."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text}: expected NAME=VALUE; names: {', '.join(names)}")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def note(text: str) -> None:
    """Print a line to the error stream."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=1, default=str))


def print_table(
    titles: Iterable[str], rows: Iterable[Iterable[str]], left: int | None = None, width: int = 200
) -> None:
    """Print a table as wide as the terminal, elsewhere of at most `width` columns of text.

    left: number of left-aligned columns, all by default; the others are right-aligned.
    """
    table = Table()
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if left is None or index < left else "right")
    for row in rows:
        table.add_row(*row)
    plain_console(width).print(table)


def print_section(title: str, lines: Iterable[str]) -> None:
    """Print a title and the first `MAX_LISTED` lines; nothing where there are no lines."""
    lines = list(lines)
    if lines:
        print(f"{title}:", *(f"  {line}" for line in lines[:MAX_LISTED]), sep="\n")
    if len(lines) > MAX_LISTED:
        print(f"  … and {len(lines) - MAX_LISTED} more (--json lists all)")


def reasons(by_name: Mapping[str, str]) -> list[str]:
    """Lines for `print_section` from reasons by name."""
    return [f"{name}: {reason}" for name, reason in by_name.items()]


class Progress:
    """Progress of a command on the error stream: a bar on a terminal, lines elsewhere.

    Call it as progress(done, total) inside `with`. Without a terminal a line is printed every
    `SECONDS_BETWEEN_LINES` seconds, none for what takes less.

    label: such as "extract:". unit: what is counted, such as " videos". resumes: the first call
    gives what an earlier call of the command has done.
    """

    def __init__(
        self, label: str, unit: str = "", resumes: bool = False, console: Console | None = None
    ) -> None:
        self.label, self.unit, self.resumes = label, unit, resumes
        self.console = console or plain_console(stderr=True)
        self._started = self._printed_at = time.monotonic()
        self._before: float | None = None
        self._lines = 0
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeRemainingColumn(),
        )  # fmt: skip
        # Without a thread, since processes are forked while the bar is shown.
        self._bars = Bars(*columns, console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    def __call__(self, done: float, total: float) -> None:
        """Show that `done` of `total` are done."""
        now, on_terminal = time.monotonic(), self.console.is_terminal
        if self._before is None:
            self._before = done if self.resumes else 0
            if self._before:
                self.console.print(f"{done} of {total} {self.label} before")
            if on_terminal:
                self._bars.add_task(self.label, total=total)
                self._bars.start()
        if done < total and now - self._printed_at < (
            0.1 if on_terminal else SECONDS_BETWEEN_LINES
        ):
            return
        if on_terminal:
            self._bars.update(self._bars.task_ids[0], completed=done, total=total, refresh=True)
        elif done < total or self._lines:
            line = f"{self.label} {done:.0f} of {total:.0f}{self.unit}"
            self.console.print(line + self._time_left(done, total, now), soft_wrap=True)
            self._lines += 1
        self._printed_at = now

    def _time_left(self, done: float, total: float, now: float) -> str:
        before = self._before or 0
        if not before < done < total:
            return ""
        seconds = (now - self._started) / (done - before) * (total - done)
        return f", about {seconds / 60:.0f} min left"
