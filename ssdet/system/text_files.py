"""UTF-8 text files with the same bytes on every system and in every locale."""

from os import PathLike
from typing import TextIO


def open_text(path: str | PathLike[str]) -> TextIO:
    """Open a file to write UTF-8 text to, without translation of line ends.

    Lone surrogates, which Python uses for bytes of file names that are not UTF-8 (`os.fsdecode`),
    are written as backslash escapes such as \\udcdf. JSON reads them back.
    """
    return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")


def printable(text: str) -> str:
    """Text with lone surrogates as backslash escapes, for libraries that do not accept them."""
    return text.encode(errors="backslashreplace").decode()


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a file; see `open_text`."""
    with open_text(path) as file:
        file.write(text)
