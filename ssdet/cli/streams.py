"""Standard output and error of the commands: any text can be written, and a reader may leave."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ERRORS = "backslashreplace"
CLOSED_PIPE = 128 + signal.SIGPIPE
"""Exit status after the reader of a pipe has left: what shells report of `cat` or `grep` then."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard output and error fit for every text and every reader while the block lasts.

    Characters that the encoding lacks, and bytes of file names that are not UTF-8, are written as
    backslash escapes instead of raising UnicodeEncodeError. Where the reader of a pipe leaves
    (`| head`), the block ends silently by SystemExit with status `CLOSED_PIPE`: no command takes
    that for an error of its own, as it would BrokenPipeError, which is an OSError. Blocks may be
    nested; streams that are no text files, such as those of notebooks, are left as they are.
    """
    with _fit("stdout"), _fit("stderr"):
        yield


class _Pipe(io.FileIO):
    """A file descriptor of which only the first write without a reader is noticed."""

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise SystemExit(CLOSED_PIPE) from None


@contextmanager
def _fit(name: str) -> Iterator[None]:
    stream: Any = getattr(sys, name)
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is io.FileIO and not raw.closed:
        stream.flush()
        mine = _over(_Pipe(raw.fileno(), "w", closefd=False), stream)
        setattr(sys, name, mine)
        try:
            yield
        finally:
            setattr(sys, name, stream)
            mine.flush()
    elif isinstance(stream, io.TextIOWrapper):
        errors = stream.errors
        stream.reconfigure(errors=ERRORS)
        try:
            yield
        finally:
            stream.reconfigure(errors=errors)
    else:
        yield


def _over(pipe: Any, like: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        pipe if like.write_through else io.BufferedWriter(pipe),
        encoding=like.encoding,
        errors=ERRORS,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
