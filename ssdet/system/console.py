"""Console output without markup, and durations as text."""

from typing import Any

from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
"""Interval between lines of progress without a terminal."""


def plain_console(width: int | None = None, **options: Any) -> Console:
    """A console without rich's markup, emoji codes and highlighting, which would alter names.

    Its width is that of the terminal; elsewhere `width` columns, or rich's default. `options` are
    those of rich's Console, such as `stderr=True`.
    """
    plain = {"highlight": False, "markup": False, "emoji": False, **options}
    out = Console(**plain)
    return out if width is None or out.is_terminal else Console(width=width, **plain)


def duration(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
