"""Standard output and error of the commands: any text can be written, and a reader may leave."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

CLOSED_PIPE = 128 + signal.SIGPIPE
"""Exit status after the reader of a pipe has left: what shells report of `cat` or `grep` then."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard output and error fit for every text and every reader while the block lasts.

    Characters that the encoding lacks, and bytes of file names that are not UTF-8, are written as
    backslash escapes instead of raising UnicodeEncodeError. Where the reader of a pipe leaves
    (`| head`), the block ends silently by SystemExit with status `CLOSED_PIPE`: no command takes
    that for an error of its own, as it would BrokenPipeError, which is an OSError. Streams that
    are no files, such as those of notebooks, and a surrounding block's are left as they are.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_fit, before)
    try:
        yield
    finally:
        mine = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        with ExitStack() as both:
            for stream, old in zip(mine, before, strict=True):
                if stream is not old:
                    both.callback(stream.flush)


class _Pipe(io.FileIO):
    """A file descriptor of which only the first write without a reader is noticed."""

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise SystemExit(CLOSED_PIPE) from None


def _fit(stream: Any) -> Any:
    """The stream itself, or in place of a file's one that the block may use."""
    raw = getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))
    if type(raw) is not io.FileIO or raw.closed:
        return stream
    stream.flush()
    pipe: Any = _Pipe(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        pipe if stream.write_through else io.BufferedWriter(pipe),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
