"""Text files that this package writes, the same on every system and in every locale."""

from os import PathLike
from typing import TextIO


def open_text(path: str | PathLike[str]) -> TextIO:
    """Open a file to write UTF-8 text to; lines end as they are written.

    Lone surrogates, by which Python stands for bytes of file names that are not UTF-8
    (`os.fsdecode`), are written as backslash escapes such as \\udcdf. JSON reads them back.
    """
    return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")


def printable(text: str) -> str:
    """Text for programs that take no lone surrogates, with these as backslash escapes."""
    return text.encode(errors="backslashreplace").decode()


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a whole file as `open_text` does."""
    with open_text(path) as file:
        file.write(text)
