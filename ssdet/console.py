"""The consoles of this package: names are shown as they are, whatever brackets they have."""

from typing import Any

from rich.console import Console


def plain_console(width: int | None = None, **options: Any) -> Console:
    """A console without rich's markup, emoji codes and highlighting.

    It is as wide as the terminal; elsewhere `width` columns, or as rich finds them. `options` are
    those of rich's Console, such as `stderr=True`.
    """
    plain = {"highlight": False, "markup": False, "emoji": False, **options}
    out = Console(**plain)
    return out if width is None or out.is_terminal else Console(width=width, **plain)
